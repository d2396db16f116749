"""Golden signals as JSON, and back: what one process answers with, another one shows as its own."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from math import inf, isfinite
from typing import Any

from taskpilot_instrument._verdicts import THRESHOLDS
from taskpilot_instrument._waste import Lost, Waste, WasteInMetrics
from taskpilot_instrument.golden import GoldenSignals, of_sample
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks._signals import Sample, percent


def to_json(found: GoldenSignals) -> dict[str, Any]:
    """Return golden signals with their verdicts, thresholds and what they rest on."""
    verdicts = found.verdicts
    return {
        "verdict": str(found.verdict),
        "source": found.source,
        "window_seconds": found.window_seconds,
        "since": None if found.since is None else found.since.isoformat(),
        "workflow": found.workflow,
        "agent": found.agent,
        "model": found.model,
        "runs": found.runs,
        "successes": found.successes,
        "feedback": found.feedback,
        "feedback_response_rate_percent": percent(found.feedback, found.runs),
        "violations": found.violations,
        "checked_runs": found.checked_runs,
        "check_failed_runs": found.check_failed_runs,
        "total_cost_usd": found.total_cost_usd,
        "wasted_cost_usd": found.wasted_cost_usd,
        "wasted_unpriced_calls": found.wasted_unpriced_calls,
        "retries": found.retries,
        "blocked_calls": found.blocked_calls,
        "failed": _lost(found.failed),
        "blocked": _lost(found.blocked),
        "cost_coverage": found.cost_coverage,
        "p95_bounds_ms": _bounds(found.sample),
        "signals": {
            key: {
                "value": value,
                "verdict": str(verdicts[key]),
                "healthy": THRESHOLDS[key].healthy if key in THRESHOLDS else None,
                "warning": THRESHOLDS[key].warning if key in THRESHOLDS else None,
            }
            for key, value in found.values.items()
        },
        "sample": _sample(found.sample),
    }


def from_json(told: Mapping[str, Any]) -> GoldenSignals:
    """Return the golden signals that :func:`to_json` was given.

    :raises KeyError: (or TypeError, or ArithmeticError) for the answer of another release.
    """
    about = told["sample"]
    wasted, lost, bounds = about["wasted"], about["lost"], told["p95_bounds_ms"]
    of_waste = WasteInMetrics if wasted is not None and wasted["calls"] is None else Waste
    sample = Sample(
        **about
        | {
            "spent_usd": None if about["spent_usd"] is None else Decimal(about["spent_usd"]),
            "wasted": None if wasted is None else of_waste(**wasted | {"usd": Decimal(wasted["usd"])}),
            "lost": None if lost is None else {Outcome(outcome): _lost_again(each) for outcome, each in lost.items()},
            "p95_bounds_ms": None if bounds is None else (bounds[0], inf if bounds[1] is None else bounds[1]),
        }
    )
    since = None if told["since"] is None else datetime.fromisoformat(told["since"])
    return of_sample(
        sample, told["window_seconds"], told["workflow"], told["agent"], told["model"], told["source"], since
    )


def _sample(sample: Sample) -> dict[str, Any]:
    """Return what the signals were computed from; money is text, with all its digits."""
    told, wasted = sample._asdict(), sample.wasted
    del told["p95_bounds_ms"]
    told["spent_usd"] = None if sample.spent_usd is None else f"{sample.spent_usd:f}"
    told["wasted"] = None if wasted is None else wasted._asdict() | {"usd": f"{wasted.usd:f}"}
    told["lost"] = (
        None
        if sample.lost is None
        else {str(outcome): each._asdict() | {"usd": f"{each.usd:f}"} for outcome, each in sample.lost.items()}
    )
    return told


def _lost(found: Lost | None) -> dict[str, Any] | None:
    """Return what runs that did not succeed came to."""
    return None if found is None else {"runs": found.runs, "cost_usd": float(found.usd), "unpriced": found.unpriced}


def _lost_again(told: Mapping[str, Any]) -> Lost:
    return Lost(told["runs"], Decimal(told["usd"]), told["unpriced"])


def _bounds(sample: Sample) -> list[float | None] | None:
    """Return the bounds as strict JSON has them: None beyond the last."""
    return None if sample.p95_bounds_ms is None else [each if isfinite(each) else None for each in sample.p95_bounds_ms]
