"""The ASGI application: mounts in FastAPI or any other, or is served alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from importlib.resources import files
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from taskpilot_instrument._instrument import instrumentation
from taskpilot_instrument._version import __version__
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.sinks.ring import Ring
from taskpilot_instrument.web import state
from taskpilot_instrument.web.description import DESCRIPTION
from taskpilot_instrument.web.gate import LOOPBACK, Gate
from taskpilot_instrument.web.problems import HANDLERS, problem
from taskpilot_instrument.web.shown import Shown

_PAGE: Final = files("taskpilot_instrument.web")
_TYPES: Final = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_PAUSE_S: Final = 1.0
#: Pages that may watch at once; each costs a task and a look at the figures a second.
_MOST_WATCHERS: Final = 32
_VOTE_FIELDS: Final = frozenset(DESCRIPTION["components"]["schemas"]["Vote"]["properties"])


def create_app(
    handle: Instrumentation | None = None,
    *,
    token: str | None = None,
    hosts: Iterable[str] | None = LOOPBACK,
    cors_origins: Iterable[str] = (),
    source: str | None = None,
) -> Any:
    """Return the ASGI application; mount it in another one, or serve it alone.

    :param handle: what is shown; the instrumentation in force when a request comes, by default.
    :param token: bearer token that every request but the empty page and ``/healthz`` has to bring.
    :param hosts: host names that requests may ask for; those of this machine by default, None takes any.
    :param cors_origins: origins whose pages may ask, such as ``https://support.example``; none by default.
    :param source: Prometheus whose golden signals are shown, those of all processes; else the setting ``source``.
    :raises ConfigurationError: for a token that is too short.
    """
    if token is not None and len(token) < 16:
        raise ConfigurationError("token= takes a secret of 16 characters or more, such as secrets.token_urlsafe()")
    faces = _Faces(handle, source)
    routes = [
        Route("/", faces.page),
        Route("/page.js", faces.page),
        Route("/page.css", faces.page),
        Route("/metrics", faces.metrics),
        Route("/signals", faces.signals),
        Route("/feedback", faces.feedback, methods=["POST"]),
        Route("/budgets", faces.budgets),
        Route("/runs", faces.runs),
        Route("/healthz", faces.healthz),
        Route("/state", faces.state),
        Route("/live", faces.live),
        Route("/openapi.json", faces.openapi),
    ]
    origins = list(cors_origins)
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])]
    app = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=cors if origins else None)
    return Gate(app, token=token, hosts=hosts)


class _Faces:
    def __init__(self, handle: Instrumentation | None, source: str | None) -> None:
        self._given = handle
        self._shown = Shown(source)
        self._watching = 0
        if handle is not None:
            handle.ring()  # from now on runs are kept

    @property
    def _handle(self) -> Instrumentation:
        return self._given or instrumentation()

    @property
    def _ring(self) -> Ring:
        return self._handle.ring()

    async def page(self, request: Request) -> Response:
        """Serve the page and its two files."""
        name = request.url.path.rpartition("/")[2]
        name = name if name in _TYPES else "page.html"
        text = await run_in_threadpool((_PAGE / name).read_text, encoding="utf-8")
        if name == "page.html":
            # Mounted under a path without a slash at its end, relative addresses would miss it.
            root = request.scope.get("root_path", "").rstrip("/")
            text = text.replace("%ROOT%", root.replace("&", "").replace('"', "").replace("<", ""))
        return Response(text, media_type=_TYPES[name], headers={"Cache-Control": "no-cache"})

    async def metrics(self, request: Request) -> Response:
        """Serve the metrics in the format that is asked for."""
        from prometheus_client.exposition import choose_encoder

        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await run_in_threadpool(encoder, self._handle.metrics.scraped)
        return Response(text, headers={"Content-Type": content_type})

    async def signals(self, request: Request) -> Response:
        """Answer with the golden signals."""
        asked = _query(request, "window", "workflow", "agent", "model")
        found = await run_in_threadpool(lambda: state.signals(self._shown.signals(self._handle, **asked)))
        return JSONResponse(state.clean(found))

    async def budgets(self, _request: Request) -> Response:
        """Answer with how every budget stands."""
        return JSONResponse(state.clean(await run_in_threadpool(state.budgets, self._handle)))

    async def runs(self, _request: Request) -> Response:
        """Answer with the latest runs."""
        return JSONResponse(state.clean(self._ring.runs()))

    async def healthz(self, _request: Request) -> Response:
        """Answer that the server lives, and whether the instrumentation is well."""
        health = await run_in_threadpool(self._handle.health)
        return JSONResponse({"status": "ok", "instrumentation": "ok" if health.ok else "degraded"})

    async def openapi(self, _request: Request) -> Response:
        """Describe all this to programs."""
        return JSONResponse({**DESCRIPTION, "info": {**DESCRIPTION["info"], "version": __version__}})

    async def feedback(self, request: Request) -> Response:
        """Take a vote."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return problem(415, "feedback comes as JSON")
        try:
            vote = json.loads(await request.body())
        except (ValueError, RecursionError):
            return problem(400, "the body is no JSON")
        except ClientDisconnect:
            return problem(413, "the body is too long")
        if not isinstance(vote, dict):
            return problem(400, "the body is no JSON object")
        unknown = sorted(vote.keys() - _VOTE_FIELDS)
        if unknown:
            return problem(422, f"unknown field {unknown[0][:80]!r}", f"fields are {', '.join(sorted(_VOTE_FIELDS))}")
        receipt = await run_in_threadpool(self._record, vote)
        return JSONResponse(receipt._asdict(), 201)

    def _record(self, vote: dict[str, Any]) -> Any:
        correct, token = vote.pop("correct", None), vote.pop("token", None)
        if token is None:
            return self._handle.record_feedback(correct, **vote)
        if not isinstance(token, str) or {"request_id", "trace_id"} & vote.keys():
            raise ConfigurationError("a token names its run itself: leave request_id and trace_id out")
        return self._handle.record_token_feedback(token, correct, **vote)

    async def state(self, request: Request) -> Response:
        """Answer with all that the page shows."""
        return JSONResponse(await self._snapshot(_query(request, "window").get("window")))

    async def _snapshot(self, window: str | None) -> dict[str, Any]:
        return await run_in_threadpool(state.snapshot, self._handle, self._ring, self._shown, window)

    async def live(self, request: Request) -> Response:
        """Send what the page shows whenever it changes, as server-sent events."""
        window = _query(request, "window").get("window")
        if self._watching >= _MOST_WATCHERS:
            return problem(429, f"{_MOST_WATCHERS} pages are watching already", headers={"Retry-After": "30"})
        first = await self._snapshot(window)
        return StreamingResponse(
            self._watch(request, window, first),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _watch(self, request: Request, window: str | None, first: dict[str, Any]) -> AsyncIterator[str]:
        self._watching += 1
        try:
            sent = json.dumps(first)
            yield f"data: {sent}\n\n"
            while not await request.is_disconnected():
                await asyncio.sleep(_PAUSE_S)
                now = json.dumps(await self._snapshot(window))
                # A comment keeps the connection, and tells us when nobody is there any more.
                yield f"data: {now}\n\n" if now != sent else ": still here\n\n"
                sent = now
        finally:
            self._watching -= 1


def _query(request: Request, *names: str) -> dict[str, str]:
    return {name: value for name in names if (value := request.query_params.get(name))}
