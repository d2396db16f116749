"""Operations that an agent framework begins: its signals that are no failure, and tools that are decorated as well."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, ParamSpec

from taskpilot_instrument._callables import deliver
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, current
from taskpilot_instrument._recorder import Recorder, active
from taskpilot_instrument.errors import BlockedError
from taskpilot_instrument.semconv import GEN_AI_TOOL_CALL_ID, GEN_AI_TOOL_DESCRIPTION, GEN_AI_TOOL_TYPE, Kind, Outcome
from taskpilot_instrument.typing import Capture

_P = ParamSpec("_P")

_DESCRIPTION_LIMIT: Final = 1024
#: How far back the cause of an error is followed.
_DEEPEST_CAUSE: Final = 16
#: How many wrappers around a function are looked beneath.
_MOST_LAYERS: Final = 16

#: Not empty once a framework has made a tool call in this process: until then decorated tools need not ask.
IN_USE: Final[set[Kind]] = set()

#: Exceptions with which a framework steers itself, such as to wait for a person: nothing has failed.
Signals = tuple[type[BaseException], ...]


class FrameworkRun(Operation):
    """A workflow, agent or tool run that a framework makes.

    :param signals: exceptions that end it without being a failure.
    """

    __slots__ = ("asked", "error", "fn", "joined", "signals")

    def __init__(
        self,
        recorder: Recorder,
        kind: Kind,
        name: str,
        *,
        subject: object = None,
        attributes: Mapping[str, Any] | None = None,
        signals: Signals = (),
    ) -> None:
        super().__init__(recorder, kind, name, subject=subject, attributes=attributes)
        self.signals = signals
        #: The function beneath a tool call, where the framework tells which it is.
        self.fn: Callable[..., Any] | None = None
        #: True once a decorated function took this call for its own.
        self.joined = False
        #: True where policies were asked about the call by whoever opened it.
        self.asked = False
        #: What the tool raised, where the framework keeps it from us.
        self.error: BaseException | None = None

    def finish(
        self,
        error: BaseException | None = None,
        *,
        outcome: Outcome | None = None,
        error_type: str | None = None,
        end_ns: int | None = None,
    ) -> None:
        """Finish the run; a signal is no failure, and what was blocked on purpose is ``blocked`` whoever wraps it."""
        if error is not None and outcome is None:
            if isinstance(error, self.signals):
                error, outcome = None, Outcome.SUCCESS
            elif was_blocked(error):
                outcome = Outcome.BLOCKED
        self.fn = None
        super().finish(error, outcome=outcome, error_type=error_type, end_ns=end_ns)


def was_blocked(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is a refusal on purpose: frameworks wrap what they let through."""
    seen: BaseException | None = error
    for _ in range(_DEEPEST_CAUSE):
        if seen is None or isinstance(seen, BlockedError):
            return seen is not None
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


# --- beginning ------------------------------------------------------------------------------------


def guarded(make: "Callable[_P, FrameworkRun | None]") -> "Callable[_P, FrameworkRun | None]":
    """Return what begins a run as ``make`` does, and None where nothing is observed, or our own code fails."""

    @functools.wraps(make)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> FrameworkRun | None:
        if active() is None:
            return None
        try:
            return make(*args, **kwargs)
        except Exception as error:
            swallow("start", error)
            return None

    return call


def is_running(kind: Kind, subject: object) -> bool:
    """Tell whether the calling code already runs in this run of ``subject``, with no agent or tool in between."""
    around = current()
    while around is not None and around.kind is not Kind.TOOL and around.kind is not Kind.AGENT:
        around = around.parent
    return around is not None and around.kind is kind and around.subject is subject and not around.is_finished


@guarded
def begin(
    kind: Kind,
    name: str,
    *,
    subject: object = None,
    given: Callable[[], Any] | None = None,
    said: Callable[[Any], Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    signals: Signals = (),
) -> FrameworkRun | None:
    """Begin a run; None where nothing is observed, or it is observed already.

    A workflow within a workflow is a part of it: one task is one run in the golden signals.

    :param subject: the framework's object whose run it is.
    :param given: returns what it is given, for content capture; called only where content is captured.
    :param said: returns what a result of the framework's says, likewise.
    """
    recorder, around = active(), current()
    if recorder is None or (kind is Kind.WORKFLOW and around is not None and around.workflow_name is not None):
        return None
    if subject is not None and is_running(kind, subject):
        return None
    run = FrameworkRun(recorder, kind, name, subject=subject, attributes=attributes, signals=signals)
    capture = recorder.capture
    if capture is not None:
        if given is not None:
            run.input_text = _text(capture, given)
        if said is not None:
            run.recorder = replace(recorder, capture=lambda result: capture(said(result)))
    run.announce()
    return run


@guarded
def begin_tool(
    name: str,
    arguments: Mapping[str, Any],
    *,
    subject: object = None,
    fn: Callable[..., Any] | None = None,
    description: str | None = None,
    call_id: str | None = None,
    said: Callable[[Any], Any] | None = None,
    signals: Signals = (),
) -> FrameworkRun | None:
    """Begin a tool call; as :func:`begin`.

    :param fn: the function beneath it, which may be decorated: then it is this very call.
    """
    attributes: dict[str, Any] = {GEN_AI_TOOL_TYPE: "function"}
    if description:
        attributes[GEN_AI_TOOL_DESCRIPTION] = str(description).partition("\n\n")[0][:_DESCRIPTION_LIMIT]
    if call_id:
        attributes[GEN_AI_TOOL_CALL_ID] = str(call_id)
    run = begin(
        Kind.TOOL, name, subject=subject, given=lambda: dict(arguments), said=said, attributes=attributes,
        signals=signals,
    )  # fmt: skip
    if run is not None:
        IN_USE.add(Kind.TOOL)
        run.fn = fn
    return run


def _text(capture: Capture, given: Callable[[], Any]) -> str | None:
    try:
        return capture(given())
    except Exception as error:
        swallow("capture", error)
        return None


# --- running --------------------------------------------------------------------------------------


def checked(run: FrameworkRun, call: Callable[..., Any], arguments: Callable[[], Any]) -> Callable[..., Any]:
    """Return what to call in place of ``call``, so that policies and guardrails are asked around it.

    :param arguments: returns what it is given, by name.
    """
    controls = run.recorder.controls
    if controls is None:
        return call
    run.asked = True
    return controls.around(run, call, arguments) or call


def judged(
    run: FrameworkRun,
    call: Callable[[], Awaitable[Any]],
    arguments: Callable[[], Any],
    said: Callable[[Any], Any],
    rebuild: Callable[[Any, Any], Any],
) -> Callable[[], Awaitable[Any]]:
    """Return what to call in place of ``call``, so that what goes in and what comes out is judged by its text.

    :param said: returns what a result says.
    :param rebuild: makes a result of what is to be said instead; its second argument is the result, None without one.
    """
    controls = run.recorder.controls
    if controls is None:
        return call
    result: Any = None
    says: Any = None

    async def speak() -> Any:
        nonlocal result, says
        result = await call()
        says = said(result)
        return says

    ask = controls.around(run, speak, arguments)
    if ask is None:
        return call

    async def asked() -> Any:
        answer = await ask()
        return result if result is not None and answer is says else rebuild(answer, result)

    return asked


def drive(run: FrameworkRun, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a call in its run, whatever kind of callable it is; what still runs afterwards ends the run itself."""
    with run:
        return deliver(run, call(*args, **kwargs))


# --- tools that are decorated as well -------------------------------------------------------------


class _Joined(Operation):
    """A decorated function's part in the tool call that a framework has opened: it adds no second span."""

    __slots__ = ("_call",)

    def __init__(self, call: FrameworkRun) -> None:
        # Not super().__init__(): it is no operation of its own, and has only what the shells ask of one.
        self._call = call
        self.kind = call.kind
        self.recorder = replace(call.recorder, capture=None)
        self.body = None
        self.handed_over = False
        self.last_ns = None
        self.output_length = None

    def enter(self) -> None:
        """Do nothing: the call is the current operation."""

    def leave(self) -> None:
        """Do nothing: whoever opened the call puts back what was before it."""

    @property
    def is_finished(self) -> bool:
        """True: there is nothing left for anybody else to finish."""
        return True

    def finish(
        self,
        error: BaseException | None = None,
        *,
        outcome: Outcome | None = None,  # noqa: ARG002 - what an operation takes
        error_type: str | None = None,  # noqa: ARG002 - as above
        end_ns: int | None = None,  # noqa: ARG002 - as above
    ) -> None:
        """Keep what the function raised: frameworks turn it into a text for the model."""
        if error is not None:
            self._call.error = error


def _is_beneath(outer: Any, fn: Callable[..., Any]) -> bool:
    """Tell whether ``fn`` is a callable, or what it wraps."""
    for _ in range(_MOST_LAYERS):
        if outer is None or outer is fn:
            return outer is fn
        outer = getattr(outer, "__func__", None) or getattr(outer, "__wrapped__", None)
    return False


def join(fn: Callable[..., Any], name: str, arguments: Callable[[], Any]) -> Operation | None:
    """Return a decorated tool's part in the framework's call of this very tool; None where it is a call of its own.

    :param fn: the function that is decorated.
    :param name: the name that the decorator gives it.
    :param arguments: returns what it is given, by name.
    """
    call = current()
    if type(call) is not FrameworkRun or call.kind is not Kind.TOOL or call.joined or call.is_finished:
        return None
    if not (_is_beneath(call.fn, fn) if call.fn is not None else name == call.name):
        return None
    call.joined = True
    part = _Joined(call)
    if not call.asked and call.recorder.controls is not None:
        part.body = call.recorder.controls.around(call, fn, arguments)
    return part
