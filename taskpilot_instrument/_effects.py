"""How a figure of one variant differs from the first variant's, and whether that is a difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from taskpilot_instrument._sequential import critical, p_value
from taskpilot_instrument.sinks._trials import BLOCKS, Arm, Sums, Trial

#: How likely it may be that anything said of an experiment, about any figure at any look, is wrong.
ALPHA: Final = 0.05
#: Nothing is judged before each side has so many runs, in so many blocks: intervals rest on the central limit theorem.
LEAST_RUNS: Final = 100
LEAST_BLOCKS: Final = 40


class Figure(StrEnum):
    """What variants are compared by."""

    SUCCESS = "success_rate"
    CORRECTNESS = "correctness"
    COST = "cost_per_run_usd"
    LATENCY = "latency_ms"


class Verdict(StrEnum):
    """What can be said of a variant, or of one figure of it, against the first variant."""

    KEEP_RUNNING = "keep running"
    BETTER = "better"
    WORSE = "worse"
    TRADE_OFF = "trade-off"
    NO_DIFFERENCE = "no difference"
    BROKEN = "assignment broken"
    NOT_JUDGED = "not judged"


RATES: Final = frozenset({Figure.SUCCESS, Figure.CORRECTNESS})


@dataclass(frozen=True, slots=True)
class Effect:
    """How one figure of a variant differs from the first variant's.

    Rates are in percent, their differences in percentage points. ``low`` to ``high`` holds the true difference with
    95 % at every look and for all figures and variants at once; None before there is enough to tell.

    :param margin: a difference that is smaller, either way, is none that matters.
    :param sure_percent: 100 less the p-value in percent: of a difference, or of there being none beyond the margin.
    """

    variant: str
    figure: Figure
    first: float | None
    value: float | None
    difference: float | None
    low: float | None
    high: float | None
    margin: float | None
    sure_percent: float | None
    verdict: Verdict

    @property
    def not_lower(self) -> bool:
        """Tell whether a rate is known not to be lower by more than the margin."""
        return self.low is not None and self.margin is not None and self.low > -self.margin


class _Mean(NamedTuple):
    """A mean over runs, the variance of that mean, and what it rests on."""

    value: float
    variance: float
    runs: int
    blocks: int


def effects(trial: Trial, arms: Sequence[Arm], points: float, relative: float) -> tuple[Effect, ...]:
    """Return how each figure of each further variant differs from the first one's.

    :param points: a difference of rates that matters, in percentage points; ``relative`` of other figures, in percent.
    """
    # All figures and variants are looked at, so that what may be wrong is shared among all of them.
    alpha = ALPHA / (len(Figure) * (len(arms) - 1))
    found: list[Effect] = []
    for variant, arm in zip(trial.design.variants[1:], arms[1:], strict=True):
        for figure in Figure:
            first, value = _mean(arms[0], figure), _mean(arm, figure)
            margin = points if figure in RATES else abs(first.value) * relative / 100 if first is not None else None
            found.append(_effect(variant, figure, first, value, margin, alpha))
    return tuple(found)


def _effect(
    variant: str, figure: Figure, first: _Mean | None, value: _Mean | None, margin: float | None, alpha: float
) -> Effect:
    known = first.value if first is not None else None, value.value if value is not None else None
    if first is None or value is None or margin is None:
        return Effect(variant, figure, *known, None, None, None, margin, None, Verdict.KEEP_RUNNING)
    difference = value.value - first.value
    if min(first.runs, value.runs) < LEAST_RUNS or min(first.blocks, value.blocks) < LEAST_BLOCKS:
        return Effect(variant, figure, *known, difference, None, None, margin, None, Verdict.KEEP_RUNNING)
    error, runs = _error(first, value), first.runs + value.runs
    half = critical(runs, alpha) * error
    low, high = difference - half, difference + half
    if figure in RATES:
        low, high = max(low, -100.0), min(high, 100.0)

    def sure(distance: float) -> float:
        z = distance / error if error else math.inf  # what never varies leaves no doubt
        return 100 * (1 - min(1.0, p_value(z, runs, alpha) * ALPHA / alpha))

    if -margin <= low and high <= margin:
        within = sure(margin - abs(difference))
        return Effect(variant, figure, *known, difference, low, high, margin, within, Verdict.NO_DIFFERENCE)
    verdict = Verdict.KEEP_RUNNING
    if low > 0 or high < 0:
        verdict = Verdict.BETTER if (low > 0) is (figure in RATES) else Verdict.WORSE
    return Effect(variant, figure, *known, difference, low, high, margin, sure(abs(difference)), verdict)


def _error(first: _Mean, value: _Mean) -> float:
    """Return the standard error of the difference of two means.

    A run of either side varies no less than the runs of both do: where few runs in a thousand cost the most, the side
    that has fewer runs may have met none of them yet, and would be sure to be the cheaper one.
    """
    runs = first.runs + value.runs
    both = (first.variance * first.runs**2 + value.variance * value.runs**2) / runs
    return math.sqrt(max(first.variance, both / first.runs) + max(value.variance, both / value.runs))


def _mean(arm: Arm, figure: Figure) -> _Mean | None:
    """Return a figure of a variant; a rate in percent, its variance never below that of independent runs."""
    sums = {
        Figure.SUCCESS: arm.success, Figure.CORRECTNESS: arm.correct, Figure.COST: arm.cost, Figure.LATENCY: arm.latency
    }[figure]  # fmt: skip
    runs, total = sum(sums.counts), math.fsum(sums.totals)
    if not runs:
        return None
    mean, blocks = total / runs, sum(count > 0 for count in sums.counts)
    variance = _spread(sums, mean) / runs**2
    if figure not in RATES:
        return _Mean(mean, variance, runs, blocks)
    # With one success and one failure more, so that a rate of 100 % is not taken for one that cannot be otherwise
    # (Agresti and Caffo 2000).
    smoothed = (total + 1) / (runs + 2)
    return _Mean(100 * mean, 1e4 * max(variance, smoothed * (1 - smoothed) / runs), runs, blocks)


def _spread(sums: Sums, mean: float) -> float:
    """Return the variance of the total between blocks, each measured against what its runs would have at the mean."""
    off = math.fsum((total - mean * count) ** 2 for total, count in zip(sums.totals, sums.counts, strict=True))
    return off * BLOCKS / (BLOCKS - 1)
