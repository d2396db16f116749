"""Read an OpenAI response, whole or chunk by chunk, into its LLM call.

Works on the client's parsed objects and on parsed JSON alike: both have attributes.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from taskpilot_instrument._bills import Bills
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.patches._openai_content import OutputText, output_messages
from taskpilot_instrument.patches._openai_tools import as_image, assistant_tools_of, drawings_of, tools_of
from taskpilot_instrument.semconv import (
    GEN_AI_CONVERSATION_ID,
    OPERATION_CHAT,
    OPERATION_IMAGE,
    OPERATION_TRANSCRIPTION,
    OPERATION_TRANSLATION,
    Outcome,
)
from taskpilot_instrument.typing import Capture
from taskpilot_instrument.usage import (
    AUDIO_SECONDS,
    Beside,
    Fields,
    TokenUsage,
    fields_of,
    read_usage,
    seconds_of,
    usage_in,
)

Failure = tuple[Outcome, str | None]

#: Finish reasons of the Responses API in the words of the chat API, so that one search finds both.
_INCOMPLETE_REASONS: Final = {
    "max_output_tokens": "length", "max_tokens": "length", "max_completion_tokens": "length",
    "max_prompt_tokens": "length",
}  # fmt: skip
_STOP: Final = "stop"
#: What stands in place of ``stop`` where the model refused to answer: both APIs tell that beside the reason.
_REFUSAL: Final = "refusal"


#: How what runs in the background ends, by ``object``.
DONE: Final = {
    "response": frozenset({"completed", "incomplete", "failed", "cancelled"}),
    "realtime.response": frozenset({"completed", "incomplete", "failed", "cancelled"}),
    "thread.run": frozenset({"completed", "incomplete", "failed", "cancelled", "expired"}),
    "agent.session.turn": frozenset({"completed", "failed", "cancelled"}),
    "batch": frozenset({"completed", "expired", "cancelled"}),
    "eval.run": frozenset({"completed", "failed", "canceled", "cancelled"}),
}

_STOPPED_BY_LEAVING: Final = frozenset({"response", "realtime.response"})


def read_response(
    call: LLMCall, response: Any, capture: Capture | None = None, bills: Bills | None = None
) -> Failure | None:
    """Read a whole response into ``call``; return how it failed where the response itself says so.

    :param capture: turns message content into text where content is captured.
    :param bills: where the call made what it answers, and not only asked for it: notes that it was counted.
    """
    fields = fields_of(response)
    _identify(call, fields)
    call.usage = usage_in(fields)
    failure = None
    if isinstance(choices := fields.get("choices"), list):
        reasons = [_reason(choice) for choice in choices]
        call.finish_reasons = tuple([reason for reason in reasons if isinstance(reason, str)])
    elif (read := _READERS.get(fields.get("object") or call.operation)) is not None:
        failure = read(call, response, fields)
        if bills is not None and call.response_id is not None:
            _settle(call, call.response_id, fields, bills)
    if capture is not None:
        call.output_messages = output_messages(response, capture)
    return failure


def _settle(call: LLMCall, name: str, fields: Fields, bills: Bills) -> None:
    """Note whether the call that made this is billed for it, or whoever asks for it once it is done."""
    kind = fields.get("object")
    if kind not in DONE:
        return
    if call.usage is not None:
        if not bills.make(call.base_url, name) and call.streamed:
            call.usage, call.beside, call.billable = None, None, False  # it was asked for while it ran
    elif fields.get("status") not in DONE[kind]:
        bills.open(call.base_url, name, call.model)
        # A stream or socket that was left stops the work, unless that goes on without it.
        if not call.streamed or kind not in _STOPPED_BY_LEAVING or fields.get("background"):
            call.billable = False


# --- what each kind of response tells -----------------------------------------------------------


def _read_response(call: LLMCall, response: Any, fields: Fields) -> Failure | None:
    output = getattr(response, "output", None) or ()
    call.finish_reasons, failure = _status(response, output)
    call.beside = tools_of(fields, output, call.usage)
    return failure


def _read_run(call: LLMCall, run: Any, _fields: Fields) -> Failure | None:
    call.finish_reasons, failure = _status(run, ())
    call.beside = assistant_tools_of(run)
    return failure


def _read_realtime(call: LLMCall, response: Any, fields: Fields) -> Failure | None:
    """Read a response of a realtime session, which tells the reason and the error of its status in one place."""
    details = getattr(response, "status_details", None)
    error = getattr(details, "error", None)
    told = SimpleNamespace(status=fields.get("status"), incomplete_details=details, error=error)
    call.finish_reasons, failure = _status(told, getattr(response, "output", None) or ())
    if isinstance(conversation := fields.get("conversation_id"), str):
        call.request = {**call.request, GEN_AI_CONVERSATION_ID: conversation}
    return failure


def _read_images(call: LLMCall, _response: Any, fields: Fields) -> Failure | None:
    if call.usage is not None:
        call.usage = as_image(call.usage, fields.get("usage"))
    call.beside = drawings_of(fields)
    return None


def _read_audio(call: LLMCall, _response: Any, fields: Fields) -> Failure | None:
    usage = fields.get("usage")
    seconds = seconds_of(usage) if usage is not None and call.usage is None else None
    if seconds is not None:
        call.beside = Beside({AUDIO_SECONDS: seconds})
    return None


_READERS: Final[dict[Any, Callable[[LLMCall, Any, Fields], Failure | None]]] = {
    "response": _read_response,
    "realtime.response": _read_realtime,
    "thread.run": _read_run,
    "agent.session.turn": _read_run,
    OPERATION_IMAGE: _read_images,
    OPERATION_TRANSCRIPTION: _read_audio,
    OPERATION_TRANSLATION: _read_audio,
}


def _identify(call: LLMCall, fields: Fields) -> None:
    if isinstance(value := fields.get("id"), str) and value:
        call.response_id = value
    if isinstance(value := fields.get("model"), str) and value:
        call.response_model = value
    if isinstance(value := fields.get("service_tier"), str) and value:
        call.service_tier = value


def _reason(choice: Any) -> Any:
    reason = getattr(choice, "finish_reason", None)
    if reason == _STOP and getattr(getattr(choice, "message", None), "refusal", None):
        return _REFUSAL
    return reason


def _status(response: Any, output: Any) -> tuple[tuple[str, ...], Failure | None]:
    """Return finish reasons and failure of what has a status."""
    status = getattr(response, "status", None)
    if status == "completed":
        if any(getattr(item, "type", None) == "function_call" for item in output):
            return ("tool_calls",), None
        parts = (part for item in output for part in getattr(item, "content", None) or ())
        return (_REFUSAL if any(getattr(part, "type", None) == _REFUSAL for part in parts) else _STOP,), None
    if status == "incomplete":
        reason = getattr(getattr(response, "incomplete_details", None), "reason", None)
        return (_INCOMPLETE_REASONS.get(str(reason), str(reason or "incomplete")),), None
    if status in {"failed", "expired"}:
        error = getattr(response, "error", None) or getattr(response, "last_error", None)
        code = getattr(error, "code", None) or getattr(error, "type", None)
        return ("error",), (Outcome.ERROR, str(code or status))
    if status == "cancelled":
        return ("cancelled",), (Outcome.CANCELLED, None)
    return (), None


class ChunkedReader:
    """Read a stream of chunks: chat completions and legacy completions.

    :param capture: turns the text into what is kept, where content is captured.
    """

    def __init__(self, call: LLMCall, capture: Capture | None = None) -> None:
        self.complete = False
        self.failure: Failure | None = None
        self._call = call
        self._capture = capture
        self._text = OutputText() if capture is not None else None
        self._first: Any = None
        self._is_named = False
        self._usage: TokenUsage | None = None
        self._finish_reasons: list[str] = []
        #: Only here chunks have a delta, and to ask a parsed one for what it has not costs a microsecond.
        self._is_chat = call.operation == OPERATION_CHAT
        self._refused: set[int] = set()
        self._service_tier: str | None = None

    def read_chunk(self, chunk: Any) -> None:
        """Keep the usage (the last one counts), the finish reasons and who answered."""
        if not self._is_named:
            # Azure's first chunk tells of its content filter, and not who answers.
            self._is_named = bool(getattr(chunk, "model", None))
            self._first = chunk
        if getattr(chunk, "usage", None) is not None:
            # Some hosts repeat an empty usage: the last one that says something counts.
            self._usage = read_usage(chunk) or self._usage
            self._service_tier = getattr(chunk, "service_tier", None)
        for choice in getattr(chunk, "choices", None) or ():
            if self._is_chat and getattr(getattr(choice, "delta", None), "refusal", None):
                self._refused.add(getattr(choice, "index", 0))
            if (reason := getattr(choice, "finish_reason", None)) is not None:
                is_refusal = reason == _STOP and self._refused and getattr(choice, "index", 0) in self._refused
                self._finish_reasons.append(_REFUSAL if is_refusal else reason)
                self.complete = True
        if self._text is not None:
            self._text.add(chunk)

    def is_only_usage(self, chunk: Any) -> bool:
        """Tell whether a chunk brings the usage and nothing else."""
        return getattr(chunk, "usage", None) is not None and not getattr(chunk, "choices", None)

    def read_end(self) -> None:
        """Write what was kept to the call."""
        call = self._call
        if self._first is not None:
            _identify(call, fields_of(self._first))
        call.service_tier = self._service_tier or call.service_tier
        call.usage = self._usage
        call.finish_reasons = tuple(self._finish_reasons)
        if self._text is not None and self._capture is not None:
            call.output_messages = self._text.messages(self._capture)


class EventReader:
    """Read a stream of typed events: responses, images, audio, assistants' runs.

    A response comes whole inside its first and last events; the text between is not needed.

    :param bills: notes that what the stream tells of was begun, and counted.
    """

    _WITH_RESPONSE: Final = frozenset({
        "response.created", "response.queued", "response.in_progress",
        "response.completed", "response.failed", "response.incomplete", "response.done",
    })  # fmt: skip
    _LAST: Final = frozenset({
        "response.completed", "response.failed", "response.incomplete", "response.done",
        "image_generation.completed", "image_edit.completed", "transcript.text.done", "speech.audio.done",
    })  # fmt: skip

    def __init__(self, call: LLMCall, capture: Capture | None, bills: Bills) -> None:
        self.complete = False
        self.failure: Failure | None = None
        self._call = call
        self._capture = capture
        self._bills = bills
        self._response: Any = None

    def read_chunk(self, event: Any) -> None:
        """Keep the latest response that an event carried."""
        kind = getattr(event, "type", None)
        if kind in self._WITH_RESPONSE:
            self._keep(event.response)
        elif kind == "error":
            # On a socket it stands in an object of its own.
            error = getattr(event, "error", None) or event
            self.failure = (Outcome.ERROR, str(getattr(error, "code", None) or getattr(error, "type", None) or kind))
        elif kind is None and (run := run_in(event)) is not None:
            self._keep(run)
            self.complete = run.status in DONE["thread.run"]
        if kind in self._LAST:
            self.complete = True
            if self._response is None:
                self._response = event

    def _keep(self, response: Any) -> None:
        if self._response is None and isinstance(name := getattr(response, "id", None), str):
            self._bills.open(self._call.base_url, name, self._call.model)
        self._response = response

    def is_only_usage(self, _chunk: Any) -> bool:
        """Return False: what is read here comes whole."""
        return False

    def read_end(self) -> None:
        """Read the latest response into the call."""
        if self._response is not None:
            failure = read_response(self._call, self._response, self._capture, self._bills)
            self.failure = self.failure or failure


def run_in(event: Any) -> Any:
    """Return the assistant's run that an event carries, or is; None where it tells of something else."""
    data = getattr(event, "data", event)
    return data if getattr(data, "object", None) == "thread.run" else None


class WholeReader:
    """Read a JSON document that the caller takes as bytes: it is one chunk, and the last one."""

    def __init__(self, call: LLMCall, capture: Capture | None, bills: Bills) -> None:
        self.complete = False
        self.failure: Failure | None = None
        self._call = call
        self._capture = capture
        self._bills = bills

    def read_chunk(self, document: Any) -> None:
        """Read the document into the call."""
        self.failure = read_response(self._call, document, self._capture, self._bills)
        self.complete = True

    def is_only_usage(self, _chunk: Any) -> bool:
        """Return False: what is read here comes whole."""
        return False

    def read_end(self) -> None:
        """Do nothing: the document was read when it came."""
