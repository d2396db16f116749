"""What the page shows, as JSON, and the answers of the API."""

import math
from typing import Any, Final

from taskpilot_instrument.errors import LedgerError, SourceError
from taskpilot_instrument.golden import THRESHOLDS, GoldenSignals
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.semconv import (
    AGENT,
    G_COST_PER_TASK,
    G_P95_LATENCY_MS,
    G_SUCCESS_RATE,
    MODEL,
    N_COST_AGENT,
    N_COST_MODEL,
)
from taskpilot_instrument.sinks._signals import percent
from taskpilot_instrument.sinks.ring import Ring
from taskpilot_instrument.web.shown import UNKNOWN, Shown

#: How many points a sparkline has, and how many seconds each stands for.
_POINTS: Final = 30
_POINT_S: Final = 10
_SHOWN_RUNS: Final = 30
_SHOWN_EVENTS: Final = 50
#: What the dotted names of costs begin with, by what they are told apart by.
_COST_NAMES: Final = {AGENT: N_COST_AGENT.format(agent=""), MODEL: N_COST_MODEL.format(model="")}


def signals(found: GoldenSignals) -> dict[str, Any]:
    """Return golden signals with their verdicts, thresholds and what they rest on."""
    verdicts = found.verdicts
    return {
        "verdict": str(found.verdict),
        "source": found.source,
        "window_seconds": found.window_seconds,
        "runs": found.runs,
        "successes": found.successes,
        "feedback": found.feedback,
        "feedback_response_rate_percent": percent(found.feedback, found.runs),
        "violations": found.violations,
        "checked_runs": found.checked_runs,
        "check_failed_runs": found.check_failed_runs,
        "total_cost_usd": found.total_cost_usd,
        "wasted_cost_usd": found.wasted_cost_usd,
        "cost_coverage": found.cost_coverage,
        "p95_bounds_ms": found.sample.p95_bounds_ms,
        "signals": {
            key: {
                "value": value,
                "verdict": str(verdicts[key]),
                "healthy": THRESHOLDS[key].healthy if key in THRESHOLDS else None,
                "warning": THRESHOLDS[key].warning if key in THRESHOLDS else None,
            }
            for key, value in found.values.items()
        },
    }


def budgets(handle: Instrumentation) -> list[dict[str, Any]]:
    """Return how every budget stands.

    :raises LedgerError: where the ledger cannot be reached.
    """
    return [
        {
            "name": status.name,
            "window": status.window,
            "account": status.account,
            "spent_usd": str(status.spent_usd),
            "reserved_usd": str(status.reserved_usd),
            "limit_usd": str(status.limit_usd),
            "ratio": status.ratio,
            "resets_at": status.resets_at.isoformat() if status.resets_at is not None else None,
            "on_exceed": status.on_exceed,
        }
        for status in handle.budgets()
    ]


def costs(handle: Instrumentation) -> dict[str, dict[str, float]]:
    """Return what was spent by agent and by model, in USD."""
    counters: Any = handle.metrics.get_all_metrics()["counters"]
    found: dict[str, dict[str, float]] = {by: {} for by in _COST_NAMES}
    for name, value in counters.items():
        for by, spent in found.items():
            prefix = _COST_NAMES[by]
            if name.startswith(prefix) and value:
                spent[name.removeprefix(prefix)] = value
    return {by: dict(sorted(spent.items(), key=lambda item: -item[1])[:20]) for by, spent in found.items()}


def snapshot(handle: Instrumentation, ring: Ring, shown: Shown, window: str | None) -> dict[str, Any]:
    """Return everything that the page shows."""
    runs = ring.runs()
    problems: list[str] = []
    try:
        standing = budgets(handle)
    except LedgerError as error:
        standing = []
        problems.append(str(error))
    try:
        golden = shown.signals(handle, window=window)
    except SourceError as error:
        golden = UNKNOWN
        problems.append(str(error))
    found: dict[str, Any] = clean({
        "service": handle.settings.service_name,
        "signals": signals(golden),
        "series": _series(runs),
        "runs": runs[:_SHOWN_RUNS],
        "events": ring.events(_SHOWN_EVENTS),
        "costs": costs(handle),
        "budgets": standing,
        "problems": problems,
    })  # fmt: skip
    return found


def _series(runs: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Return success rate, latency and cost over time, oldest first; None where nothing ended."""
    found: dict[str, list[float | None]] = {G_SUCCESS_RATE: [], G_P95_LATENCY_MS: [], G_COST_PER_TASK: []}
    if not runs:
        return found
    latest = max(run["started"] + run["ms"] / 1000 for run in runs)
    for point in range(_POINTS, 0, -1):
        since = latest - point * _POINT_S
        ended = [run for run in runs if since < run["started"] + run["ms"] / 1000 <= since + _POINT_S]
        well = sum(run["outcome"] == "success" for run in ended)
        costs = [run["cost_usd"] for run in ended if run["cost_usd"] is not None]
        latencies = sorted(run["ms"] for run in ended)
        found[G_SUCCESS_RATE].append(100 * well / len(ended) if ended else None)
        found[G_P95_LATENCY_MS].append(latencies[math.ceil(0.95 * len(latencies)) - 1] if ended else None)
        found[G_COST_PER_TASK].append(sum(costs) / well if well else None)
    return found


def clean(value: Any) -> Any:
    """Return a value that strict JSON has: no infinities."""
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
