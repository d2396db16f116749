"""How much happened within the last seconds, in bounded memory."""

from collections import deque
from typing import Final

_SLOTS: Final = 60
SECOND_NS: Final = 1_000_000_000
MINUTE_NS: Final = 60 * SECOND_NS


class Sliding:
    """The sum of what was added within a window of time; the caller holds a lock.

    Amounts are kept in sixtieths of the window, and the oldest counts until all of it is over: a window reaches back
    further than asked by up to that much, never less.

    :param window_ns: nanoseconds.
    """

    __slots__ = ("_slots", "_total", "_width_ns")

    def __init__(self, window_ns: int = MINUTE_NS) -> None:
        self._width_ns = max(1, window_ns // _SLOTS)
        #: Number of the slot and what was added in it, the oldest first.
        self._slots: deque[list[int]] = deque()
        self._total = 0

    def add(self, now_ns: int, amount: int) -> int:
        """Add an amount and return the sum of the window."""
        slot = now_ns // self._width_ns
        if self._slots and self._slots[-1][0] >= slot:
            self._slots[-1][1] += amount
        else:
            self._slots.append([slot, amount])
        self._total += amount
        return self.total(now_ns)

    def total(self, now_ns: int) -> int:
        """Return the sum of what was added in the window that ends now."""
        oldest = now_ns // self._width_ns - _SLOTS
        slots = self._slots
        while slots and slots[0][0] < oldest:
            self._total -= slots.popleft()[1]
        return self._total
