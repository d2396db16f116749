"""Exact sums of money, and how a float counter follows them without drifting."""

from collections.abc import Callable, Iterable
from decimal import Context, Decimal
from math import nextafter
from typing import Final

#: Ours, because an application may have given its own thread's context fewer digits.
_EXACT: Final = Context(prec=60, traps=[])
ZERO: Final = Decimal(0)

#: Return the exact sum of two amounts.
add: Final[Callable[[Decimal, Decimal], Decimal]] = _EXACT.add
#: Return the product of an amount and a count.
multiply: Final[Callable[[Decimal, Decimal], Decimal]] = _EXACT.multiply
#: Return the exact difference of two amounts.
subtract: Final[Callable[[Decimal, Decimal], Decimal]] = _EXACT.subtract


def total(amounts: Iterable[Decimal]) -> Decimal:
    """Return the exact sum of many amounts."""
    whole = ZERO
    for amount in amounts:
        whole = add(whole, amount)
    return whole


class Spend:
    """The exact spend of one series, mirrored into a counter that always shows ``float(exact)``."""

    __slots__ = ("_inc", "_shown", "exact")

    def __init__(self, inc: Callable[[float], None]) -> None:
        self._inc = inc
        self._shown = 0.0
        self.exact = ZERO

    def add(self, usd: Decimal) -> None:
        """Add exact USD; the caller holds the lock of the series."""
        self.exact = add(self.exact, usd)
        target = float(self.exact)
        step = target - self._shown
        shown = self._shown + step
        if shown > target:  # rounding overshot, and a counter cannot go back
            step = nextafter(step, 0)
            shown = self._shown + step
        self._inc(step)
        if shown < target:  # so close by now that the difference is exact
            self._inc(target - shown)
            shown += target - shown
        self._shown = shown
