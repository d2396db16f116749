"""Keep an unreachable ledger from slowing every call: after a failure it is not asked again for a while."""

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from taskpilot_instrument._guard import count
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks._ledger_records import Ledger

_log = logging.getLogger("taskpilot_instrument")
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_METHODS: Final = (
    "reserve", "settle", "standings", "accounts", "put_vote", "votes", "put_runs", "find_run", "add_rollups", "rollups",
)  # fmt: skip


class Circuit:
    """A ledger that fails at once while the one behind it cannot be reached.

    The first failure opens the circuit for half a second, each further one for twice as long, up to half a minute;
    then one caller tries, and the others still fail at once. It closes with the first success.

    :param ledger: the store.
    :param now_s: monotonic seconds.
    """

    def __init__(self, ledger: Ledger, *, now_s: Callable[[], float] = monotonic) -> None:
        self.ledger = ledger
        self._now_s = now_s
        self._lock = threading.Lock()
        self._pause_s = 0.0
        self._closed_again_at = 0.0
        #: Why it is open; None while it is closed.
        self._problem: LedgerError | None = None
        for name in _METHODS:
            setattr(self, name, self._guarded(getattr(ledger, name)))

    @property
    def is_open(self) -> bool:
        """True while the ledger is not asked."""
        return self._problem is not None

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            problem = self._problem
            if problem is not None and not self._may_try():
                raise LedgerError(str(problem))
            try:
                result = method(*args, **kwargs)
            except LedgerError as error:
                self._failed(error)
                raise
            if problem is not None:
                self._recovered()
            return result

        return call

    def _may_try(self) -> bool:
        with self._lock:
            now = self._now_s()
            if now < self._closed_again_at:
                return False
            self._closed_again_at = now + self._pause_s  # the others go on waiting
            return True

    def _failed(self, error: LedgerError) -> None:
        with self._lock:
            first = self._problem is None
            self._problem = error
            self._pause_s = _FIRST_PAUSE_S if first else min(_LONGEST_PAUSE_S, self._pause_s * 2)
            self._closed_again_at = self._now_s() + self._pause_s
        count("ledger")
        if first:
            _log.warning(
                "taskpilot_instrument: %s; it is asked again after a pause, until then calls go by ledger_unavailable",
                error,
            )

    def _recovered(self) -> None:
        with self._lock:
            self._problem = None
        _log.warning("taskpilot_instrument: the ledger is back")

    def close(self) -> None:
        """Close the store."""
        self.ledger.close()
