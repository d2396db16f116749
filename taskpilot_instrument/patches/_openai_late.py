"""Count what was started earlier, once, when its result is first seen: background responses, batches, runs.

A poll makes no span: whether there is anything to count is known only afterwards, and the span is made then, with the
start time of the call that asked. What another process had started is counted by each process that asks for it; only
a response says whether it ran in the background, so that one which was billed elsewhere when it was made is not.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, cast

from opentelemetry.context import attach, get_current

from taskpilot_instrument._collector import is_collecting
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._recorder import Recorder
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.health import tally
from taskpilot_instrument.patches._openai_call import Call
from taskpilot_instrument.patches._openai_request import Server, llm_call
from taskpilot_instrument.patches._openai_response import DONE, read_response
from taskpilot_instrument.patches._openai_surfaces import Surface
from taskpilot_instrument.semconv import (
    OPERATION_AGENT,
    OPERATION_BATCH,
    OPERATION_CHAT,
    OPERATION_EVALUATION,
    Kind,
    Outcome,
)
from taskpilot_instrument.typing import ChunkReader, Clock
from taskpilot_instrument.usage import Fields, TokenUsage, fields_of, usage_from

_RESPONSE: Final = "response"
_BATCH: Final = "batch"
_EVALUATION: Final = "eval.run"
#: What the work was, by ``object``.
_SURFACES: Final = {
    _RESPONSE: Surface(OPERATION_CHAT),
    _BATCH: Surface(OPERATION_BATCH),
    _EVALUATION: Surface(OPERATION_EVALUATION),
    "thread.run": Surface(OPERATION_AGENT),
    "agent.session.turn": Surface(OPERATION_AGENT),
}
_LAST: Final = frozenset({"response.completed", "response.failed", "response.incomplete"})
_TURN: Final = "agent.session.turn."

#: Take a document, and its usage where that stands beside it.
Count = Callable[[Any, Any], None]


class Retrieval(Call):
    """A request that may bring the usage of something that was started earlier."""

    __slots__ = ("_context", "_server", "_started_at_ns", "_started_ns")

    def __init__(
        self,
        recorder: Recorder,
        server: Server,
        surface: Surface,
        options: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        llm = llm_call(surface, {}, server, streamed=bool(kwargs.get("stream")))
        # Not an operation, but all of it that is asked of one whose result is only looked at.
        operation = cast("Operation", _Silent(recorder, llm))
        super().__init__(operation, llm, surface, options, args, kwargs)
        self._server = server
        self._context = get_current()
        self._started_at_ns, self._started_ns = recorder.clock.epoch_ns(), recorder.clock.monotonic_ns()

    def begin(self, *, is_async: bool) -> None:
        """Make a stream show its events."""
        if self.llm.streamed:
            self._watch_stream(is_async=is_async)

    def failed(self, error: BaseException) -> None:
        """Do nothing: to ask in vain costs nothing."""

    def returned(self, result: Any) -> None:
        """Count what the result tells, or hook the stream that will tell it."""
        try:
            _, document = self._opened(result)
            if document is not None:
                self._count(document, None)
        except Exception as error:
            swallow("usage", error)

    def _reader(self, *, is_events: bool) -> ChunkReader:  # noqa: ARG002 - a whole document is one event
        return _LateReader(self._count)

    def _count(self, document: Any, given: Any) -> None:
        """Count a document where it is done, tells its usage, and was not counted before."""
        fields = fields_of(document)
        kind, name = fields.get("object"), fields.get("id")
        if (
            kind not in _SURFACES
            or fields.get("status") not in DONE[kind]
            or not isinstance(name, str)
            or is_collecting()
        ):
            return
        for part, model, usage in _usages(fields, given):
            if not (usage.input_tokens or usage.output_tokens):
                continue
            # Whoever made a response in the foreground was told its usage, in whichever process that was.
            only_open = kind == _RESPONSE and not fields.get("background")
            due, asked = self.operation.recorder.bills.fetch(self._server.base_url, name + part, only_open=only_open)
            if due:
                self._write(document, _SURFACES[kind], asked or model, model, usage)

    def _write(self, document: Any, surface: Surface, asked: str | None, model: str | None, usage: TokenUsage) -> None:
        """Write the call whose result this is."""
        recorder = self.operation.recorder
        llm = llm_call(surface, {"model": asked}, self._server, streamed=False)
        llm.billable = llm.is_fetched = True
        tally.seen()
        operation = self._operation(recorder, llm)
        outcome: Outcome | None = None
        error_type: str | None = None
        try:
            operation.announce()
            outcome, error_type = read_response(llm, document, recorder.capture) or (None, None)
            llm.usage, llm.response_model = usage, model
            if surface.operation == OPERATION_BATCH:
                llm.service_tier = _BATCH  # half the price
        finally:
            operation.finish(outcome=outcome, error_type=error_type, end_ns=recorder.clock.monotonic_ns())

    def _operation(self, recorder: Recorder, llm: LLMCall) -> Operation:
        """Return an operation that began where and when this request did."""
        began = Clock(lambda: self._started_ns, lambda: self._started_at_ns)
        here = get_current()
        attach(self._context)
        try:
            return Operation(replace(recorder, clock=began), Kind.LLM, llm.operation, llm=llm)
        finally:
            attach(here)


def _usages(fields: Fields, given: Any) -> Iterator[tuple[str, str | None, TokenUsage]]:
    """Yield what there is to pay for: a name within the document, the model, its tokens."""
    per_model = fields.get("per_model_usage")
    if isinstance(per_model, list):
        for each in per_model:
            inner = fields_of(each)
            model = inner.get("model_name") or inner.get("run_model_name")
            usage = usage_from(each)
            if usage is not None and isinstance(model, str):
                yield f" {model}", model, usage
        return
    found = fields.get("usage") or given
    usage = usage_from(found) if found else None
    model = fields.get("model")
    if usage is not None:
        yield "", model if isinstance(model, str) else None, usage


class _LateReader:
    """Look in a stream for what is done, and count it at once: nothing is left to do when the stream ends."""

    def __init__(self, count: Count) -> None:
        self.complete = False
        self.failure: tuple[Outcome, str | None] | None = None
        self._count = count

    def read_chunk(self, event: Any) -> None:
        """Count what an event carries, or is."""
        kind = getattr(event, "type", None)
        if kind is None:
            self._count(getattr(event, "data", event), None)
        elif kind in _LAST:
            self._count(event.response, None)
        elif kind.startswith(_TURN) and (turn := getattr(event, "turn", None)) is not None:
            self._count(turn, getattr(event, "usage", None))

    def is_only_usage(self, _chunk: Any) -> bool:
        """Return False: nobody asks for usage here."""
        return False

    def read_end(self) -> None:
        """Do nothing."""


class _Silent:
    """Stand for an operation while a stream is watched that may have nothing to count."""

    __slots__ = ("is_finished", "last_ns", "llm", "recorder")

    def __init__(self, recorder: Recorder, llm: LLMCall) -> None:
        self.recorder = recorder
        self.llm = llm
        self.last_ns: int | None = None
        self.is_finished = False

    def leave(self) -> None:
        """Do nothing: it never was the current one."""

    def finish(self, *_: Any, **__: Any) -> None:
        """Note that the stream has ended."""
        self.is_finished = True
