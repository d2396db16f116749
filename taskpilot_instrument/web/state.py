"""What the page shows, as JSON, and the answers of the API."""

import math
from collections import Counter
from typing import Any, Final

from taskpilot_instrument._signals_json import to_json
from taskpilot_instrument.errors import ConfigurationError, LedgerError, SourceError
from taskpilot_instrument.golden import GoldenSignals, parse_window
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.semconv import AGENT, MODEL, NONE, WORKFLOW, Outcome
from taskpilot_instrument.web.breakdown import by_agent, by_workflow
from taskpilot_instrument.web.live import Paced
from taskpilot_instrument.web.series import Series
from taskpilot_instrument.web.shown import UNKNOWN, Shown

_SHOWN_RUNS: Final = 25
_SHOWN_FAILURES: Final = 15
_SHOWN_EVENTS: Final = 50
_SHOWN_NAMES: Final = 20
_FILTERS: Final = (WORKFLOW, AGENT, MODEL)


def signals(found: GoldenSignals, handle: Instrumentation, asked: dict[str, str]) -> dict[str, Any]:
    """Return golden signals; where nothing ran of what was asked for, also which names there are."""
    told = to_json(found)
    if not found.runs and found.source is None:
        told["known"] = {label: known for label in _FILTERS if label in asked and (known := _names(handle, label))}
    return told


def _names(handle: Instrumentation, label: str) -> list[str]:
    buckets = handle.metrics.windows.select()
    return sorted({getattr(key, label) for bucket in buckets for key in bucket.cells} - {NONE})[:_SHOWN_NAMES]


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
            "soft_ratio": status.soft_ratio,
            "refused_calls": status.refused_calls,
        }
        for status in handle.budgets()
    ]


def breakdowns(handle: Instrumentation, seconds: int | None) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each workflow and of each agent, those with failures first."""
    buckets = handle.metrics.windows.select(None if seconds is None else seconds * 1_000_000_000)
    return {"workflows": by_workflow(buckets), "agents": by_agent(buckets)}


def health(handle: Instrumentation) -> list[str]:
    """Return what is wrong with the instrumentation itself, so that the figures may not be whole."""
    found = handle.health()
    swallowed = ", ".join(f"{where} {count:,}" for where, count in sorted((found.errors_swallowed or {}).items()))
    return [
        *([f"not patched: {', '.join(found.missing)}"] if found.missing else []),
        *([f"errors of its own: {swallowed}"] if swallowed else []),
        *([f"{found.spans_dropped:,} spans were lost on the way"] if found.spans_dropped else []),
    ]


def models(
    handle: Instrumentation, window: str | None = None, agent: str | None = None, reprice: str = ""
) -> dict[str, Any]:
    """Return how the models stand beside each other.

    :param reprice: models at whose prices the traffic is to be told, too, with commas between them.
    :raises ConfigurationError: for a window that cannot be read, or a model without a price.
    """
    others = [name.strip() for name in reprice.split(",") if name.strip()]
    return handle.compare_models(window=window, agent=agent, reprice=others).as_dict()


def experiments(handle: Instrumentation) -> list[dict[str, Any]]:
    """Return the report of every experiment, or why there is none."""
    found = []
    for name in handle.experiment_names():
        try:
            found.append(handle.experiment_report(name).as_dict())
        except ConfigurationError as error:
            found.append({"experiment": name, "problem": str(error)})
    return found


def snapshot(
    handle: Instrumentation, series: Series, shown: Shown, window: str | None, paced: Paced | None = None
) -> dict[str, Any]:
    """Return everything that the page shows.

    :param paced: who watches may be given comparisons that are a few seconds old, where they take long to make.
    :raises ConfigurationError: for a window that cannot be read.
    """
    seconds = parse_window(window) if window is not None else None
    ring, problems, paced = handle.ring(), list[str](), paced or Paced()
    try:
        standing = budgets(handle)
    except LedgerError as error:
        standing = []
        problems.append(str(error))
    runs, over = ring.runs(), series.over(seconds)
    try:
        golden = shown.signals(handle, window=window)
    except SourceError as error:
        golden = UNKNOWN
        problems.append(str(error))
    found: dict[str, Any] = clean({
        "service": handle.settings.service_name,
        "source": shown.address(handle),
        "signals": to_json(golden),
        "series": over._asdict(),
        "runs": runs[:_SHOWN_RUNS],
        "older_failures": _failures(runs[_SHOWN_RUNS:]),
        "events": ring.events(_SHOWN_EVENTS),
        **paced.get("breakdowns", window, lambda: breakdowns(handle, seconds)),
        "models": paced.get("models", window, lambda: models(handle, window)),
        "experiments": paced.get("experiments", None, lambda: experiments(handle)),
        "budgets": standing,
        "problems": problems,
        "health": paced.get("health", None, lambda: health(handle)),
    })  # fmt: skip
    return found


def _failures(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the latest runs of each outcome but success: many that were refused hide none that failed."""
    counted = Counter[str]()
    found = []
    for run in runs:
        counted[run["outcome"]] += 1
        if run["outcome"] != Outcome.SUCCESS and counted[run["outcome"]] <= _SHOWN_FAILURES:
            found.append(run)
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
