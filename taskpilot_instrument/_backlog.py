"""What was spent while the ledger was away: kept here, and settled when it is back."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic, sleep
from typing import Final, NamedTuple

from taskpilot_instrument._guard import count
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks.ledger import Claim, Ledger, Standing

_log = logging.getLogger("taskpilot_instrument")
#: Money beyond that is lost to the budgets, and said so.
_MOST: Final = 100_000
#: How long an absent ledger is waited for at the end: the circuit before it asks it again after half a second.
_LAST_S: Final = 1.0
_NAP_S: Final = 0.05


class Settlement(NamedTuple):
    """What one call cost, and whom.

    :param budgets: those of the charges, in their order.
    """

    reservation: str
    charges: Sequence[Claim]
    budgets: tuple[Budget, ...]


class Backlog:
    """Settlements that wait for the ledger, oldest first. Each is made once, however often it is tried.

    :param ledger: where they are made.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        #: Oldest first; read only.
        self.waiting: deque[Settlement] = deque()

    def add(self, settlement: Settlement) -> None:
        """Let one more wait."""
        if len(self.waiting) < _MOST:
            self.waiting.append(settlement)
        elif count("ledger_backlog"):
            _log.error(
                "taskpilot_instrument: the ledger is away for so long that %d settlements wait for it; "
                "what further calls cost will be in no budget",
                _MOST,
            )

    def settle(self, now_s: float, most: int) -> Iterator[tuple[Settlement, tuple[Standing, ...]]]:
        """Make the settlements, and yield each with how its accounts stand then; stop where the ledger is away.

        :param most: how many at once.
        """
        for _ in range(most):
            try:
                settlement = self.waiting.popleft()
            except IndexError:  # all done, perhaps by another thread
                return
            try:
                standings = self._ledger.settle(settlement.reservation, settlement.charges, now_s)
            except LedgerError:
                self.waiting.appendleft(settlement)
                return
            yield settlement, standings

    def close(self, now_s: float) -> None:
        """Make what can be made within a moment, and say what cannot."""
        until = monotonic() + _LAST_S
        while True:
            for _ in self.settle(now_s, _MOST):
                pass
            if not self.waiting or monotonic() > until:
                break
            sleep(_NAP_S)
        if self.waiting:
            _log.error(
                "taskpilot_instrument: the ledger cannot be reached; what the latest %d calls cost is not in it",
                len(self.waiting),
            )
