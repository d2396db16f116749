"""How a golden signal stands: its thresholds, and the word for where a value lies against them."""

from enum import StrEnum
from typing import Final, NamedTuple

from taskpilot_instrument.semconv import G_COST_PER_TASK, G_P95_LATENCY_MS, G_SUCCESS_RATE, G_VIOLATION_RATE


class Verdict(StrEnum):
    """Say how a signal stands against its thresholds."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


class Threshold(NamedTuple):
    """Bounds of a signal: healthy up to the first, warning up to the second (or down to them), critical beyond."""

    healthy: float
    warning: float
    more_is_better: bool = False


#: User correctness has no threshold: how many users answer, and which, differs too much between applications.
THRESHOLDS: Final[dict[str, Threshold]] = {
    G_SUCCESS_RATE: Threshold(95, 90, more_is_better=True),
    G_P95_LATENCY_MS: Threshold(2_000, 5_000),
    G_COST_PER_TASK: Threshold(0.10, 0.50),
    G_VIOLATION_RATE: Threshold(1, 2),
}
#: What stands in place of a verdict on the others.
NO_THRESHOLD: Final = "no threshold"


def judge(key: str, value: float | None) -> Verdict:
    """Return how a signal stands; unknown without a value or a threshold.

    :param key: the signal's key in the five-key dictionary.
    """
    threshold = THRESHOLDS.get(key)
    if value is None or threshold is None:
        return Verdict.UNKNOWN
    sign = -1 if threshold.more_is_better else 1
    if sign * value <= sign * threshold.healthy:
        return Verdict.HEALTHY
    return Verdict.WARNING if sign * value <= sign * threshold.warning else Verdict.CRITICAL
