"""Limits of tokens: for each call, for a run, for an agent and minute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args
from weakref import WeakSet

from taskpilot_instrument import _forks, _forms
from taskpilot_instrument._definition import check
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._rates import Sliding
from taskpilot_instrument._records import Event, Finished
from taskpilot_instrument._token_watch import hit
from taskpilot_instrument.errors import ConfigurationError, TokenLimitError
from taskpilot_instrument.semconv import LIMIT_CONFIGURED, NONE, OTHER, Kind
from taskpilot_instrument.typing import Clock

Per = Literal["call", "run", "agent_minute"]
Count = Literal["total", "input", "output"]
OnExceed = Literal["warn", "block"]

#: Agents whose minutes are kept apart; further ones share one.
_MOST_AGENTS: Final = 1_000
_NAME: Final = _forms.optional(_forms.text())
_FORMS: Final = {
    "tokens": _forms.whole(1, 10**15),
    "per": _forms.choice(get_args(Per)),
    "count": _forms.choice(get_args(Count)),
    "on_exceed": _forms.choice(get_args(OnExceed)),
    "agent": _NAME,
    "workflow": _NAME,
    "model": _NAME,
    "name": _NAME,
}


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """Limit the tokens of each call, of a run, or of an agent in a minute; given as ``instrument(token_limits=[…])``.

    What went beyond it is counted, logged and noted on the span: each call that did; a run and an agent once, when they
    do. With ``on_exceed="block"`` a call is moreover refused with :class:`TokenLimitError` before it is sent:

    - ``per="call"``: where its input, estimated from above, and the most output that it asks for exceed the limit;
      output that it sets no bound to is not known before, and judged after the call alone;
    - ``per="run"``: where the run has used the limit up, so that an agent which goes in circles stops. The run is the
      outermost one around the call; with ``workflow`` or ``agent`` the outermost of that name;
    - ``per="agent_minute"``: where the agent has used the limit up within the last minute. Calls outside of agents
      share one minute.

    Calls that run at the same time are not counted until they end, and those that tell no usage not at all: streams
    tell it where they are asked to, see the setting ``include_usage``.

    :param tokens: how many are allowed.
    :param agent: only calls of this agent.
    :param workflow: only calls in this workflow.
    :param model: only calls that ask for this model; a run is counted whole, so not with ``per="run"``.
    :param count: which tokens.
    :param name: what log lines and alerts call it; else made from the other fields.
    :raises ConfigurationError: for a field that is not valid.
    """

    tokens: int
    per: Per = "call"
    agent: str | None = None
    workflow: str | None = None
    model: str | None = None
    count: Count = "total"
    on_exceed: OnExceed = "warn"
    name: str | None = None

    def __post_init__(self) -> None:
        check(self, _FORMS)
        if self.model is not None and self.per == "run":
            raise ConfigurationError(
                f'TokenLimit: model={self.model!r}: a run is counted whole; use per="call" or per="agent_minute"'
            )
        if self.name is None:
            of = [each for each in (self.agent, self.workflow, self.model) if each is not None]
            counted = "" if self.count == "total" else f"{self.count} "
            object.__setattr__(self, "name", " ".join([f"{self.tokens} {counted}tokens per {self.per}", *of]))

    def counted(self, given: int | None, made: int | None) -> int:
        """Return how many of these tokens count."""
        return (0 if self.count == "output" else given or 0) + (0 if self.count == "input" else made or 0)


class _Rule(Protocol):
    """How one limit is kept."""

    limit: TokenLimit

    def refusal(self, operation: Operation, /) -> str | None:
        """Say why a call may not be sent; None where it may."""

    def excess(self, operation: Operation, used: int, /) -> str | None:
        """Count the tokens of a finished call, and say in what way they went beyond the limit; None where not."""


class TokenLimits:
    """Keep every limit: a gate that refuses calls, and a sink that counts what they used.

    :param limits: those of the setting.
    :param clock: tells which minute it is.
    """

    where = "token_limit"

    def __init__(self, limits: Sequence[TokenLimit], clock: Clock) -> None:
        self._rules = [_rule(limit, clock) for limit in limits]
        self._blocking = [rule for rule in self._rules if rule.limit.on_exceed == "block"]
        #: True where there is something to ask before a call.
        self.blocks = bool(self._blocking)

    def admit(self, operation: Operation, /) -> None:
        """Let a call go that no limit refuses.

        :raises TokenLimitError: naming the limit that does.
        """
        for rule in self._blocking:
            if _speaks_of(rule.limit, operation):
                why = rule.refusal(operation)
                if why is not None:
                    message = f"token limit {rule.limit.name!r}: {why}, and {rule.limit.tokens} are allowed"
                    operation.recorder.note(_event(rule.limit, operation, "block", message, why))
                    raise TokenLimitError(message)

    def finished(self, record: Finished, /) -> None:
        """Count what a call used, and note where it went beyond a limit."""
        operation, usage = record.operation, record.usage
        if record.llm is None or operation is None or usage is None:
            return
        for rule in self._rules:
            limit = rule.limit
            if _speaks_of(limit, operation):
                why = rule.excess(operation, limit.counted(usage.input_tokens, usage.output_tokens))
                if why is not None:
                    message = f"token limit {limit.name!r}: {why}, and {limit.tokens} are allowed"
                    operation.recorder.note(_event(limit, operation, "warn", message, why))

    def noted(self, event: Event, /) -> None:
        """Do nothing: what is noted of limits comes from here."""


def _speaks_of(limit: TokenLimit, operation: Operation) -> bool:
    call = operation.llm
    return (
        # A run is found by its name, and the innermost agent may be another one beneath it.
        limit.per == "run"
        or (
            (limit.agent is None or limit.agent == operation.agent_name)
            and (limit.workflow is None or limit.workflow == operation.workflow_name)
            and (limit.model is None or (call is not None and limit.model == call.model))
        )
    )


def _event(limit: TokenLimit, operation: Operation, decision: str, message: str, why: str) -> Event:
    model = operation.llm.model if operation.llm is not None else None
    return hit(
        LIMIT_CONFIGURED, model, message, operation,
        rule=limit.name, decision=decision, reason=f"{LIMIT_CONFIGURED}: {why}",
    )  # fmt: skip


# --- the three kinds ----------------------------------------------------------------------------


def _rule(limit: TokenLimit, clock: Clock) -> _Rule:
    if limit.per == "call":
        return _PerCall(limit)
    return _PerRun(limit) if limit.per == "run" else _PerAgentMinute(limit, clock)


class _PerCall:
    def __init__(self, limit: TokenLimit) -> None:
        self.limit = limit

    def refusal(self, operation: Operation) -> str | None:
        call = operation.llm
        asked = None if call is None else call.most
        most = 0 if asked is None else self.limit.counted(asked.input_tokens, asked.output_tokens)
        return f"the call may use {most}" if most > self.limit.tokens else None

    def excess(self, _operation: Operation, used: int) -> str | None:
        return f"the call used {used}" if used > self.limit.tokens else None


class _PerRun:
    def __init__(self, limit: TokenLimit) -> None:
        self.limit = limit
        self._lock = _forks.lock()
        self._told: WeakSet[Operation] = WeakSet()

    def refusal(self, operation: Operation) -> str | None:
        run = self._run_of(operation)
        used = 0 if run is None else self._used(run)
        return f"the run has used {used}" if used >= self.limit.tokens else None

    def excess(self, operation: Operation, _used: int) -> str | None:
        run = self._run_of(operation)  # its totals have this call already
        used = 0 if run is None else self._used(run)
        if run is None or used <= self.limit.tokens:
            return None
        with self._lock:
            if run in self._told:
                return None
            self._told.add(run)
        return f"the run has used {used}"

    def _used(self, run: Operation) -> int:
        return 0 if run.totals is None else self.limit.counted(run.totals.input_tokens, run.totals.output_tokens)

    def _run_of(self, operation: Operation) -> Operation | None:
        limit, found = self.limit, None
        above = operation.parent
        while above is not None:
            if (
                above.totals is not None
                and (limit.agent is None or (above.kind is Kind.AGENT and above.name == limit.agent))
                and (limit.workflow is None or limit.workflow == above.workflow_name)
            ):
                found = above
            above = above.parent
        return found


class _PerAgentMinute:
    def __init__(self, limit: TokenLimit, clock: Clock) -> None:
        self.limit = limit
        self._now_ns = clock.monotonic_ns
        self._lock = _forks.lock()
        self._minutes: dict[str, Sliding] = {}
        #: Agents that are beyond the limit, and said to be.
        self._told: set[str] = set()
        _forks.tell(self)

    def after_fork(self) -> None:
        """Begin with empty minutes: what the parent used is the parent's."""
        self._minutes, self._told = {}, set()

    def refusal(self, operation: Operation) -> str | None:
        with self._lock:
            minute = self._minutes.get(self._key(operation))
            used = 0 if minute is None else minute.total(self._now_ns())
        return f"the agent has used {used} within a minute" if used >= self.limit.tokens else None

    def excess(self, operation: Operation, used: int) -> str | None:
        with self._lock:
            key = self._key(operation)
            used = self._minutes.setdefault(key, Sliding()).add(self._now_ns(), used)
            if used <= self.limit.tokens:
                self._told.discard(key)
            elif key not in self._told:
                self._told.add(key)
                return f"the agent has used {used} within a minute"
        return None

    def _key(self, operation: Operation) -> str:
        agent = operation.agent_name or NONE
        return agent if agent in self._minutes or len(self._minutes) < _MOST_AGENTS else OTHER
