"""Patch the OpenAI client at its transport.

``SyncAPIClient.request`` and ``AsyncAPIClient.request`` see every call: of clients and bound methods
made before patching, of ``with_raw_response``, ``parse``, ``stream``, ``client.post`` and Azure. Three
zones: before the call, the call, after it. The outer two are guarded and never touch the result.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Literal, get_args, get_origin

from taskpilot_instrument._bodies import EventBody, JsonBody, as_object, parse
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, active, current
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument._streams import Watch, watched_class
from taskpilot_instrument.errors import BlockedError
from taskpilot_instrument.health import tally
from taskpilot_instrument.patches._openai_attributes import rate_limits, request_attributes
from taskpilot_instrument.patches._openai_content import capture_input
from taskpilot_instrument.patches._openai_late import LateCall, is_running
from taskpilot_instrument.patches._openai_most import most_of
from taskpilot_instrument.patches._openai_request import (
    Surface,
    body_of,
    late_surface_of,
    llm_call,
    server_of,
    surface_of,
)
from taskpilot_instrument.patches._openai_response import ChunkedReader, EventReader, WholeReader, read_response
from taskpilot_instrument.patches._openai_usage import asking_for_usage, may_refuse_usage, remember_refusal
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.semconv import Kind

#: The HTTP client's errors before a request is sent.
_NEVER_ARRIVED: Final = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})

#: What sort of object the transport gave back: a parsed one, one of the client's wrappers around the HTTP response,
#: or the HTTP response itself, where the caller asked for it.
_Shape = Literal["parsed", "wrapped", "http"]


def patches() -> list[Patch]:
    """Return the patches for the installed openai package.

    :raises ImportError: where it is not installed.
    """
    from openai._base_client import AsyncAPIClient, SyncAPIClient

    return [
        Patch(SyncAPIClient, "request", _request),
        Patch(AsyncAPIClient, "request", _async_request),
        # Private, so optional: adds retries and the provider's request id to plain results.
        Patch(SyncAPIClient, "_process_response", _process_response, optional=True),
        Patch(AsyncAPIClient, "_process_response", _async_process_response, optional=True),
    ]


def _request(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _before(client, args, kwargs)
    if call is None:
        late = _before_late(args, kwargs)
        result = wrapped(*args, **kwargs)
        if late is not None:
            late.returned(client, result)
        return result
    try:
        call.begin(is_async=False)
        refused = False
        try:
            result = wrapped(*call.args, **call.kwargs)
        except Exception as error:
            refused = call.takes_back(error)
            if not refused:
                raise
        if refused:
            result = wrapped(*call.args, **call.kwargs)
            call.was_taken_without()
    except BaseException as error:
        call.operation.leave()
        call.failed(error)
        raise
    call.operation.leave()
    call.returned(result)
    return result


async def _async_request(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    call = _before(client, args, kwargs)
    if call is None:
        late = _before_late(args, kwargs)
        result = await wrapped(*args, **kwargs)
        if late is not None:
            late.returned(client, result)
        return result
    try:
        call.begin(is_async=True)
        refused = False
        try:
            result = await wrapped(*call.args, **call.kwargs)
        except Exception as error:
            refused = call.takes_back(error)
            if not refused:
                raise
        if refused:
            result = await wrapped(*call.args, **call.kwargs)
            call.was_taken_without()
    except BaseException as error:
        call.operation.leave()
        call.failed(error)
        raise
    call.operation.leave()
    call.returned(result)
    return result


def _process_response(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _note_transport(kwargs)
    return wrapped(*args, **kwargs)


async def _async_process_response(
    wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _note_transport(kwargs)
    return await wrapped(*args, **kwargs)


def _note_transport(kwargs: dict[str, Any]) -> None:
    try:
        operation = current()
        if operation is not None and operation.llm is not None and operation.subject is not None:
            headers = kwargs["response"].headers
            operation.llm.retries = kwargs.get("retries_taken") or 0
            operation.llm.provider_request_id = headers.get("x-request-id")
            if operation.span.is_recording():
                operation.llm.request.update(rate_limits(headers))
    except Exception as error:
        swallow("transport", error)


# --- before the call ----------------------------------------------------------------------------


def _before(client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Call | None":
    """Make the operation of a billable call; None for any other call, and where our own code fails."""
    recorder = active()
    if recorder is None:
        return None
    try:
        options = kwargs["options"] if "options" in kwargs else args[1]
        surface = surface_of(options.method, options.url)
        if surface is None:
            return None
        around = current()
        if around is not None and around.subject is options:
            return None  # somebody's layer calls ours twice for one request
        tally.seen()
        streamed = bool(kwargs.get("stream"))
        body = body_of(options)
        llm = llm_call(surface, body, server_of(client), streamed=streamed)
        operation = Operation(recorder, Kind.LLM, llm.operation, subject=options, llm=llm)
        return _Call(operation, llm, surface, options, args, kwargs)
    except Exception as error:
        swallow("before", error)
        return None


def _before_late(args: tuple[Any, ...], kwargs: dict[str, Any]) -> "LateCall | None":
    recorder = active()
    if recorder is None or kwargs.get("stream"):
        return None
    try:
        options = kwargs["options"] if "options" in kwargs else args[1]
        surface = late_surface_of(options.method, options.url)
        return None if surface is None else LateCall(recorder, surface, _document_of)
    except Exception as error:
        swallow("before", error)
        return None


class _Call:
    """One billable call on its way: its operation, and the arguments to send it with."""

    __slots__ = ("args", "hides_usage", "kwargs", "llm", "operation", "options", "surface")

    def __init__(
        self,
        operation: Operation,
        llm: LLMCall,
        surface: Surface,
        options: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.operation = operation
        self.llm = llm
        self.surface = surface
        self.options = options
        self.args = args
        self.kwargs = kwargs
        #: True where we asked for the usage, so that the chunk which brings it is ours alone.
        self.hides_usage = False

    def begin(self, *, is_async: bool) -> None:
        """Note what is asked for, tell the sinks, and make the call the current operation."""
        operation, capture = self.operation, self.operation.recorder.capture
        try:
            if operation.span.is_recording() or capture is not None:
                body = body_of(self.options)
                self.llm.request = request_attributes(body, streamed=self.llm.streamed)
                if capture is not None:
                    capture_input(self.llm, body, capture)
        except Exception as error:
            swallow("request", error)
        operation.announce()
        if operation.recorder.gates:
            self._pass_gates()
        if self.llm.streamed:
            self._watch_stream(is_async=is_async)
            parsed = self.kwargs.get("stream_cls") is not None
            if operation.recorder.include_usage and parsed and not self.surface.events:
                self._ask_for_usage()
        operation.enter()

    def _pass_gates(self) -> None:
        try:
            options, uploads = self.options, getattr(self.options, "files", None)
            self.llm.most = most_of(
                body_of(options), self.surface.operation, url=options.url, uploads=len(uploads or ())
            )
        except Exception as error:
            swallow("request", error)
        self.operation.admit()

    def _watch_stream(self, *, is_async: bool) -> None:
        """Ask the client for a subclass of its own stream class that shows each chunk."""
        try:
            asked = self.kwargs.get("stream_cls")
            if asked is not None:
                watched: Any = watched_class(get_origin(asked) or asked, is_async=is_async)
                chunk = get_args(asked)
                self.kwargs = {**self.kwargs, "stream_cls": watched[chunk] if chunk else watched}
        except Exception as error:
            swallow("stream", error)

    def _ask_for_usage(self) -> None:
        """Ask the provider to tell the stream's usage, unless the caller has decided that already."""
        try:
            asking = asking_for_usage(self.options, self.llm.server_address, self.operation.recorder)
            if asking is not None:
                self._send(asking)
                self.hides_usage = True
        except Exception as error:
            swallow("include_usage", error)

    def _send(self, options: Any) -> None:
        """Send these options in place of those that the call was made with."""
        self.operation.subject = options  # by which a second layer of ours would know the call
        if "options" in self.kwargs:
            self.kwargs = {**self.kwargs, "options": options}
        else:
            self.args = (self.args[0], options, *self.args[2:])

    def takes_back(self, error: Exception) -> bool:
        """Tell whether the provider refused what we added to the request; then send it as the caller made it."""
        try:
            if not self.hides_usage or not may_refuse_usage(error):
                return False
            self.hides_usage = False
            self._send(self.options)
        except Exception as problem:
            swallow("include_usage", problem)
            return False
        return True

    def was_taken_without(self) -> None:
        """Remember that this host took the request once we had taken our part back."""
        try:
            remember_refusal(self.llm.server_address)
        except Exception as error:
            swallow("include_usage", error)

    # --- after the call ---------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """Finish the operation of a call that raised."""
        try:
            self.llm.billable = _may_be_billed(error)
            request = getattr(error, "request", None)
            if request is not None:
                self.llm.retries = int(request.headers.get("x-stainless-retry-count") or 0)
                self.llm.provider_request_id = getattr(error, "request_id", None)
            response = getattr(error, "response", None)
            if response is not None and self.operation.span.is_recording():
                self.llm.request.update(rate_limits(response.headers))
        except Exception as problem:
            swallow("transport", problem)
        finally:
            self.operation.finish(error)

    def returned(self, result: Any) -> None:
        """Read the result, or hook the stream that it will be read from; the result stays as it is."""
        is_open, outcome, error_type = False, None, None
        self.llm.billable = not self.surface.is_free
        try:
            kind: Any = type(result)
            shape = _shape(kind)
            is_open = (shape == "wrapped" or self.llm.streamed) and self._still_open(result, shape)
            document = None if is_open else _document(result, shape)
            if document is not None:
                failure = read_response(self.llm, document, self.operation.recorder.capture)
                if failure is not None:
                    outcome, error_type = failure
                if self.llm.usage is None and is_running(document):
                    self.llm.billable = False  # it is billed once it is done: see LateCall
        except Exception as error:
            swallow("usage", error)
        finally:
            if not is_open:
                self.operation.finish(outcome=outcome, error_type=error_type)

    def _still_open(self, result: Any, shape: _Shape) -> bool:
        """Hook a response whose body is still to be read; False where all of it is here."""
        response = result.http_response if shape == "wrapped" else getattr(result, "response", None)
        # A stream may be closed already, where an event hook has read the body; its chunks are still to come.
        if response is None or (response.is_closed and not self.llm.streamed):
            return False
        watch = Watch(self.operation, self._reader(), hides_usage=self.hides_usage)
        is_events = "text/event-stream" in response.headers.get("content-type", "")
        watch.hook(response, EventBody(watch.saw) if is_events else JsonBody(watch.saw))
        return True

    def _reader(self) -> ChunkedReader | EventReader | WholeReader:
        llm, capture = self.llm, self.operation.recorder.capture
        if not llm.streamed:
            return WholeReader(llm, capture)
        return EventReader(llm, capture) if self.surface.events else ChunkedReader(llm, capture)


def _document_of(result: Any) -> Any:
    kind: Any = type(result)
    shape = _shape(kind)
    return None if shape == "wrapped" and not result.http_response.is_closed else _document(result, shape)


def _may_be_billed(error: BaseException) -> bool:
    """Tell whether a call that raised may have cost something: not where it was refused, or never arrived."""
    if getattr(error, "status_code", None) is not None or isinstance(error, BlockedError):
        return False
    return type(error.__cause__).__name__ not in _NEVER_ARRIVED


@lru_cache(maxsize=256)
def _shape(kind: Any) -> _Shape:
    # Looked up once per type: a missing attribute of a pydantic model costs more than a microsecond.
    if hasattr(kind, "http_request"):
        return "wrapped"
    return "http" if hasattr(kind, "iter_raw") else "parsed"


def _document(result: Any, shape: _Shape) -> Any:
    """Return what a reader can read of a complete result: the parsed object, or the parsed body."""
    if shape == "parsed":
        if isinstance(result, str):
            return parse(result) if result.startswith("{") else None
        return as_object(result)
    response = result.http_response if shape == "wrapped" else result
    headers = getattr(response, "headers", None)  # what holds a sound has none of its own
    return parse(response.content) if headers and "json" in headers.get("content-type", "") else None
