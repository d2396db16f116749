"""The golden signals over time: what sparklines are drawn of."""

from typing import Final, NamedTuple

from taskpilot_instrument import _forks
from taskpilot_instrument.semconv import (
    G_COST_PER_TASK,
    G_P95_LATENCY_MS,
    G_SUCCESS_RATE,
    G_USER_CORRECTNESS,
    G_VIOLATION_RATE,
)
from taskpilot_instrument.sinks import _signals
from taskpilot_instrument.sinks._figures import golden_sample
from taskpilot_instrument.sinks._windows import Bucket, Windows

_SECOND: Final = 1_000_000_000
_MOST_POINTS: Final = 60
#: How wide a point may be, in seconds, and what is shown of a process by how old it is.
_WIDTHS: Final = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)
_PERIODS: Final = (300, 900, 3600)
RUNS: Final = "runs"
_KEYS: Final = (RUNS, G_SUCCESS_RATE, G_P95_LATENCY_MS, G_COST_PER_TASK, G_USER_CORRECTNESS, G_VIOLATION_RATE)
_Point = tuple[float | None, ...]
_NOTHING: Final[_Point] = (0, *[None] * (len(_KEYS) - 1))


class Over(NamedTuple):
    """Signals over a period, oldest first; None where nothing ended.

    :param seconds: from the first point to now.
    :param width_s: seconds that each point stands for; the last one has just begun.
    """

    seconds: int
    width_s: int
    points: dict[str, list[float | None]]


class Series:
    """Compute each point once, as what is over does not change."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._lock = _forks.lock()
        self._over: dict[int, dict[int, _Point]] = {width: {} for width in _WIDTHS}

    def over(self, window_s: int | None) -> Over:
        """Return the signals over a window.

        :param window_s: seconds; None takes what there is of the last hour.
        """
        seconds = window_s or self._period()
        width = next(width for width in _WIDTHS if seconds <= width * _MOST_POINTS)
        width_ns, count = width * _SECOND, -(-seconds // width)
        with self._lock:
            now, known = self._windows.now(width_ns), self._over[width]
            first = now - count + 1
            missing = next((number for number in range(first, now) if number not in known), now)
            found = self._windows.stretches(width_ns, missing)
            for number in [number for number in known if number < first]:
                del known[number]
            # Read after ``now``, so that what it was then is over, and what it is by now may not be.
            known.update((number, _point(found.get(number))) for number in range(missing, now))
            rows = [known[number] for number in range(first, now)] + [_point(found.get(now))]
        return Over(seconds, width, {key: [row[place] for row in rows] for place, key in enumerate(_KEYS)})

    def _period(self) -> int:
        age = self._windows.now(_SECOND) - self._windows.began_ns // _SECOND
        return next((period for period in _PERIODS if age <= period), _PERIODS[-1])


def _point(buckets: list[Bucket] | None) -> _Point:
    if not buckets:
        return _NOTHING
    sample = golden_sample(buckets, None, None, None)
    return (
        sample.runs,
        _signals.success_rate(sample),
        sample.p95_ms,
        _signals.cost_per_task(sample),
        _signals.correctness(sample),
        _signals.violation_rate(sample),
    )
