"""What a workflow or agent run has come to: the exact sums of every LLM call beneath it."""

import threading
from decimal import Decimal

from taskpilot_instrument import _forks
from taskpilot_instrument._money import ZERO, add
from taskpilot_instrument._records import Checked, LLMCall
from taskpilot_instrument.pricing import Price
from taskpilot_instrument.semconv import COST_DEFAULT, COST_PARTIAL, COST_UNKNOWN
from taskpilot_instrument.usage import TokenUsage


class Totals:
    """Exact sums of everything beneath a workflow or agent run."""

    __slots__ = (
        "_lock", "agent", "begun", "checked", "cost", "estimated", "input_tokens", "measured", "model", "output_tokens",
        "priced",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.input_tokens = 0
        self.output_tokens = 0
        self.cost = ZERO
        #: Calls that may cost something: those that are still open count, those that were refused do not.
        self.begun = 0
        self.measured = 0
        self.priced = 0
        self.estimated = False
        #: The model that was called last.
        self.model: str | None = None
        #: The agent that finished last: its result is the run's.
        self.agent: str | None = None
        self.checked = Checked.NO

    def after_fork(self) -> None:
        """Free the lock in a forked process."""
        _forks.free(self._lock)

    def note_check(self, checked: Checked) -> None:
        """Note that something was asked about the run; a check that failed stays noted."""
        if self.checked is not Checked.FAILED:
            self.checked = checked

    def begin(self) -> None:
        """Count a call that begins."""
        with self._lock:
            self.begun += 1

    def add(self, call: LLMCall, price: Price | None, *, sent: bool = True) -> None:
        """Add one finished LLM call, which has begun before.

        :param sent: False where it was refused: then no model was called.
        """
        usage = call.usage
        with self._lock:
            if not call.billable and usage is None:
                self.begun -= 1
            if sent:
                self.model = call.model or self.model
            if usage is not None:
                self.measured += 1
                self.input_tokens += usage.input_tokens or 0
                self.output_tokens += usage.output_tokens or 0
            if price is not None:
                self.priced += price.source != COST_PARTIAL
                self.cost = add(self.cost, price.usd)
                self.estimated = self.estimated or price.source == COST_DEFAULT

    def known_usage(self) -> TokenUsage | None:
        """Return the sums; None where calls were made and none of them told its usage."""
        return TokenUsage(self.input_tokens, self.output_tokens) if self.measured or not self.begun else None

    def known_cost(self) -> tuple[Decimal | None, str | None]:
        """Return the sum and how far to trust it: ``partial`` marks a lower bound."""
        if not self.begun:
            return self.cost, None
        if self.priced < self.begun:
            return (self.cost, COST_PARTIAL) if self.priced or self.cost else (None, COST_UNKNOWN)
        return self.cost, COST_DEFAULT if self.estimated else None
