"""Join runs over HTTP: W3C trace context, an allow-list of baggage, and ``X-Request-ID``.

An agent in another service then belongs to the same trace and the same workflow run: its spans and log lines have the
run's request id, and it opens no workflow run of its own, which would be counted a second time.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from taskpilot_instrument import _operation, semconv
from taskpilot_instrument._guard import swallow
from taskpilot_instrument.context import Ids, new_request_id, remote_run, with_remote_run

_TRACE: Final = TraceContextTextMapPropagator()
_BAGGAGE: Final = W3CBaggagePropagator()
_REQUEST_ID_HEADER: Final = "x-request-id"
#: Baggage entries that travel; whatever else an application keeps in its baggage stays where it is.
_REQUEST_ID: Final = f"{semconv.SERVICE_NAME}.{semconv.REQUEST_ID}"
_WORKFLOW: Final = f"{semconv.SERVICE_NAME}.{semconv.WORKFLOW}"
_VARIANT: Final = f"{semconv.SERVICE_NAME}.{semconv.EXPERIMENT}."
#: What comes from outside may be anything: an id that is none is not taken over.
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_NAME: Final = re.compile(r"[\x20-\x7e\u00a0-\uffff]{1,128}")
_MOST_VARIANTS: Final = 8

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def inject_headers(headers: MutableMapping[str, str]) -> None:
    """Write the current run into the headers of a request that is about to be sent; never raise.

    Writes ``traceparent``, ``tracestate``, ``baggage`` (request id, workflow, experiments) and ``X-Request-ID``; a
    request id that the headers have already stays.

    :param headers: the request's, of any HTTP client: anything that takes ``headers[name] = value``.
    """
    try:
        _TRACE.inject(headers)
        operation = _operation.current()
        if operation is None:
            return
        ids = operation.ids
        carried = Context()
        carried = baggage.set_baggage(_REQUEST_ID, ids.request_id, carried)
        if operation.workflow_name is not None:
            carried = baggage.set_baggage(_WORKFLOW, operation.workflow_name, carried)
        for experiment, variant in ids.variants[:_MOST_VARIANTS]:
            carried = baggage.set_baggage(_VARIANT + experiment, variant, carried)
        ours: dict[str, str] = {}
        _BAGGAGE.inject(ours, carried)
        given = headers.get("baggage")
        headers["baggage"] = ",".join(part for part in (given, ours.get("baggage")) if part)
        if _REQUEST_ID_HEADER not in {name.lower() for name in headers}:
            headers[_REQUEST_ID_HEADER] = ids.request_id
    except Exception as error:
        swallow("propagate", error)


def httpx_hook(request: Any) -> None:
    """Write the current run into an httpx request: ``httpx.Client(event_hooks={"request": [httpx_hook]})``."""
    inject_headers(request.headers)


async def async_httpx_hook(request: Any) -> None:
    """Do the same for ``httpx.AsyncClient``, whose hooks are coroutines."""
    inject_headers(request.headers)


def extract_headers(headers: Iterable[tuple[str, str]]) -> Context:
    """Return the context that the headers of a request speak of, on top of the current one.

    Without a request id among them a new one is made, so that all that the request starts has the same.

    :param headers: names and values as they came; what cannot be read is ignored.
    """
    given: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        given[key] = f"{given[key]},{value}" if key in given else value
    context = _TRACE.extract(given, get_current())
    entries = baggage.get_all(_BAGGAGE.extract(given, Context()))
    request_id = _matching(_ID, entries.get(_REQUEST_ID)) or _matching(_ID, given.get(_REQUEST_ID_HEADER))
    workflow = _matching(_NAME, entries.get(_WORKFLOW))
    variants = [
        (name.removeprefix(_VARIANT), str(value))
        for name, value in entries.items()
        if name.startswith(_VARIANT) and _matching(_NAME, value) and _matching(_NAME, name)
    ]
    ids = Ids(request_id or new_request_id(), None, None, tuple(variants[:_MOST_VARIANTS]))
    return with_remote_run(context, ids, workflow)


def _matching(form: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and form.fullmatch(value) else None


class PropagationMiddleware:
    """Run each request of an ASGI application in the run that its headers speak of.

    The response says the request id too, as ``X-Request-ID``. What comes with a request is believed: where strangers
    can send requests, keep it to the services behind your gateway with ``trust``.

    :param app: the ASGI application.
    :param trust: tells from a request's scope whether its headers are believed; None believes all. One that is not
        believed gets a request id of its own.
    """

    def __init__(self, app: Application, *, trust: Callable[[Scope], bool] | None = None) -> None:
        self._app = app
        self._trust = trust

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        context = self._context(scope)
        if context is None:
            await self._app(scope, receive, send)
            return
        token = attach(context)
        try:
            await self._app(scope, receive, _answering(send, context))
        finally:
            detach(token)

    def _context(self, scope: Scope) -> Context | None:
        if scope["type"] not in {"http", "websocket"}:
            return None
        try:
            trusted = self._trust is None or self._trust(scope)
            return extract_headers(
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in (scope["headers"] if trusted else ())
            )
        except Exception as error:
            swallow("propagate", error)
            return None


def _answering(send: Send, context: Context) -> Send:
    run = remote_run(context)
    if run is None:
        return send
    request_id = run.ids.request_id

    async def answer(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers") or ())
            if all(name.lower() != _REQUEST_ID_HEADER.encode() for name, _ in headers):
                headers.append((_REQUEST_ID_HEADER.encode(), request_id.encode("latin-1")))
                message = {**message, "headers": headers}
        await send(message)

    return answer
