"""Remember what was counted: the same response, batch or run may be asked for many times with the same usage."""

from enum import Enum
from typing import Final

from taskpilot_instrument import _forks

#: Who asks again for one that is older than so many others counts it again, and so does another process.
MOST_BILLS: Final = 10_000


class _Bill(Enum):
    #: Begun in this process by a call that did not hear its usage.
    OPEN = 0
    #: Counted by the call that made it.
    MADE = 1
    #: Counted by a call that asked for it later.
    FETCHED = 2


class Bills:
    """What is known of the latest things that have an id of their own; a thing is named by its host and its id."""

    def __init__(self) -> None:
        # Re-entrant: the collector may end a stream, and note its bill, while this thread is here.
        self._lock = _forks.rlock()
        self._bills: dict[tuple[str | None, str], tuple[_Bill, str | None]] = {}

    def open(self, host: str | None, name: str, model: str | None) -> None:
        """Note that a call began this, and has not heard its usage yet.

        :param model: that was asked for.
        """
        with self._lock:
            self._note((host, name), _Bill.OPEN, model)

    def make(self, host: str | None, name: str) -> bool:
        """Note that the call which made this heard its usage; tell whether nobody else was told in the meantime."""
        with self._lock:
            before, _ = self._bills.get((host, name), _UNKNOWN)
            if before is not _Bill.FETCHED:
                self._note((host, name), _Bill.MADE, None)
            return before is not _Bill.FETCHED

    def fetch(self, host: str | None, name: str, *, only_open: bool) -> tuple[bool, str | None]:
        """Note that the usage of this was heard later; tell whether to count it now, and the model that was asked for.

        :param only_open: False where it may have begun in another process.
        """
        with self._lock:
            before, model = self._bills.get((host, name), _UNKNOWN)
            due = before is _Bill.OPEN or (before is None and not only_open)
            if due:
                self._note((host, name), _Bill.FETCHED, None)
            return due, model

    def knows(self, host: str | None, name: str) -> bool:
        """Tell whether this was begun or counted already."""
        with self._lock:
            return (host, name) in self._bills

    def _note(self, key: tuple[str | None, str], bill: _Bill, model: str | None) -> None:
        self._bills[key] = (bill, model)
        if len(self._bills) > MOST_BILLS:
            self._bills.pop(next(iter(self._bills)), None)


_UNKNOWN: Final[tuple[_Bill | None, str | None]] = (None, None)
