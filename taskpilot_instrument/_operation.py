"""One operation: a workflow run, agent run, LLM call or tool call.

It starts, is current while it runs, and finishes exactly once into a :class:`Finished` record that
every sink receives. The current operation lives in the OpenTelemetry context beside the current
span, so whatever carries one carries the other.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import context as otel_context
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, set_span_in_context

from taskpilot_instrument import _collector
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._recorder import Recorder
from taskpilot_instrument._records import Checked, Finished, LLMCall, was_sent
from taskpilot_instrument._totals import Totals
from taskpilot_instrument.context import Ids, new_ids, remote_run
from taskpilot_instrument.errors import BlockedError
from taskpilot_instrument.pricing import Price
from taskpilot_instrument.semconv import COST_UNKNOWN, Kind, Outcome

_KEY: Final = otel_context.create_key("taskpilot-operation")
_NO_CONTEXT: Final = Context()
#: A context that nobody else has seen yet may still be written to.
_set: Final = dict.__setitem__
#: The key under which OpenTelemetry keeps the current span, found out rather than known.
_SPAN_KEY: Final = next(iter(set_span_in_context(INVALID_SPAN, Context())))


def current() -> "Operation | None":
    """Return the operation that the calling code runs in."""
    return get_current().get(_KEY)  # type: ignore[return-value] # the key is ours alone


class Operation:
    """One run or call between its start and its only finish.

    As a context manager it is current inside the block and finishes when the block is left, whichever
    way. ``enter()`` and ``leave()`` make it current without finishing it, around each step of a generator.

    :param subject: the object whose run this is, so that ``run()`` → ``execute()`` is one span.
    :param attributes: further span attributes that are known at the start.
    """

    __slots__ = (
        "__weakref__", "_finished", "_once", "_previous", "agent_name", "attributes", "body", "context", "handed_over",
        "ids", "input_length", "input_text", "kind", "last_ns", "llm", "name", "opened_workflow", "output_length",
        "output_text", "parent", "reason", "recorder", "span", "started_at_ns", "started_ns", "subject", "totals",
        "verdict", "workflow_name",
    )  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        kind: Kind,
        name: str,
        *,
        subject: object = None,
        attributes: Mapping[str, Any] | None = None,
        llm: LLMCall | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> None:
        outer = get_current()
        parent: Operation | None = outer.get(_KEY)  # type: ignore[assignment] # the key is ours alone
        self.opened_workflow: Operation | None = None
        # Asked only of the outermost: what is beneath it has its parent.
        remote = remote_run(outer) if parent is None else None
        around = parent.workflow_name if parent is not None else remote.workflow if remote is not None else None
        if kind is Kind.AGENT and around is None:
            # Without a workflow around it an agent opens one, so that the decorators alone give golden signals.
            parent = self.opened_workflow = Operation(recorder, Kind.WORKFLOW, name)
            outer, around = parent.context, name
        self.recorder = recorder
        self.kind = kind
        self.name = name
        self.parent = parent
        self.subject = subject
        self.attributes = attributes
        self.llm = llm
        self.ids: Ids = new_ids(
            parent.ids if parent is not None else remote.ids if remote is not None else None,
            request_id=request_id, session_id=session_id, user_id=user_id,
        )  # fmt: skip
        self.workflow_name: str | None = around
        self.agent_name: str | None = parent.agent_name if parent is not None else None
        self.totals: Totals | None = None
        if kind is Kind.WORKFLOW:
            self.workflow_name, self.totals = name, Totals()
        elif kind is Kind.AGENT:
            self.agent_name, self.totals = name, Totals()
        self.verdict: Outcome | None = None
        self.reason: str | None = None
        self.input_length: int | None = None
        self.output_length: int | None = None
        self.input_text: str | None = None
        self.output_text: str | None = None
        #: Monotonic time of the latest chunk or item: the end, where the consumer goes away.
        self.last_ns: int | None = None
        #: True where the result still runs (a stream, a coroutine) and will finish the operation itself.
        self.handed_over = False
        #: What to run in place of the decorated callable, where policies or guardrails are to be asked.
        self.body: Callable[..., Any] | None = None
        self._previous: Context | None = None
        self._finished = False
        self._once = threading.Lock()
        if llm is not None:
            for run in self.runs_around():
                run.begin()
        try:
            self.started_at_ns = recorder.clock.epoch_ns()
            self.started_ns = recorder.clock.monotonic_ns()
            self.span = self._open_span(outer)
        except BaseException:
            if self.opened_workflow is not None:
                self.opened_workflow.span.end()  # nobody else would
            raise
        # One copy of the context for both keys, where set_value() would make two for each. Without a span of our own
        # the one around stays current.
        self.context: Context = Context(outer)
        _set(self.context, _KEY, self)
        if self.span is not INVALID_SPAN:
            _set(self.context, _SPAN_KEY, self.span)

    def _open_span(self, outer: Context) -> Span:
        try:
            return self.recorder.spans.open_span(self, outer)
        except Exception as error:
            swallow("span", error)
            return INVALID_SPAN

    def announce(self) -> None:
        """Tell the sinks that the operation began; its input is noted by now."""
        try:
            if self.opened_workflow is not None:
                self.opened_workflow.announce()
            for sink in self.recorder.starters:
                try:
                    sink.started(self)
                except Exception as error:
                    swallow(sink.where, error)
        except BaseException as order:
            self.finish(order)  # whoever started it will never hold it
            raise

    def admit(self) -> None:
        """Ask every gate whether the call may go.

        :raises BlockedError: where one of them refuses.
        """
        for gate in self.recorder.gates:
            try:
                gate.admit(self)
            except BlockedError:
                raise
            except Exception as error:
                swallow(gate.where, error)

    def note_check(self, checked: Checked) -> None:
        """Note on this run, and every run around it, that a policy or guardrail was asked."""
        run: Operation | None = self
        while run is not None:
            if run.totals is not None:
                run.totals.note_check(checked)
            run = run.parent

    # --- being current --------------------------------------------------------------------------

    def enter(self) -> None:
        """Make this the current operation."""
        if _collector.thread and _collector.thread == get_ident():
            return  # Python 3.11 crashes where the collector interrupted the setting of a context variable
        self._previous = get_current()
        attach(self.context)

    def leave(self) -> None:
        """Put back what was current before, if this operation still is current here.

        A token's ``detach`` complains from another task; putting the previous context back does not.
        """
        if (
            self._previous is not None
            and get_current().get(_KEY) is self
            and not (_collector.thread and _collector.thread == get_ident())  # as in enter()
        ):
            attach(self._previous)
        self._previous = None

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()
        if exc is not None or not self.handed_over:
            self.finish(exc)

    # --- finishing ------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """True once the record went to the sinks."""
        return self._finished

    def finish(
        self,
        error: BaseException | None = None,
        *,
        outcome: Outcome | None = None,
        error_type: str | None = None,
        end_ns: int | None = None,
    ) -> None:
        """Finish the operation; only the first call counts, in whichever thread it is made.

        What the garbage collector finishes is noted down, and reaches the sinks before the next operation does.

        :param error: what ended it; decides the outcome where none is given.
        :param outcome: how it ended, where the caller knows better than the exception tells.
        :param error_type: ``error.type`` for a failure that is no exception.
        :param end_ns: monotonic nanoseconds of the end, where that lies in the past.
        """
        if _collector.thread and _collector.thread == get_ident():
            # Not finish() once more, which would look for orphans again.
            _collector.orphans.append(
                partial(self._conclude, None, outcome or self._judged(error), None, end_ns or self._now())
            )
            return
        if _collector.orphans:  # first: this may be one of them, or have one beneath it
            _collector.finish_orphans()
        self._conclude(error, outcome, error_type, end_ns)

    def _now(self) -> int | None:
        try:
            return self.recorder.clock.monotonic_ns()
        except Exception:  # nothing can be counted or logged here
            return None

    def _conclude(
        self, error: BaseException | None, outcome: Outcome | None, error_type: str | None, end_ns: int | None
    ) -> None:
        if not self._once.acquire(False):  # noqa: FBT003 - as a keyword it takes twice as long
            return
        self._finished = True
        if self.recorder.home.is_left:
            return  # it began in the parent, which will tell of its end
        try:
            self._publish(self._record(error, outcome, error_type, end_ns))
        except Exception as problem:
            swallow("finish", problem)
        finally:
            # Nothing stays open, even where our own code fails.
            if self.span.is_recording():
                self._end_span()
            opened = self.opened_workflow
            if opened is not None:
                opened.verdict, opened.reason = opened.verdict or self.verdict, opened.reason or self.reason
                opened._conclude(error, outcome, error_type, end_ns)  # noqa: SLF001 - one of us
        # The context holds the operation and the operation its context: without the knot it is freed at once.
        self.context = _NO_CONTEXT
        # What runs on beneath it (a stream) must not keep the application's object alive, which may hold the stream.
        self.subject = None

    def _end_span(self) -> None:
        try:
            self.span.end()
        except Exception as problem:
            swallow("span", problem)

    def _publish(self, record: Finished) -> None:
        for sink in self.recorder.sinks:
            try:
                sink.finished(record)
            except Exception as problem:
                swallow(sink.where, problem)

    def _record(
        self,
        error: BaseException | None,
        outcome: Outcome | None,
        error_type: str | None,
        end_ns: int | None,
    ) -> Finished:
        if end_ns is None:
            end_ns = self.recorder.clock.monotonic_ns()
        if outcome is None:
            outcome = self._judged(error)
        if outcome is Outcome.ABANDONED and self.llm is None:
            outcome = Outcome.CANCELLED  # only a call's stream can be abandoned: a run was left by its consumer
        if error is not None and error_type is None:
            error_type = type(error).__qualname__
        usage, cost, cost_source, model, first_chunk = None, None, None, None, None
        llm, totals = self.llm, self.totals
        if llm is not None:
            usage, model = llm.usage, llm.model or llm.response_model
            cost, cost_source = self._bill(llm, outcome)
            if llm.first_chunk_ns is not None:
                first_chunk = llm.first_chunk_ns - self.started_ns
        elif totals is not None:
            usage, model = totals.known_usage(), totals.model
            if self.kind is Kind.AGENT:
                for run in self.runs_around():
                    run.agent = self.name
            cost, cost_source = totals.known_cost()
        return Finished(
            self.kind, self.name, outcome, self.span, self.ids, self.attributes, self.workflow_name, self.agent_name,
            model, self.started_at_ns, max(0, end_ns - self.started_ns), usage, cost, cost_source, error, error_type,
            self.reason, llm, self.input_length, self.output_length, self.input_text, self.output_text,
            first_chunk, totals.checked if totals is not None else Checked.NO, self,
        )  # fmt: skip

    @property
    def outermost(self) -> "Operation":
        """The workflow or agent run that has no other around it, in this process."""
        above = self
        while above.parent is not None:
            above = above.parent
        return above

    def runs_around(self) -> Iterator[Totals]:
        """Yield the totals of every run that this is part of, innermost first."""
        above = self.parent
        while above is not None:
            if above.totals is not None:
                yield above.totals
            above = above.parent

    def _judged(self, error: BaseException | None) -> Outcome:
        """Return the verdict that the run was given, unless something worse happened after it."""
        raised = outcome_of(error)
        if self.verdict is None or (self.verdict is Outcome.BLOCKED and raised is Outcome.ERROR):
            return raised
        return self.verdict

    def _bill(self, call: LLMCall, outcome: Outcome) -> tuple[Decimal | None, str | None]:
        """Price the call and add it to every run around it."""
        price: Price | None = None
        if call.usage is not None or (call.beside is not None and call.billable):
            try:
                price = self.recorder.prices.price_call(call)
            except Exception as error:
                swallow("price", error)
        sent = was_sent(outcome)
        for run in self.runs_around():
            run.add(call, price, sent=sent)
        if price is not None:
            return price
        return None, COST_UNKNOWN if call.billable or call.usage is not None else None


def outcome_of(error: BaseException | None) -> Outcome:
    """Tell the outcome from what was raised.

    Every exception outside ``Exception`` is somebody's order to stop (cancellation, GeneratorExit,
    KeyboardInterrupt), not a failure of the operation.
    """
    if error is None:
        return Outcome.SUCCESS
    if isinstance(error, BlockedError):
        return Outcome.BLOCKED
    return Outcome.ERROR if isinstance(error, Exception) else Outcome.CANCELLED


# --- forks ----------------------------------------------------------------------------------------


def leave_home() -> None:
    """Go on in a forked process: what runs here runs within the operation around, which is the parent's to end."""
    _collector.after_fork()
    above = current()
    while above is not None:
        # Another thread may have held their locks, and their spans are the parent's to write to.
        above.span = NonRecordingSpan(above.span.get_span_context())
        if above.totals is not None:
            above.totals.after_fork()
        above = above.parent


def abandon(operation: Operation) -> None:
    """Finish an operation whose stream or generator was collected, at the time of its last item."""
    if not operation.is_finished:
        operation.finish(outcome=Outcome.ABANDONED, end_ns=operation.last_ns)
