"""OpenAI Agents SDK: traces, agents, handoffs and tools become operations, and tripwires count as guardrails.

    pip install taskpilot-instrument[openai-agents]

    instrument(frameworks=["openai_agents"])

sees every run, also where the SDK's own tracing is switched off, and leaves the SDK's processors and exporters as they
are set. Or add the processor yourself:

    from agents import add_trace_processor
    from taskpilot_instrument.integrations.openai_agents import TaskpilotProcessor

    add_trace_processor(TaskpilotProcessor())

A trace is one workflow run; with a handoff, the next agent's run follows in the same one. LLM calls are seen by the
provider's own client. The SDK lets nobody stand between it and a tool, so policies are asked about tools that are
decorated with ``@observed_tool``.
"""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskpilot_instrument import _forks
from taskpilot_instrument._framework_runs import FrameworkRun, begin, begin_tool
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, current
from taskpilot_instrument._recorder import active
from taskpilot_instrument._records import Checked, Event
from taskpilot_instrument.integrations._patches import Switch
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.semconv import (
    CATEGORY_DECISION,
    DIRECTION_INPUT,
    DIRECTION_OUTPUT,
    E_GUARDRAIL_BLOCKED,
    L_DIRECTION,
    Kind,
    Outcome,
)

if TYPE_CHECKING:
    from agents import TracingProcessor as _Processor
else:
    _Processor = object

#: Runs that are open at the same time; beyond it the oldest, which must have been forgotten, is let go.
_MOST_OPEN: Final = 4096
#: What the SDK calls a trace that was given no name.
_NAMELESS: Final = "Agent workflow"
#: The type of a failure of which the SDK tells only a sentence.
_OTHER: Final = "_OTHER"
#: How the SDK's exceptions are called with which a guardrail ends a run, and what it says of it on a span.
_TRIPWIRE, _TRIPPED = "TripwireTriggered", "Guardrail tripwire triggered"


class _Open(NamedTuple):
    """A run that is going on.

    :param made_by: the SDK's span or trace; held so that no other gets its id.
    :param run: None of a guardrail, which is no run.
    :param handled: the exception that the calling code was handling when it began, which is not the run's own.
    """

    made_by: Any
    run: FrameworkRun | None
    handled: BaseException | None


_lock = _forks.lock()
_open: "OrderedDict[int, _Open]" = OrderedDict()


# --- one line -------------------------------------------------------------------------------------


def patches() -> list[Switch]:
    """Return what observes every run, before any processor of the application does.

    :raises ImportError: where the SDK is not installed.
    """
    from agents.tracing.provider import SynchronousMultiTracingProcessor as Everyone
    from agents.tracing.spans import NoOpSpan
    from agents.tracing.traces import NoOpTrace

    found: list[Switch] = [
        Patch(Everyone, "on_trace_start", _before(_trace_started)),
        Patch(Everyone, "on_trace_end", _before(_trace_ended)),
        Patch(Everyone, "on_span_start", _before(_span_started)),
        Patch(Everyone, "on_span_end", _before(_span_ended)),
        # What the SDK makes where its tracing is off.
        Patch(NoOpTrace, "start", _beside(_trace_started), optional=True),
        Patch(NoOpTrace, "finish", _beside(_trace_ended), optional=True),
        Patch(NoOpSpan, "start", _beside(_span_started), optional=True),
        Patch(NoOpSpan, "finish", _beside(_span_ended), optional=True),
    ]
    try:
        from agents.tracing.traces import ReattachedTrace
    except ImportError:  # younger than the rest
        return found
    # Of a run that goes on after it waited for a person: processors have heard of its trace, and are not told again.
    return [
        *found,
        Patch(ReattachedTrace, "start", _beside(_trace_started), optional=True),
        Patch(ReattachedTrace, "finish", _beside(_trace_ended), optional=True),
    ]


def _before(hear: Callable[[Any], None]) -> Callable[..., Any]:
    def call(wrapped: Callable[..., Any], _everyone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if active() is not None and args:
            hear(args[0])
        return wrapped(*args, **kwargs)

    return call


def _beside(hear: Callable[[Any], None]) -> Callable[..., Any]:
    def call(wrapped: Callable[..., Any], made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if active() is not None:
            hear(made)
        return wrapped(*args, **kwargs)

    return call


class TaskpilotProcessor(_Processor):  # type: ignore[misc] # the SDK need not be installed
    """Hears of traces and spans from the SDK; one is enough, and more than one changes nothing."""

    def on_trace_start(self, trace: Any) -> None:
        """Begin a workflow run."""
        _trace_started(trace)

    def on_trace_end(self, trace: Any) -> None:
        """End it."""
        _trace_ended(trace)

    def on_span_start(self, span: Any) -> None:
        """Begin an agent run or a tool call."""
        _span_started(span)

    def on_span_end(self, span: Any) -> None:
        """End it, or count a tripwire."""
        _span_ended(span)

    def shutdown(self) -> None:
        """Do nothing: what is to be sent belongs to ``instrument()``."""

    def force_flush(self) -> None:
        """Do nothing, as above."""


# --- what the SDK tells ---------------------------------------------------------------------------


def _trace_started(trace: Any) -> None:
    try:
        if id(trace) in _open:  # another processor of ours has heard of it
            return
        name = trace.name
        _enter(trace, begin(Kind.WORKFLOW, _NAMELESS if name == "no-op" else str(name)))
    except Exception as error:
        swallow("start", error)


def _trace_ended(trace: Any) -> None:
    try:
        found = _leave(trace)
        if found is not None and found.run is not None:
            _finish(found.run, found.handled, None)
    except Exception as error:
        swallow("finish", error)


def _span_started(span: Any) -> None:
    try:
        data = span.span_data
        if id(span) in _open:
            return
        if data.type == "agent":
            run = begin(Kind.AGENT, str(data.name))
            above = run.parent if run is not None else None
            if above is not None and above.verdict is not None and type(above) is FrameworkRun:
                above.verdict = above.reason = None  # the run goes on with another agent
            _enter(span, run)
        elif data.type == "function":
            _enter(span, begin_tool(str(data.name), {}))
        elif data.type == "guardrail":
            _remember(span, None)
    except Exception as error:
        swallow("start", error)


def _span_ended(span: Any) -> None:
    try:
        found = _leave(span)
        if found is None:
            return
        data = span.span_data
        if found.run is None:
            _guarded(data)
            return
        if data.type == "function":
            _note_content(found.run, data)
        _finish(found.run, found.handled, span.error)
    except Exception as error:
        swallow("finish", error)


def _enter(made_by: Any, run: FrameworkRun | None) -> None:
    """Make a run current until the SDK tells of its end, in the same task or thread."""
    if run is not None:
        _remember(made_by, run)
        run.enter()


def _remember(made_by: Any, run: FrameworkRun | None) -> None:
    oldest = None
    with _lock:
        _open[id(made_by)] = _Open(made_by, run, sys.exception())
        if len(_open) > _MOST_OPEN:
            _, oldest = _open.popitem(last=False)
    if oldest is not None and oldest.run is not None:
        oldest.run.finish(outcome=Outcome.CANCELLED)


def _leave(made_by: Any) -> _Open | None:
    with _lock:
        found = _open.pop(id(made_by), None)
    if found is not None and found.run is not None:
        found.run.leave()
    return found


def _finish(run: FrameworkRun, handled: BaseException | None, told: Any) -> None:
    """End a run by the exception that passes through the SDK's block, else by what the SDK noted on its span."""
    error = sys.exception()
    if error is handled:
        error = run.error
    if error is not None and type(error).__name__.endswith(_TRIPWIRE):
        if run.kind is Kind.TOOL:
            _tool_tripped(run, error)
        run.finish(error, outcome=Outcome.BLOCKED)
    elif error is not None or not told:
        run.finish(error)
    elif told.get("message") == _TRIPPED:
        if type(run.parent) is FrameworkRun and run.parent.kind is Kind.WORKFLOW:
            run.parent.verdict, run.parent.reason = Outcome.BLOCKED, _TRIPPED
        run.reason = _TRIPPED
        run.finish(outcome=Outcome.BLOCKED)
    else:
        run.finish(outcome=Outcome.ERROR, error_type=_OTHER)


def _note_content(run: FrameworkRun, data: Any) -> None:
    capture = run.recorder.capture
    if capture is not None:
        run.input_text = capture(data.input) if data.input is not None else None
        run.output_text = capture(data.output) if data.output is not None else None


# --- guardrails -----------------------------------------------------------------------------------


def _guarded(data: Any) -> None:
    """Note that a guardrail was asked, and count it where it tripped."""
    operation = current()
    if operation is None or active() is None:
        return
    if data.triggered:
        _note(operation, str(data.name), _direction(operation))
    else:
        operation.note_check(Checked.YES)


def _direction(operation: Operation) -> str:
    """Tell an input guardrail from an output guardrail: each runs in a task of its own, which says which it is."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    code = getattr(task.get_coro() if task is not None else None, "cr_code", None)
    name = getattr(code, "co_name", "")
    if "output" in name:
        return DIRECTION_OUTPUT
    answered = operation.totals is not None and operation.totals.measured > 0
    return DIRECTION_OUTPUT if answered and "input" not in name else DIRECTION_INPUT


def _tool_tripped(run: FrameworkRun, error: Any) -> None:
    name = error.guardrail.get_name() if hasattr(error.guardrail, "get_name") else type(error.guardrail).__name__
    _note(run, str(name), DIRECTION_OUTPUT if "Output" in type(error).__name__ else DIRECTION_INPUT)


def _note(operation: Operation, guardrail: str, direction: str) -> None:
    operation.note_check(Checked.YES)
    whose = operation.agent_name or operation.workflow_name
    operation.recorder.note(
        Event(
            E_GUARDRAIL_BLOCKED, CATEGORY_DECISION, "WARNING",
            f"Guardrail {guardrail} blocked the {direction} of {whose}", operation, guardrail, "block", _TRIPPED,
            {L_DIRECTION: direction},
        )
    )  # fmt: skip
