"""The ASGI application: mounts in FastAPI or any other, or is served alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from importlib.util import find_spec
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from taskpilot_instrument._forms import did_you_mean
from taskpilot_instrument._instrument import instrumentation
from taskpilot_instrument._version import __version__
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.semconv import RUN_OUTCOMES
from taskpilot_instrument.web import assets, state
from taskpilot_instrument.web.description import DESCRIPTION
from taskpilot_instrument.web.gate import LOOPBACK, Gate
from taskpilot_instrument.web.live import PAUSE_S, Live, Paced
from taskpilot_instrument.web.problems import HANDLERS, problem
from taskpilot_instrument.web.series import Series
from taskpilot_instrument.web.shown import Shown

#: Pages that may watch at once; each costs a task, and each window that is asked for a look at the figures a second.
_MOST_WATCHERS: Final = 32
#: How often in a pause somebody who watches is asked whether the server stops.
_LOOKS_UP: Final = 5
_VOTE_FIELDS: Final = frozenset(DESCRIPTION["components"]["schemas"]["Vote"]["properties"])


def create_app(
    handle: Instrumentation | None = None,
    *,
    token: str | None = None,
    hosts: Iterable[str] | None = LOOPBACK,
    cors_origins: Iterable[str] = (),
    is_stopping: Callable[[], bool] = lambda: False,
    source: str | None = None,
) -> Any:
    """Return the ASGI application; mount it in another one, or serve it alone.

    :param handle: what is shown; the instrumentation in force when a request comes, by default.
    :param token: bearer token that every request but the empty page and ``/healthz`` has to bring.
    :param hosts: host names that requests may ask for; those of this machine by default, None takes any.
    :param cors_origins: origins whose pages may ask, such as ``https://support.example``; none by default.
    :param is_stopping: asked while pages watch: True lets them go, so that the server need not wait for them.
    :param source: Prometheus whose golden signals are shown, those of all processes; else the setting ``source``.
    :raises ConfigurationError: for a token that is too short.
    """
    if token is not None and len(token) < 16:
        raise ConfigurationError("token= takes a secret of 16 characters or more, such as secrets.token_urlsafe()")
    faces = _Faces(handle, is_stopping, source)
    routes = [
        *(Route(path, faces.page) for path in assets.TYPES),
        Route("/metrics", faces.metrics),
        Route("/signals", faces.signals),
        Route("/feedback", faces.feedback, methods=["POST"]),
        Route("/budgets", faces.budgets),
        Route("/models", faces.models),
        Route("/experiments", faces.experiments),
        Route("/experiments/{name:path}", faces.experiment),
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
    def __init__(self, handle: Instrumentation | None, is_stopping: Callable[[], bool], source: str | None) -> None:
        self._given = handle
        self._is_stopping = is_stopping
        self._shown = Shown(source)
        self._watching = 0
        self._series: tuple[Instrumentation, Series] | None = None
        self._paced = Paced()
        self._live = Live(lambda window: json.dumps(self._snapshot(window, self._paced)))
        if handle is not None:
            handle.ring()  # from now on runs are kept

    @property
    def _handle(self) -> Instrumentation:
        return self._given or instrumentation()

    async def page(self, request: Request) -> Response:
        """Serve the page and its files."""
        root = request.scope.get("root_path", "").rstrip("/")
        path = request.url.path.removeprefix(root) or "/"
        text = await run_in_threadpool(assets.read, path, root)
        return Response(text, media_type=assets.TYPES[path], headers={"Cache-Control": "no-cache"})

    async def metrics(self, request: Request) -> Response:
        """Serve the metrics in the format that is asked for."""
        from prometheus_client.exposition import choose_encoder

        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await run_in_threadpool(encoder, self._handle.metrics.scraped)
        return Response(text, headers={"Content-Type": content_type})

    async def signals(self, request: Request) -> Response:
        """Answer with the golden signals."""
        asked = _query(request, "window", "workflow", "agent", "model")
        handle = self._handle
        found = await run_in_threadpool(lambda: state.signals(self._shown.signals(handle, **asked), handle, asked))
        return JSONResponse(state.clean(found))

    async def budgets(self, request: Request) -> Response:
        """Answer with how every budget stands."""
        _query(request)
        return JSONResponse(state.clean(await run_in_threadpool(state.budgets, self._handle)))

    async def runs(self, request: Request) -> Response:
        """Answer with the latest runs, all of them or those that ended in one way."""
        outcome = _query(request, "outcome").get("outcome")
        if outcome not in (None, *RUN_OUTCOMES):
            words = ", ".join(RUN_OUTCOMES)
            raise ConfigurationError(
                f"outcome={outcome!r:.80}: expected one of {words}{did_you_mean(outcome, RUN_OUTCOMES)}"
            )
        return JSONResponse(state.clean(self._handle.ring().runs(outcome)))

    async def models(self, request: Request) -> Response:
        """Answer with how the models stand beside each other."""
        asked = _query(request, "window", "agent", "reprice")
        return JSONResponse(state.clean(await run_in_threadpool(lambda: state.models(self._handle, **asked))))

    async def experiments(self, request: Request) -> Response:
        """Answer with the names of the experiments that can be asked about."""
        _query(request)
        return JSONResponse(list(await run_in_threadpool(self._handle.experiment_names)))

    async def experiment(self, request: Request) -> Response:
        """Answer with the report of one experiment."""
        return await run_in_threadpool(
            self._experiment, request.path_params["name"], _query(request, "window").get("window")
        )

    def _experiment(self, name: str, window: str | None) -> Response:
        known = self._handle.experiment_names()
        if name not in known:
            hint = (
                f"known are {', '.join(known)}" if known else "a run that experiment() gave a variant has to end first"
            )
            return problem(404, "there is no such experiment", hint)
        try:
            return JSONResponse(state.clean(self._handle.experiment_report(name, window=window).as_dict()))
        except ConfigurationError as error:
            if find_spec("scipy") is not None:
                raise
            return problem(424, "experiments cannot be compared here", str(error))

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
        correct = vote.pop("correct", None)
        receipt = await run_in_threadpool(lambda: self._handle.record_feedback(correct, **vote))
        return JSONResponse(receipt._asdict(), 201)

    async def state(self, request: Request) -> Response:
        """Answer with all that the page shows."""
        return JSONResponse(await run_in_threadpool(self._snapshot, _query(request, "window").get("window")))

    def _snapshot(self, window: str | None, paced: Paced | None = None) -> dict[str, Any]:
        handle, held = self._handle, self._series
        if held is None or held[0] is not handle:
            held = self._series = handle, Series(handle.metrics.windows)
        return state.snapshot(handle, held[1], self._shown, window, paced)

    async def live(self, request: Request) -> Response:
        """Send what the page shows whenever it changes, as server-sent events."""
        window = _query(request, "window").get("window")
        if self._watching >= _MOST_WATCHERS:
            return problem(429, f"{_MOST_WATCHERS} pages are watching already", headers={"Retry-After": "30"})
        first = await self._live.text(window)
        return StreamingResponse(
            self._watch(request, window, first),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _watch(self, request: Request, window: str | None, sent: str) -> AsyncIterator[str]:
        self._watching += 1
        try:
            yield f"data: {sent}\n\n"
            while not await request.is_disconnected():
                for _ in range(_LOOKS_UP):
                    await asyncio.sleep(PAUSE_S / _LOOKS_UP)
                    if self._is_stopping():
                        return
                now = await self._live.text(window)
                # A comment keeps the connection, and tells us when nobody is there any more.
                yield f"data: {now}\n\n" if now != sent else ": still here\n\n"
                sent = now
        finally:
            self._watching -= 1


def _query(request: Request, *names: str) -> dict[str, str]:
    """Return what the request asks for.

    :raises ConfigurationError: for a parameter that this path has not: a misspelt filter would filter nothing.
    """
    for name in request.query_params:
        if name not in names:
            known = f"parameters are {', '.join(names)}" if names else "this path takes none"
            raise ConfigurationError(f"unknown parameter {name[:80]!r}{did_you_mean(name, names)}; {known}")
    return {name: value for name in names if (value := request.query_params.get(name))}
