"""Keep an unreachable ledger from slowing every call: after a failure it is not asked again for a while."""

import logging
import math
from collections.abc import Callable
from time import monotonic
from typing import Final, ParamSpec, TypeVar

from taskpilot_instrument import _forks
from taskpilot_instrument._guard import count
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks._ledger_records import Ledger

_log = logging.getLogger("taskpilot_instrument")
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
#: A store that takes so long, so many times in a row, is as bad as none. One slow call may be the machine's fault.
_SLOW_S: Final = 0.25
_SLOW_IN_A_ROW: Final = 5
P = ParamSpec("P")
R = TypeVar("R")


class Circuit:
    """A ledger that fails at once while the one behind it cannot be reached.

    The first failure opens the circuit for half a second; then one caller tries, while the others still fail at once.
    Each failed try doubles the pause, up to half a minute. The first success closes the circuit.

    Failures are counted as ``taskpilot_instrument_errors_total{where="ledger"}``; an opening is logged once.

    :param ledger: the store.
    :param now_s: monotonic seconds.
    """

    def __init__(self, ledger: Ledger, *, now_s: Callable[[], float] = monotonic) -> None:
        self.ledger = ledger
        #: How often the store failed, and how many calls were turned away since without asking it.
        self.failures = 0
        self.turned_away = 0
        self._now_s = now_s
        self._lock = _forks.lock()
        self._pause_s = 0.0
        self._next_try_at = 0.0
        #: How many calls in a row were slow, one after the other, and when the last of them ended.
        self._slow = 0
        self._slow_until = -math.inf
        #: Why it is open; None while it is closed.
        self._problem: str | None = None
        self.reserve = self._timed(ledger.reserve)
        self.settle = self._timed(ledger.settle)
        self.put_vote = self._timed(ledger.put_vote)
        self.put_runs = self._timed(ledger.put_runs)
        self.add_rollups = self._timed(ledger.add_rollups)
        self.find_run = self._timed(ledger.find_run)
        # These may have much to read.
        self.standings = self._guarded(ledger.standings)
        self.accounts = self._guarded(ledger.accounts)
        self.votes = self._guarded(ledger.votes)
        self.rollups = self._guarded(ledger.rollups)

    @property
    def is_open(self) -> bool:
        """True while the ledger is not asked."""
        return self._problem is not None

    def close(self) -> None:
        """Close the store."""
        self.ledger.close()

    def _guarded(self, method: Callable[P, R]) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            problem = self._problem
            if problem is not None and not self._may_try():
                raise LedgerError(problem)
            try:
                result = method(*args, **kwargs)
            except OSError as error:  # LedgerError is one, as is what a ledger of the user's own may raise
                self._failed(str(error), tried=problem is not None)
                if isinstance(error, LedgerError):
                    raise
                raise LedgerError(f"the ledger cannot be reached: {error}") from error
            if problem is not None:
                self._recovered()
            return result

        return call

    def _timed(self, method: Callable[P, R]) -> Callable[P, R]:
        guarded, now_s = self._guarded(method), self._now_s

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            began = now_s()
            result = guarded(*args, **kwargs)
            ended = now_s()
            if ended - began < _SLOW_S:
                self._slow = 0
            elif began >= self._slow_until:  # of many that waited at the same time, one counts
                self._slow, self._slow_until = self._slow + 1, ended
                if self._slow >= _SLOW_IN_A_ROW:
                    self._slow = 0
                    self._failed(f"the ledger is too slow: it took more than {_SLOW_S:g} s a call", tried=False)
            return result

        return call

    def _may_try(self) -> bool:
        with self._lock:
            now = self._now_s()
            if now < self._next_try_at:
                self.turned_away += 1
                return False
            self._next_try_at = now + self._pause_s  # the others go on waiting
            return True

    def _failed(self, problem: str, *, tried: bool) -> None:
        """Open the circuit, or keep it open for longer where the failed call was a try, not one from before."""
        with self._lock:
            self.failures += 1
            opens = self._problem is None
            self._problem = problem
            if opens or tried:
                self._pause_s = _FIRST_PAUSE_S if opens else min(_LONGEST_PAUSE_S, self._pause_s * 2)
                self._next_try_at = self._now_s() + self._pause_s
        count("ledger")
        if opens:
            _say(f"{problem}; it is asked again after a pause, until then calls go by ledger_unavailable")

    def _recovered(self) -> None:
        with self._lock:
            back, self._problem = self._problem is not None, None
        if back:
            _say("the ledger is back")


def _say(text: str) -> None:
    try:
        _log.warning("taskpilot_instrument: %s", text)
    except Exception:  # noqa: S110 - the application's logging is broken, and there is nobody left to tell
        pass
