"""How many calls the budgets refused, counted in the ledger: every process's, and gone with their window."""

from collections import Counter
from typing import Final
from uuid import uuid4

from taskpilot_instrument import _forks
from taskpilot_instrument._guard import swallow
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks.ledger import Claim, Ledger

#: Before an account's name: no budget's name begins so.
_MARK: Final = "|"
#: The first refusal is written at once, those of the next second together: a loop that is refused fills no file.
_PAUSE_S: Final = 1.0
_MOST_WAITING: Final = 10_000
_AT_ONCE: Final = 100


class Refusals:
    """Count refused calls beside what an account has spent, one unit each.

    :param ledger: where they are counted.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = _forks.lock()
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._written_s = float("-inf")

    def add(self, account: str, period: str, now_s: float) -> None:
        """Count one more."""
        with self._lock:
            if (account, period) in self._waiting or len(self._waiting) < _MOST_WAITING:
                self._waiting[account, period] += 1
        if not 0 <= now_s - self._written_s < _PAUSE_S:
            self.write(now_s)

    def write(self, now_s: float) -> None:
        """Write what waits; while the ledger is away, it waits on."""
        with self._lock:
            waiting, self._waiting, self._written_s = list(self._waiting.items()), Counter(), now_s
        while waiting:
            some = waiting[:_AT_ONCE]
            charges = [Claim(f"{_MARK}{account}", period, count) for (account, period), count in some]
            try:
                self._ledger.settle(f"refused-{uuid4().hex}", charges, now_s)
            except LedgerError:
                with self._lock:
                    self._waiting.update(dict(waiting))
                return
            except Exception as error:  # it would stand in the way of the refusal itself: the call would go
                swallow("budget", error)
                return
            waiting = waiting[_AT_ONCE:]

    def of(self, prefix: str, period: str, now_s: float) -> dict[str, int]:
        """Return by account how many calls were refused in a period.

        :param prefix: what the accounts' names begin with.
        :raises LedgerError: where the ledger cannot be reached.
        """
        names = self._ledger.accounts(f"{_MARK}{prefix}", period)
        standings = self._ledger.standings([(name, period) for name in names], now_s)
        return {standing.account.removeprefix(_MARK): standing.spent for standing in standings}
