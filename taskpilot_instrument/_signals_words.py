"""The golden signals in words: a row for each, with what it rests on."""

from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Final

from taskpilot_instrument._display import milliseconds, number, of, percent, span, usd
from taskpilot_instrument._verdicts import NO_THRESHOLD, THRESHOLDS
from taskpilot_instrument._waste import Lost, Waste, WasteInMetrics
from taskpilot_instrument.semconv import (
    G_COST_PER_TASK,
    G_P95_LATENCY_MS,
    G_SUCCESS_RATE,
    G_USER_CORRECTNESS,
    G_VIOLATION_RATE,
)

if TYPE_CHECKING:
    from taskpilot_instrument.golden import GoldenSignals

#: How the cost is called, by what is counted.
_COSTS: Final = {"run": "cost per task", "agent run": "cost per agent run", "call": "cost per call"}


def text(found: "GoldenSignals") -> str:
    """Return them as a table of plain text."""
    rows = _rows(found)
    labels, values, verdicts = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [_caption(found)]
    lines += [
        f"  {label:<{labels}}  {value:>{values}}  {verdict:<{verdicts}}  {basis}"
        for label, value, verdict, basis in rows
    ]
    return "\n".join(lines)


def html(found: "GoldenSignals") -> str:
    """Return them as a table of HTML."""
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in _rows(found))
    return f"<table><caption>{escape(_caption(found))}</caption>{rows}</table>"


def _caption(found: "GoldenSignals") -> str:
    return f"Golden signals, {_scope(found)}: {found.verdict}"


def _scope(found: "GoldenSignals") -> str:
    asked = (("workflow", found.workflow), ("agent", found.agent), ("model", found.model))
    source = () if found.source is None else (f"by {found.source}",)
    return ", ".join([_window(found), *(f"{what} {name}" for what, name in asked if name is not None), *source])


def _window(found: "GoldenSignals") -> str:
    if found.window_seconds is not None:
        return f"last {span(found.window_seconds)}"
    if found.source is not None:
        return "of all the time that it keeps"
    return "since the start" if found.since is None else f"since the start at {found.since:%Y-%m-%dT%H:%M:%SZ}"


def _spent(found: "GoldenSignals") -> str:
    sample, bound = found.sample, "≥ " if found.sample.unpriced != 0 else ""
    if sample.spent_usd is None:
        return "the spend is not known"
    said = f"{bound}{usd(float(sample.spent_usd))} spent"
    if sample.priced is not None and sample.unpriced is not None:
        said += f", {sample.priced} of {sample.priced + sample.unpriced} billable calls priced"
    elif sample.unpriced is not None:
        said += f", {of(sample.unpriced, 'call')} without a price"
    said += _wasted(found)
    for ended, lost in _lost(found):
        if lost.usd or lost.unpriced:
            said += f", {_least(lost)} in {ended} {found.counted}s"
    return said


def _wasted(found: "GoldenSignals") -> str:
    wasted, said = found.sample.wasted, ""
    if wasted is None:
        return said
    if wasted.calls:
        said = f", {_least(wasted)} wasted on {of(wasted.calls, 'call')}"
    elif wasted.calls is None and wasted.usd:
        said = f", {_least(wasted)} wasted"
    elif wasted.calls is None and wasted.unpriced is None and wasted.attempts > wasted.retries:
        said = ", waste not known"  # some calls were in vain, some are without a price: perhaps the same ones
    if wasted.retries:
        said += f", {wasted.retries:,} {'retry' if wasted.retries == 1 else 'retries'}"
    return said


def _lost(found: "GoldenSignals") -> list[tuple[str, Lost]]:
    both = ("failed", found.failed), ("blocked", found.blocked)
    return [(ended, lost) for ended, lost in both if lost is not None and lost.runs]


def _ended(found: "GoldenSignals") -> str:
    counted = f"{number(found.sample.successes)} of {number(found.sample.runs)} {found.counted}s"
    ends = [f"{lost.runs:,} {ended}" for ended, lost in _lost(found)]
    if found.blocked_calls and found.model is not None:
        ends.append(f"{found.blocked_calls:,} refused before sent")
    return ", ".join([counted, *ends])


def _timed(found: "GoldenSignals") -> str:
    if found.sample.p95_bounds_ms is None:
        return f"{found.sample.timed:,} timed"
    low, high = found.sample.p95_bounds_ms
    where = f"between {milliseconds(low)} and {milliseconds(high)}" if isfinite(high) else f"beyond {milliseconds(low)}"
    return f"{found.sample.timed:,} timed, {where}"


def _checks(found: "GoldenSignals") -> str:
    sample = found.sample
    if found.model is not None:
        return "not known of a model's calls"
    if sample.violations is None and found.workflow is not None:
        return "not known of one workflow: some were told by name, which carries none"
    counted = f"{number(sample.violations)} counted"
    if sample.checked is None or sample.check_failed is None:
        return counted
    if not sample.checked and not sample.check_failed:
        if not sample.runs:
            return counted
        # What the program reports needs no check; and a check counts with its run, once that is over.
        by = " by the program or in open runs" if sample.violations else ""
        return f"{counted}{by}, no {'finished ' if by else ''}run was checked"
    failed = f", {number(sample.check_failed)} could not be checked" if sample.check_failed else ""
    return f"{counted}, {number(sample.checked)} of {number(sample.runs)} {found.counted}s checked{failed}"


def _rows(found: "GoldenSignals") -> list[tuple[str, str, str, str]]:
    sample = found.sample
    verdicts = {key: judged if key in THRESHOLDS else NO_THRESHOLD for key, judged in found.verdicts.items()}
    cost, bound = found.cost_per_successful_task_usd, "≥ " if found.sample.unpriced != 0 else ""
    return [
        (
            "success rate",
            percent(found.success_rate),
            verdicts[G_SUCCESS_RATE],
            _ended(found),
        ),
        (
            "p95 latency",
            milliseconds(found.p95_latency_ms),
            verdicts[G_P95_LATENCY_MS],
            _timed(found),
        ),
        (
            _COSTS[found.counted],
            "–" if cost is None else f"{bound}{usd(cost)}",
            verdicts[G_COST_PER_TASK],
            _spent(found),
        ),
        (
            "user correctness",
            percent(found.user_confirmed_correctness_percent),
            verdicts[G_USER_CORRECTNESS],
            f"{number(sample.correct)} of {number(found.feedback)} confirmed",
        ),
        (
            "policy violations",
            percent(found.policy_violation_rate_percent),
            verdicts[G_VIOLATION_RATE],
            _checks(found),
        ),
    ]


def _least(spent: Lost | Waste | WasteInMetrics) -> str:
    """Show an amount, of which some may not be known."""
    if not spent.usd and spent.unpriced:
        return "an unknown sum"
    return f"{'' if spent.unpriced == 0 else '≥ '}{usd(float(spent.usd))}"
