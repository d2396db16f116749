"""The definitions of the golden signals, once.

They stand beside the metrics sink because both it (the five-key dictionary) and the answers above it (the full
object) use them, and imports point only downward.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from taskpilot_instrument._waste import NO_WASTE, NOTHING_LOST, Lost, Waste, WasteInMetrics
from taskpilot_instrument.semconv import (
    G_COST_PER_TASK,
    G_P95_LATENCY_MS,
    G_SUCCESS_RATE,
    G_USER_CORRECTNESS,
    G_VIOLATION_RATE,
    Outcome,
)


class Sample(NamedTuple):
    """The counts and sums that the signals are computed from.

    What the filter cannot tell, or the source does not know, is None.

    :param p95_ms: milliseconds; None where no run was timed.
    :param timed: runs behind ``p95_ms``.
    :param spent_usd: exact; what is known of it.
    :param calls: LLM calls that were sent; see ``blocked_calls``.
    :param priced: billable LLM calls whose cost is known.
    :param unpriced: billable LLM calls whose cost is not.
    """

    runs: float
    successes: float
    p95_ms: float | None
    timed: int
    spent_usd: Decimal | None
    calls: int | None
    priced: int | None
    unpriced: int | None
    violations: float | None
    correct: float | None
    incorrect: float | None
    #: Of the runs: how many policies or guardrails were asked about, and of how many this failed.
    checked: int | None = 0
    check_failed: int | None = 0
    #: What LLM calls that did not succeed came to, and attempts that were made again.
    wasted: Waste | WasteInMetrics | None = NO_WASTE
    #: Between which milliseconds ``p95_ms`` lies, where it was read from the buckets of a histogram.
    p95_bounds_ms: tuple[float, float] | None = None
    #: Of the runs, what those that did not succeed came to, by how they ended.
    lost: Mapping[Outcome, Lost] | None = None
    #: LLM calls that were refused before they were sent: no calls, nor runs of a model.
    blocked_calls: int | None = 0


def percent(part: float | None, whole: float | None) -> float | None:
    """Return ``part`` in percent of ``whole``; None where either is unknown or there is no whole."""
    if part is None or not whole:
        return None
    return 100 * part / whole


def success_rate(sample: Sample) -> float | None:
    """Return ``successes / runs × 100``; None where nothing ran."""
    return percent(sample.successes, sample.runs)


def violation_rate(sample: Sample) -> float | None:
    """Return ``violations / runs × 100``; None where nothing ran."""
    return percent(sample.violations, sample.runs)


def violation_rate_of_checked(sample: Sample) -> float | None:
    """Return ``violations / runs that were checked × 100``; None where none was: nobody looked."""
    return percent(sample.violations, sample.checked)


def violation_rate_at_most(sample: Sample) -> float | None:
    """Return the rate if each run that could not be checked broke a policy; None where that is not known."""
    if sample.violations is None or sample.check_failed is None:
        return None
    return percent(sample.violations + sample.check_failed, sample.runs)


def waste(sample: Sample) -> float | None:
    """Return what calls that did not succeed cost, in percent of all known spend; None where nothing was spent."""
    if sample.wasted is None or sample.spent_usd is None:
        return None
    return percent(float(sample.wasted.usd), float(sample.spent_usd))


def blocked(lost: Mapping[Outcome, Lost]) -> Lost:
    """Return what was refused: by policies, guardrails, budgets or limits."""
    return lost.get(Outcome.BLOCKED, NOTHING_LOST)


def failed(lost: Mapping[Outcome, Lost]) -> Lost:
    """Return what did not succeed and was not refused: errors, and what was cancelled or abandoned."""
    found = NOTHING_LOST
    for outcome, each in lost.items():
        if outcome is not Outcome.BLOCKED:
            found = found.plus(each)
    return found


def correctness(sample: Sample) -> float | None:
    """Return ``correct / (correct + incorrect) × 100``; None without feedback."""
    return percent(sample.correct, feedback(sample))


def feedback(sample: Sample) -> float | None:
    """Return how many verdicts users gave; None where the filter cannot tell."""
    return None if sample.correct is None or sample.incorrect is None else sample.correct + sample.incorrect


def cost_coverage(sample: Sample) -> float | None:
    """Return the share of billable calls whose cost is known, 0 to 1; None where there were none, or nobody knows."""
    if sample.priced is None or sample.unpriced is None:
        # Metrics count the calls without a price; without one of these, whatever was spent was known wholly.
        return 1.0 if sample.unpriced == 0 and sample.spent_usd else None
    billable = sample.priced + sample.unpriced
    return sample.priced / billable if billable else None


def cost_per_task(sample: Sample) -> float | None:
    """Return all spend ÷ successes, in USD: what failed runs cost is paid by those that succeed.

    None without a success, and where no billable call has a known cost. Below full coverage it is a lower bound.
    """
    nothing_known = sample.unpriced != 0 and not sample.priced and not sample.spent_usd
    if sample.spent_usd is None or nothing_known or not sample.successes:
        return None
    return float(sample.spent_usd) / sample.successes


def dictionary(sample: Sample) -> dict[str, float | None]:
    """Return the five keys, rounded to 2 decimals (cost: 4).

    0.0 stands where nothing was there to measure. None stands for user correctness without feedback, for cost
    where money was spent and nothing succeeded or no price is known, and for what a filter cannot tell.
    """
    spent = sample.spent_usd != 0 or sample.unpriced != 0
    return {
        G_SUCCESS_RATE: round(success_rate(sample) or 0.0, 2),
        G_P95_LATENCY_MS: round(sample.p95_ms or 0.0, 2),
        G_COST_PER_TASK: _rounded(cost_per_task(sample), 4, None if spent else 0.0),
        G_USER_CORRECTNESS: _rounded(correctness(sample), 2, None),
        G_VIOLATION_RATE: _rounded(violation_rate(sample), 2, None if sample.violations is None else 0.0),
    }


def _rounded(value: float | None, digits: int, otherwise: float | None) -> float | None:
    return otherwise if value is None else round(value, digits)
