"""Follow the responses of one WebSocket connection, from what asks for each to what ends it."""

from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

from opentelemetry.context import attach, get_current

from taskpilot_instrument import _forks
from taskpilot_instrument._bodies import as_object
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, current
from taskpilot_instrument._recorder import Recorder, active
from taskpilot_instrument._records import CONVERSATION, Most
from taskpilot_instrument._streams import Watch
from taskpilot_instrument.errors import BlockedError
from taskpilot_instrument.health import tally
from taskpilot_instrument.patches._openai_attributes import request_attributes
from taskpilot_instrument.patches._openai_content import capture_input
from taskpilot_instrument.patches._openai_messages import Place, document_of, inner, kind_of, settings_of, word
from taskpilot_instrument.patches._openai_most import most_of
from taskpilot_instrument.patches._openai_request import llm_call
from taskpilot_instrument.patches._openai_response import EventReader, read_response
from taskpilot_instrument.patches._openai_surfaces import Surface
from taskpilot_instrument.semconv import OPERATION_CHAT, OPERATION_TRANSCRIPTION, Kind

_ASK: Final = "response.create"
_RESPONSE: Final = Surface(OPERATION_CHAT)
_TRANSCRIPTION: Final = Surface(OPERATION_TRANSCRIPTION)
#: With what an error says that it is about the response that was asked for.
_BUSY: Final = "conversation_already_has_active_response"
#: As :mod:`_openai_most` has it: so many characters are at least a token, of sound in base64 and of anything else.
_SOUND: Final = "input_audio_buffer.append"
_CHARACTERS_OF_SOUND: Final = 128
_CHARACTERS: Final = 3
#: Of a server that ends nothing: the oldest is given up then.
_MOST_OPEN: Final = 1_000


class Turn(NamedTuple):
    """One response, from when it was asked for.

    :param lane: within which a socket of the Responses API answers in turn.
    :param event: the client's name for the message that asked, by which an error tells what it is about.
    :param metadata: which a realtime session gives back.
    :param sent: of the tokens that were sent to a realtime session, those which its usage will tell.
    """

    watch: Watch
    lane: str | None
    event: str | None = None
    metadata: Any = None
    sent: int = 0


class Session:
    """One connection, over all the sockets that it has had.

    A response belongs to the run that asked for it. One that nobody asked for, as after a pause in somebody's speech,
    belongs to the run that hears of it, or else to the one in which the connection was opened.

    :param is_realtime: False for the Responses API.
    """

    def __init__(self, *, is_realtime: bool) -> None:
        self._is_realtime = is_realtime
        self._context = get_current()
        self._place: Place
        #: The message that a gate refused last.
        self.refused: Any = None
        self._lock = _forks.rlock()  # re-entrant: the collector may end the connection while this thread is here
        self._asked: list[Turn] = []
        self._open: dict[str, Turn] = {}
        #: The model that answers, as the session itself tells.
        self._model: str | None = None
        self._transcriber: str | None = None
        self._settings: dict[str, Any] = {}
        #: Tokens of the conversation so far, and of what was sent since they were told; estimated from above.
        self._length = self._sent = 0

    def opened(self, place: Place) -> None:
        """Note where the socket leads that messages go over from now on."""
        self._place = place

    # --- what the application sends -----------------------------------------------------------------

    def sending(self, message: Any) -> Turn | None:
        """Begin the call that a message asks for; None where it asks for none.

        :raises BlockedError: where a gate refuses it.
        """
        recorder = active()
        if recorder is None or not isinstance(message, str | bytes):
            return None
        try:
            kind = kind_of(message)
            document = document_of(message) if kind in {_ASK, None} else {}
            if document.get("type") != _ASK:
                self._sent += len(message) // (_CHARACTERS_OF_SOUND if kind == _SOUND else _CHARACTERS)
                return None
            body = self._body(document)
            asked = self._ask(recorder, document, body)
        except Exception as error:
            swallow("socket", error)
            return None
        try:
            self._send(asked.watch.operation, asked.watch, body)
        except BlockedError:
            self.refused = message
            raise
        with self._lock:
            self._asked.append(asked)
            left = self._asked.pop(0) if len(self._asked) > _MOST_OPEN else None
        if left is not None:
            left.watch.closed()
        return asked

    def _body(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return what a message asks for, as the body of a request has it."""
        if not self._is_realtime:
            return {name: value for name, value in document.items() if name not in {"type", "event_id", "stream_id"}}
        model = self._place.model or self._model
        return {"model": model, **self._settings, **settings_of(inner(document, "response"))}

    def _ask(self, recorder: Recorder, document: dict[str, Any], body: dict[str, Any]) -> Turn:
        watch = self._begin(recorder, body)
        metadata = inner(document, "response").get("metadata") if self._is_realtime else None
        return Turn(watch, word(document, "stream_id"), word(document, "event_id"), metadata or None)

    def _begin(self, recorder: Recorder, body: dict[str, Any]) -> Watch:
        tally.seen()
        llm = llm_call(_RESPONSE, body, self._place.server, streamed=True)
        llm.response_model = self._model
        operation = Operation(recorder, Kind.LLM, llm.operation, llm=llm)
        try:
            if operation.span.is_recording():
                llm.request = request_attributes(body, streamed=True)
            if recorder.capture is not None:
                capture_input(llm, body, recorder.capture)
        except Exception as error:
            swallow("request", error)
        watch = Watch(operation, EventReader(llm, recorder.capture, recorder.bills))
        watch.keep()
        return watch

    def _send(self, operation: Operation, watch: Watch, body: dict[str, Any]) -> None:
        try:
            operation.announce()
            if operation.recorder.gates:
                self._pass_gates(operation, body)
        except BaseException as error:
            watch.failed(error)
            raise
        assert operation.llm is not None  # noqa: S101 - it was made with one
        operation.llm.billable = True

    def _pass_gates(self, operation: Operation, body: dict[str, Any]) -> None:
        llm = operation.llm
        assert llm is not None  # noqa: S101 - as above
        try:
            most = most_of(body, llm.operation)
            llm.most = self._with_earlier(most) if self._is_realtime and "input" not in body else most
        except Exception as error:
            swallow("request", error)
        operation.admit()

    def _with_earlier(self, most: Most) -> Most:
        """Add what the session has heard: all of it is input again."""
        call = self._place.call
        given = None if most.input_tokens is None else most.input_tokens + self._length + self._sent
        # What is said in somebody else's call does not pass here.
        return most._replace(
            input_tokens=given, has_media=True, continues=None if call is None else f"{CONVERSATION}{call}"
        )

    def not_sent(self, asked: Turn, error: Exception) -> None:
        """End the call whose message could not be sent."""
        with self._lock:
            if asked not in self._asked:
                return
            self._asked.remove(asked)
        if (llm := asked.watch.operation.llm) is not None:
            llm.billable = False
        asked.watch.failed(error)

    # --- what the server sends ----------------------------------------------------------------------

    def heard(self, message: Any) -> None:
        """Take note of a message; most only say that the responses go on."""
        recorder = active()
        if recorder is None or not isinstance(message, str | bytes):
            return
        for turn in list(self._open.values()):
            operation = turn.watch.operation
            operation.last_ns = operation.recorder.clock.monotonic_ns()
        kind = kind_of(message)
        if kind is None or kind in self._HEAR:
            document = document_of(message)
            hear = self._HEAR.get(str(document.get("type")))
            if hear is not None:
                hear(self, recorder, document)

    def _configured(self, _recorder: Recorder, document: dict[str, Any]) -> None:
        session = inner(document, "session")
        self._model = word(session, "model") or self._model
        self._settings = settings_of(session)
        transcription = inner(session, "audio", "input", "transcription") or inner(session, "input_audio_transcription")
        self._transcriber = word(transcription, "model")

    def _created(self, recorder: Recorder, document: dict[str, Any]) -> None:
        name = word(inner(document, "response"), "id") or ""
        turn = self._open.get(name) or self._awaited(document) or self._unasked(recorder, document)
        if turn is None:
            return
        turn.watch.saw(as_object(document))
        with self._lock:
            self._open[name] = turn._replace(sent=self._sent)
            left = self._open.pop(next(iter(self._open))) if len(self._open) > _MOST_OPEN else None
        if left is not None:
            left.watch.closed()

    def _awaited(self, document: dict[str, Any]) -> Turn | None:
        """Return the response that was asked for and now begins; None where none of them is it."""
        with self._lock:
            found = self._in_lane(document) if not self._is_realtime else self._described(document)
            if found is not None:
                self._asked.remove(found)
            return found

    def _in_lane(self, document: dict[str, Any]) -> Turn | None:
        lane = word(document, "stream_id")
        return next((each for each in self._asked if each.lane == lane), None)

    def _described(self, document: dict[str, Any]) -> Turn | None:
        metadata = inner(document, "response").get("metadata") or None
        same = (each for each in self._asked if each.metadata == metadata)
        # Not every server gives the metadata back.
        return next(same, None) or (self._asked[0] if self._asked and metadata is None else None)

    def _unasked(self, recorder: Recorder, document: dict[str, Any]) -> Turn | None:
        """Begin a response that the server made by itself; None where it was seen, here or on another connection."""
        if self._is_known(recorder, document):
            return None
        here = get_current()
        attach(here if current() is not None else self._context)
        try:
            watch = self._begin(recorder, self._body({}) if self._is_realtime else {})
            if (llm := watch.operation.llm) is not None:
                llm.billable = True
            watch.operation.announce()
        finally:
            attach(here)
        return Turn(watch, word(document, "stream_id"))

    def _is_known(self, recorder: Recorder, document: dict[str, Any]) -> bool:
        name = word(inner(document, "response"), "id")
        return name is not None and recorder.bills.knows(self._place.server.base_url, name)

    def _done(self, recorder: Recorder, document: dict[str, Any]) -> None:
        response = inner(document, "response")
        name = word(response, "id") or ""
        with self._lock:
            turn = self._open.pop(name, None)
        if turn is None and not self._is_known(recorder, document):  # else it is told again
            turn = self._awaited(document) or self._unasked(recorder, document)  # its beginning was not told
            turn = None if turn is None else turn._replace(sent=self._sent)
        if turn is None:
            return
        turn.watch.saw(as_object(document))
        turn.watch.ended()
        llm = turn.watch.operation.llm
        if llm is not None and llm.usage is not None and response.get("conversation_id", "") is not None:
            self._length = (llm.usage.input_tokens or 0) + (llm.usage.output_tokens or 0)
            self._sent = max(0, self._sent - turn.sent)

    def _transcribed(self, recorder: Recorder, document: dict[str, Any]) -> None:
        """Write what hearing somebody's speech cost, which another model does beside the one that answers."""
        tally.seen()
        llm = llm_call(_TRANSCRIPTION, {"model": self._transcriber}, self._place.server, streamed=False)
        llm.billable = True
        here = get_current()
        attach(here if current() is not None else self._context)
        try:
            operation = Operation(recorder, Kind.LLM, llm.operation, llm=llm)
            operation.announce()
            try:
                read_response(llm, as_object(document), recorder.capture)
            finally:
                operation.finish()
        finally:
            attach(here)

    def _refused(self, _recorder: Recorder, document: dict[str, Any]) -> None:
        """End the response that an error speaks of; most errors of a realtime session speak of something else."""
        with self._lock:
            broken = None if self._is_realtime else self._broken(document)
            turn = broken or (self._at_fault(document) if self._is_realtime else self._in_lane(document))
            if turn is None:
                return
            if broken is None:
                self._asked.remove(turn)
        llm = turn.watch.operation.llm
        if broken is None and llm is not None:
            llm.billable = False  # it was not begun
        turn.watch.saw(as_object(document))
        turn.watch.ended()

    def _broken(self, document: dict[str, Any]) -> Turn | None:
        """Take out the response of a lane that had begun."""
        lane = word(document, "stream_id")
        name = next((name for name, turn in self._open.items() if turn.lane == lane), None)
        return None if name is None else self._open.pop(name)

    def _at_fault(self, document: dict[str, Any]) -> Turn | None:
        """Return the response of a realtime session that an error says was not begun."""
        error = inner(document, "error")
        event = word(error, "event_id")
        if event is not None:
            return next((each for each in self._asked if each.event == event), None)
        is_it = error.get("code") == _BUSY or str(error.get("param") or "").startswith("response")
        return self._asked[0] if self._asked and is_it else None

    # --- the end ------------------------------------------------------------------------------------

    def ended(self, end: Callable[[Watch], None]) -> None:
        """End what is open: nothing will be heard of it.

        :param end: how it ends.
        """
        with self._lock:
            left = [*self._open.values(), *self._asked]
            self._open.clear()
            self._asked.clear()
        for turn in left:
            end(turn.watch)

    #: What to do about which message.
    _HEAR: ClassVar[dict[str, Callable[["Session", Recorder, dict[str, Any]], None]]] = {
        "session.created": _configured,
        "session.updated": _configured,
        "transcription_session.created": _configured,
        "transcription_session.updated": _configured,
        "conversation.item.input_audio_transcription.completed": _transcribed,
        "response.created": _created,
        "response.done": _done,
        "response.completed": _done,
        "response.failed": _done,
        "response.incomplete": _done,
        "error": _refused,
    }
