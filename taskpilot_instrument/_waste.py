"""What was spent for nothing, in calls and in runs: the one definition, for metrics, golden signals and the ledger."""

from decimal import Decimal
from typing import Final, NamedTuple, Protocol

from taskpilot_instrument._money import ZERO, add
from taskpilot_instrument._records import Finished, LLMCall, was_sent
from taskpilot_instrument.semconv import COST_PARTIAL, Kind, Outcome
from taskpilot_instrument.usage import TokenUsage


class Waste(NamedTuple):
    """What LLM calls that did not succeed (failed, cancelled, abandoned, blocked) came to, and attempts made again.

    Calls that succeeded are no waste, also where the run around them failed in the end: that is :class:`Lost`.

    :param attempts: requests that brought no answer to build on: those of calls that did not succeed, and each one
        that the client made again, also where the call succeeded at last.
    :param retries: of these, the ones that the client made again.
    :param calls: calls that did not succeed and may have cost something; a call that was refused has cost nothing.
    :param tokens: of these calls, input and output.
    :param usd: exact; what is known of their cost.
    :param unpriced: of these calls, those whose cost is not known, or not wholly: then ``usd`` is a lower bound.
    """

    attempts: int = 0
    retries: int = 0
    calls: int = 0
    tokens: int = 0
    usd: Decimal = ZERO
    unpriced: int = 0

    def plus(self, other: "Waste") -> "Waste":
        """Return the exact sum of both."""
        return Waste(
            self.attempts + other.attempts,
            self.retries + other.retries,
            self.calls + other.calls,
            self.tokens + other.tokens,
            add(self.usd, other.usd),
            self.unpriced + other.unpriced,
        )


NO_WASTE: Final = Waste()


class WasteInMetrics(NamedTuple):
    """What the families of Prometheus tell of waste: all but how many calls it was, which none of them counts.

    :param unpriced: 0 where no call at all was of unknown cost; else nobody knows how many of these were.
    """

    attempts: int
    retries: int
    tokens: int
    usd: Decimal
    unpriced: int | None
    calls: None = None


def is_in_vain(outcome: str) -> bool:
    """Tell whether an LLM call that ended so was a request for nothing."""
    return outcome != Outcome.SUCCESS and was_sent(outcome)


class Ended(Protocol):
    """What has to be known of an operation that has finished."""

    @property
    def llm(self) -> LLMCall | None: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def usage(self) -> TokenUsage | None: ...
    @property
    def cost(self) -> Decimal | None: ...
    @property
    def cost_source(self) -> str | None: ...


def waste_of(record: Ended) -> Waste | None:
    """Return what a finished LLM call wasted; None where nothing was, and for everything that is no LLM call."""
    call, outcome, usage, cost = record.llm, record.outcome, record.usage, record.cost
    if call is None:
        return None
    if outcome is Outcome.SUCCESS:
        return Waste(attempts=call.retries, retries=call.retries) if call.retries else None
    attempts = call.retries + is_in_vain(outcome)
    if not call.billable and usage is None:
        return Waste(attempts, call.retries) if attempts else None
    tokens = 0 if usage is None else (usage.input_tokens or 0) + (usage.output_tokens or 0)
    unpriced = cost is None or record.cost_source == COST_PARTIAL
    return Waste(attempts, call.retries, 1, tokens, ZERO if cost is None else cost, int(unpriced))


class Lost(NamedTuple):
    """What runs that did not succeed came to, everything beneath them included, also calls that succeeded.

    Waste is a part of it where it was in such a run. A run inside another one of its kind is counted, and its money
    is that of the run around it, so that no dollar counts twice: of workflows the outermost run has it, of agents the
    outermost run of the same agent.

    :param runs: how many there were.
    :param usd: exact; what is known of their cost.
    :param unpriced: of these runs, those whose cost is not known, or not wholly: then ``usd`` is a lower bound.
    """

    runs: int = 0
    usd: Decimal = ZERO
    unpriced: int = 0

    def plus(self, other: "Lost") -> "Lost":
        """Return the exact sum of both."""
        return Lost(self.runs + other.runs, add(self.usd, other.usd), self.unpriced + other.unpriced)


NOTHING_LOST: Final = Lost()


def lost_of(record: Finished) -> Lost:
    """Return what a workflow or agent run came to that has not succeeded."""
    above = record.operation.parent if record.operation is not None else None
    while above is not None:
        if above.kind is record.kind and (record.kind is Kind.WORKFLOW or above.name == record.name):
            return Lost(1)
        above = above.parent
    cost = record.cost
    return Lost(1, ZERO if cost is None else cost, int(cost is None or record.cost_source == COST_PARTIAL))
