"""Figures of samples, with the interval that holds the true value with 95 %, at one look.

Where a sample is too small for an end of the interval, that end is None.
"""

from math import ceil, floor, sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

from taskpilot_instrument.sinks._sketch import Sketch

_Z: Final = NormalDist().inv_cdf(0.975)
#: Means of fewer are not yet distributed as means of many are; nor is anything judged by fewer.
LEAST_SAMPLE: Final = 30


class Estimate(NamedTuple):
    """A figure and its interval; None is unknown.

    :param sample: how many observations it rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    sample: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Return it as JSON has it."""
        return self._asdict()


def rate(part: int, whole: int) -> Estimate:
    """Return a share in percent with Wilson's interval (1927, "Probable inference"), which stays within 0 and 100."""
    if whole <= 0:
        return Estimate(None, None, None, 0)
    share, square = part / whole, _Z * _Z
    centre = (share + square / (2 * whole)) / (1 + square / whole)
    half = _Z / (1 + square / whole) * sqrt(share * (1 - share) / whole + square / (4 * whole * whole))
    return Estimate(100 * share, 100 * max(0.0, centre - half), 100 * min(1.0, centre + half), whole)


def quantile(sketch: Sketch, percent: int) -> Estimate:
    """Return a quantile between two values of the sample, as order statistics bound it, whatever the distribution.

    How many values lie below the true quantile is binomial; the ranks are those of its normal approximation, rounded
    outward (Conover 1999, "Practical nonparametric statistics", section 3.2). Values are exact within 1 %.
    """
    count, share = sketch.count, percent / 100
    middle, half = count * share, _Z * sqrt(count * share * (1 - share))
    lower, upper = floor(middle - half), ceil(middle + half) + 1
    low = sketch.at_rank(lower) if 1 <= lower <= count else None
    return Estimate(sketch.quantile(percent), low, sketch.at_rank(upper) if upper <= count else None, count)


def mean(total: float, squares: float, count: int) -> Estimate:
    """Return a mean with the interval of the central limit theorem.

    :param squares: the sum of the squares.
    """
    return ratio(total, count, squares, total, count, count)


def ratio(
    above: float, below: float, above_squares: float, products: float, below_squares: float, count: int
) -> Estimate:
    """Return the ratio of two sums over the same observations, with Fieller's interval.

    It knows that what is below the line is uncertain as well: where that might be nothing, such as few successes among
    many runs, the interval has no ends (Fieller 1954, "Some problems in interval estimation").

    :param above_squares: the sum of the squares of what is above the line; so below it, and the products of both.
    """
    if not below:
        return Estimate(None, None, None, count)
    value = above / below
    if count < LEAST_SAMPLE:
        return Estimate(value, None, None, count)
    # Every ratio r for which above - r * below is within _Z standard errors of zero: a quadratic inequality in r.
    scale, square = _Z * _Z * count / (count - 1), below * below
    leading = 1 - scale * max(0.0, below_squares / square - 1 / count)
    if leading <= 0:
        return Estimate(value, None, None, count)
    middle = value - scale * (products / square - value / count)
    last = value * value - scale * max(0.0, above_squares / square - value * value / count)
    half = sqrt(max(0.0, middle * middle - leading * last))
    return Estimate(value, max(0.0, (middle - half) / leading), (middle + half) / leading, count)
