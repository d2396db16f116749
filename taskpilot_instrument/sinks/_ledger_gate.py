"""Queue the threads of a process for a store, in the order in which they came."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from taskpilot_instrument.errors import LedgerError

#: Far more than a healthy store needs for a few hundred threads: each of them has some ten microseconds of work.
_LONGEST_QUEUE_S: Final = 1.0


class Gate:
    """Let so many threads in at once, the longest waiting first; whoever waits while the store fails, fails with it.

    A plain lock lets whoever holds it take it again before those who wait: under 200 threads some of them waited for
    half a second, where their turn was due after twenty milliseconds.

    :param name: the store's, for messages.
    :param at_once: how many threads may be in.
    """

    def __init__(self, name: str, at_once: int = 1) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._at_once = self._free = at_once
        self._queue: deque[threading.Lock] = deque()
        self._failures = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn, and take it.

        :raises LedgerError: where the store failed meanwhile, or the turn did not come.
        """
        failures = self._failures
        if not self.enter():
            raise LedgerError(f"the ledger {self.name} is busy: no turn in {_LONGEST_QUEUE_S:.0f} s")
        try:
            if failures != self._failures:
                raise LedgerError(f"the ledger {self.name} failed a moment ago")  # noqa: TRY301 - left below as any
            yield
        except LedgerError:
            self._failures += 1
            raise
        finally:
            self.leave()

    def enter(self) -> bool:
        """Wait for one's turn; return False where it did not come."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            mine = threading.Lock()
            mine.acquire()
            self._queue.append(mine)
        if mine.acquire(timeout=_LONGEST_QUEUE_S):
            return True
        with self._lock:
            try:
                self._queue.remove(mine)
            except ValueError:  # it came in this very moment
                return True
        return False

    def enter_all(self) -> int:
        """Wait until nobody else is in; return how often to leave."""
        return sum(self.enter() for _ in range(self._at_once))

    def leave(self) -> None:
        """Hand the turn to whoever waits longest."""
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1
