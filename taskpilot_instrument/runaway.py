"""Notice a run that goes in circles: the same tool call again and again, a context that only grows, fast spending."""

from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Final, Literal, get_args
from weakref import WeakKeyDictionary

from taskpilot_instrument import _forks, _forms, semconv
from taskpilot_instrument._definition import check, positive
from taskpilot_instrument._display import usd
from taskpilot_instrument._fingerprint import fingerprint
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._rates import Sliding
from taskpilot_instrument._records import Checked, Event, Finished
from taskpilot_instrument.errors import ConfigurationError, RunawayError
from taskpilot_instrument.semconv import NONE, OTHER, Kind
from taskpilot_instrument.typing import Clock

OnDetect = Literal["alert", "stop"]

#: What policies, log lines and the family of violations call it.
RULE: Final = "runaway"
SAME_TOOL: Final = "same_tool_calls"
GROWTH: Final = "context_growth"
SPEND: Final = "usd_per_minute"

#: Different calls that are remembered of one run, the latest; and agents.
_MOST_CALLS: Final = 512
_MOST_AGENTS: Final = 64
_EXACT: Final = Context(prec=60, traps=[])
_PICO_EXPONENT: Final = 12
_FORMS: Final = {
    "same_tool_calls": _forms.optional(_forms.whole(2, 1_000_000)),
    "context_growth_calls": _forms.optional(_forms.whole(2, 1_000_000)),
    "context_growth_factor": positive(),
    "usd_per_minute": _forms.optional(positive()),
    "on_detect": _forms.choice(get_args(OnDetect)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runaway:
    """Say when a run goes in circles, and what happens then; given as ``instrument(runaway=Runaway(…))``.

    A run is the outermost workflow or agent with everything beneath it. ``alert`` notes it once for each run and
    reason, as a flag of the policy ``runaway``. ``stop`` refuses the call that makes it one, and every tool and LLM
    call of the run after it, with :class:`RunawayError`: each is a denial of that policy, and ends as ``blocked``.
    Either counts in the policy violations, and stands in the log as ``policy.decided`` or ``tool.denied``.

    :param same_tool_calls: the same tool called with the same arguments for this many times in a run; None for never.
    :param context_growth_calls: so many LLM calls of one agent in a row, each with more input tokens than the one
        before, and the last with at least ``context_growth_factor`` times those of the call before the first.
        None, the default, for never: the context of any agent grows a while.
    :param context_growth_factor: above 1.
    :param usd_per_minute: USD that one run may spend within a minute; None for any. What all runs spend together is
        for an :class:`Alert` or a budget to hold.
    :param on_detect: ``alert`` or ``stop``.
    :raises ConfigurationError: for a field that is not valid, or where nothing is to be detected.
    """

    same_tool_calls: int | None = 5
    context_growth_calls: int | None = None
    context_growth_factor: float = 2.0
    usd_per_minute: Decimal | float | None = None
    on_detect: OnDetect = "alert"

    def __post_init__(self) -> None:
        check(self, _FORMS)
        if self.context_growth_factor <= 1:
            raise ConfigurationError(
                f"Runaway: context_growth_factor={self.context_growth_factor!r}: expected a number above 1"
            )
        if self.same_tool_calls is None and self.context_growth_calls is None and self.usd_per_minute is None:
            raise ConfigurationError(
                "Runaway: one of same_tool_calls, context_growth_calls and usd_per_minute has to be given"
            )


class _Run:
    """What is remembered of one run: counts and hashes."""

    __slots__ = ("calls", "growth", "spent", "stopped", "told")

    def __init__(self) -> None:
        self.calls: dict[bytes, int] = {}
        #: Of each agent: calls in a row that grew, input tokens of the call before them, of the latest.
        self.growth: dict[str, tuple[int, int, int]] = {}
        self.spent = Sliding()
        self.told: set[str] = set()
        #: Why the run may not go on.
        self.stopped: str | None = None


class RunawayDetector:
    """Watch every run: hears of its tool calls before they run, and is a gate and a sink for its LLM calls.

    What is remembered of a run goes with it, and is bounded.

    :param settings: when, and what then.
    :param clock: measures the minute.
    """

    where = "runaway"

    def __init__(self, settings: Runaway, clock: Clock) -> None:
        self._settings = settings
        #: True where a call may be refused, so that each has to ask.
        self.stops = settings.on_detect == "stop"
        self._most_pico = None if settings.usd_per_minute is None else _pico(settings.usd_per_minute)
        self._now_ns = clock.monotonic_ns
        self._lock = _forks.lock()
        self._runs: WeakKeyDictionary[Operation, _Run] = WeakKeyDictionary()

    # --- tool calls -------------------------------------------------------------------------------

    def saw_tool_call(self, operation: Operation, tool: str, arguments: object) -> None:
        """Hear of a tool call before it runs.

        :param operation: the tool's.
        :raises RunawayError: where the run is to stop.
        """
        operation.note_check(Checked.YES)
        most = self._settings.same_tool_calls
        key = None if most is None else fingerprint(tool, arguments)
        flagged = None
        with self._lock:
            run = self._run(operation)
            if key is not None and most is not None:
                times = run.calls.pop(key, 0) + 1
                run.calls[key] = times  # the latest stands last
                if len(run.calls) > _MOST_CALLS:
                    del run.calls[next(iter(run.calls))]
                if times >= most:
                    said = f"{SAME_TOOL}: {tool} was called {times} times with the same arguments"
                    flagged = self._detected(run, SAME_TOOL, said)
        self._act(operation, run, flagged)

    # --- LLM calls --------------------------------------------------------------------------------

    def admit(self, operation: Operation, /) -> None:
        """Let an LLM call go, unless its run was stopped.

        :raises RunawayError: where it was.
        """
        with self._lock:
            run = self._run(operation)
        self._act(operation, run, None)

    def finished(self, record: Finished, /) -> None:
        """Look at what an LLM call used."""
        operation = record.operation
        if record.llm is None or operation is None:
            return
        operation.note_check(Checked.YES)
        with self._lock:
            run = self._run(operation)
            found = [self._grown(run, record), self._spent(run, record)]
        for flagged in found:
            if flagged is not None:
                self._flag(operation, flagged)

    def noted(self, event: Event, /) -> None:
        """Do nothing: what is noted of runs comes from here."""

    def _grown(self, run: _Run, record: Finished) -> str | None:
        most, usage, call = self._settings.context_growth_calls, record.usage, record.llm
        if most is None or usage is None or call is None or call.operation != semconv.OPERATION_CHAT:
            return None
        given = usage.input_tokens
        if given is None:
            return None
        agent = record.agent or NONE
        if agent not in run.growth and len(run.growth) >= _MOST_AGENTS:
            agent = OTHER
        rises, first, last = run.growth.get(agent, (0, given, given))
        rises, first = (rises + 1, first) if given > last else (0, given)
        run.growth[agent] = (rises, first, given)
        if rises < most or given < self._settings.context_growth_factor * first:
            return None
        said = f"{GROWTH}: {rises} calls in a row with more input each, from {first} to {given} tokens"
        return self._detected(run, GROWTH, said)

    def _spent(self, run: _Run, record: Finished) -> str | None:
        if self._most_pico is None or not record.cost:
            return None
        spent = run.spent.add(self._now_ns(), _pico(record.cost))
        if spent <= self._most_pico:
            return None
        return self._detected(run, SPEND, f"{SPEND}: the run spent {usd(spent / 1e12)} within a minute")

    # --- what happens -----------------------------------------------------------------------------

    def _run(self, operation: Operation) -> _Run:
        """Return what is remembered of the run around an operation; the caller holds the lock."""
        outermost = operation.outermost
        run = self._runs.get(outermost)
        if run is None:
            run = self._runs[outermost] = _Run()
        return run

    def _detected(self, run: _Run, reason: str, said: str) -> str | None:
        """Note a reason; return what is to be flagged. The caller holds the lock."""
        if self.stops:
            run.stopped = run.stopped or said
            return None
        if reason in run.told:
            return None
        run.told.add(reason)
        return said

    def _act(self, operation: Operation, run: _Run, flagged: str | None) -> None:
        """Flag, or refuse where the run was stopped."""
        if flagged is not None:
            self._flag(operation, flagged)
        if run.stopped is not None:
            is_tool = operation.kind is Kind.TOOL
            name = semconv.E_TOOL_DENIED if is_tool else semconv.E_POLICY_DECIDED
            operation.recorder.note(_event(name, operation, "deny", run.stopped))
            raise RunawayError(f"the run goes in circles and was stopped: {run.stopped}")

    def _flag(self, operation: Operation, said: str) -> None:
        operation.recorder.note(_event(semconv.E_POLICY_DECIDED, operation, "flag", said))


def _event(name: str, operation: Operation, decision: str, said: str) -> Event:
    message = f"{RULE}: {said}" if decision == "flag" else f"{RULE}: {operation.name} was refused, {said}"
    return Event(name, semconv.CATEGORY_DECISION, "WARNING", message, operation, RULE, decision, said)


def _pico(usd: Decimal | float) -> int:
    """Return whole pico-dollars: fine enough for any price, and quick to add up."""
    exact = usd if isinstance(usd, Decimal) else Decimal(repr(float(usd)))
    return int(_EXACT.scaleb(exact, _PICO_EXPONENT))
