"""One observed call of the client, from before it is sent until its result, or the stream of it, was read."""

from functools import lru_cache
from typing import Any, Final, Literal, get_args, get_origin

from taskpilot_instrument._bodies import Body, EventBody, JsonBody, NoBody, as_object, parse
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument._streams import Watch, watched_class
from taskpilot_instrument.errors import BlockedError
from taskpilot_instrument.patches._openai_attributes import rate_limits, request_attributes
from taskpilot_instrument.patches._openai_content import capture_input
from taskpilot_instrument.patches._openai_most import most_of
from taskpilot_instrument.patches._openai_request import body_of
from taskpilot_instrument.patches._openai_response import (
    ChunkedReader,
    EventReader,
    Failure,
    WholeReader,
    read_response,
)
from taskpilot_instrument.patches._openai_surfaces import Surface
from taskpilot_instrument.patches._openai_usage import asking_for_usage, may_refuse_usage, remember_refusal
from taskpilot_instrument.typing import ChunkReader

#: The HTTP client's errors before a request is sent.
_NEVER_ARRIVED: Final = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})

#: What sort of object the transport gave back: a parsed one, one of the client's wrappers around the HTTP response,
#: or the HTTP response itself, where the caller asked for it or the result is a file.
Shape = Literal["parsed", "wrapped", "http"]
_EVENTS: Final = "text/event-stream"
#: Bodies that are of no use here, and large.
_FILES: Final = ("audio/", "video/", "image/", "application/octet-stream")


class Call:
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
        operation = self.operation
        recorder = operation.recorder
        capture = recorder.capture
        body = None
        try:
            body = body_of(self.options)
            if operation.span.is_recording() or capture is not None:
                self.llm.request = request_attributes(body, streamed=self.llm.streamed)
                if capture is not None:
                    capture_input(self.llm, body, capture)
        except Exception as error:
            swallow("request", error)
        operation.announce()
        if recorder.gates:
            self._pass_gates(body)
        if self.llm.streamed:
            self._watch_stream(is_async=is_async)
            parsed = self.kwargs.get("stream_cls") is not None
            if recorder.include_usage and parsed and not self.surface.events:
                self._ask_for_usage()
        operation.enter()

    def _pass_gates(self, body: dict[str, Any] | None) -> None:
        """Ask whether the call may go, by the most that it may use; unknown where its body cannot be read."""
        try:
            if body is not None:
                files, url = self.options.files, self.options.url
                self.llm.most = most_of(body, self.surface.operation, url, len(files) if files else 0)
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
            is_open, document = self._opened(result)
            if document is not None:
                failure = self._read(document)
                if failure is not None:
                    outcome, error_type = failure
        except Exception as error:
            swallow("usage", error)
        finally:
            if not is_open:
                self.operation.finish(outcome=outcome, error_type=error_type)

    def _read(self, document: Any) -> Failure | None:
        """Read a whole result; return how it failed where it says so itself."""
        recorder = self.operation.recorder
        return read_response(self.llm, document, recorder.capture, recorder.bills)

    def _opened(self, result: Any) -> tuple[bool, Any]:
        """Tell whether the body is still to be read, which is hooked then; else return what can be read already."""
        kind: Any = type(result)
        shape = shape_of(kind)
        if (shape == "wrapped" or self.llm.streamed) and self._still_open(result, shape):
            return True, None
        if shape == "parsed":
            return False, _object_of(result)
        response = result.http_response if shape == "wrapped" else getattr(result, "response", result)
        sort = response.headers.get("content-type", "")
        if _EVENTS in sort:
            self._read_events(response.content)
        return False, parse(response.content) if "json" in sort else None

    def _read_events(self, body: bytes) -> None:
        """Read a stream that came as one body."""
        reader = self._reader(is_events=True)
        events = EventBody(reader.read_chunk)
        events.feed(body)
        events.end()
        reader.read_end()

    def _still_open(self, result: Any, shape: Shape) -> bool:
        """Hook a response whose body is still to be read; False where all of it is here."""
        response = result.http_response if shape == "wrapped" else getattr(result, "response", None)
        # A stream may be closed already, where an event hook has read the body; its chunks are still to come.
        if response is None or (response.is_closed and not self.llm.streamed):
            return False
        sort = response.headers.get("content-type", "")
        is_events = _EVENTS in sort
        watch = Watch(self.operation, self._reader(is_events=is_events), hides_usage=self.hides_usage)
        body: Body = JsonBody(watch.saw)
        if is_events:
            body = EventBody(watch.saw)
        elif sort.startswith(_FILES):
            body = NoBody()
        watch.hook(response, body)
        return True

    def _reader(self, *, is_events: bool) -> ChunkReader:
        llm, capture, bills = self.llm, self.operation.recorder.capture, self.operation.recorder.bills
        if not is_events and not llm.streamed:
            return WholeReader(llm, capture, bills)
        return EventReader(llm, capture, bills) if self.surface.events else ChunkedReader(llm, capture)


def _may_be_billed(error: BaseException) -> bool:
    """Tell whether a call that raised may have cost something: not where it was refused, or never arrived."""
    if getattr(error, "status_code", None) is not None or isinstance(error, BlockedError):
        return False
    return type(error.__cause__).__name__ not in _NEVER_ARRIVED


@lru_cache(maxsize=256)
def shape_of(kind: Any) -> Shape:
    # Looked up once per type: a missing attribute of a pydantic model costs more than a microsecond.
    if hasattr(kind, "http_request"):
        return "wrapped"
    return "http" if hasattr(kind, "iter_raw") else "parsed"


def _object_of(result: Any) -> Any:
    """Return what can be read of a parsed result; None where it is a text that somebody wrote or said."""
    if not isinstance(result, str):
        return as_object(result)
    try:
        return parse(result) if result.startswith("{") else None
    except ValueError:
        return None
