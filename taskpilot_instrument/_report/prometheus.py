"""Figures of a report from Prometheus: what the families grew by."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from math import inf
from typing import Final, NamedTuple, TypedDict

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument import semconv
from taskpilot_instrument._growth import Growth, quoted
from taskpilot_instrument._prometheus import Prometheus
from taskpilot_instrument._records import was_sent
from taskpilot_instrument._report.figures import Counts, Figures
from taskpilot_instrument._report.times import Stretch
from taskpilot_instrument._waste import is_in_vain
from taskpilot_instrument.semconv import NONE
from taskpilot_instrument.settings import Settings

#: A month may have much to read.
_TIMEOUT_S: Final = 120.0
_PICO: Final = 10**12
#: What no family tells.
LACKS: Final = frozenset(
    {
        hourly.CHECKED, hourly.CHECK_FAILED, hourly.LOST, hourly.PRICED, hourly.WASTED_CALLS, hourly.WASTED_UNPRICED,
    }
)  # fmt: skip
_TOKENS: Final = {str(semconv.TokenKind.INPUT): hourly.INPUT, str(semconv.TokenKind.OUTPUT): hourly.OUTPUT}


Labels = Mapping[str, str]


class _Asked(NamedTuple):
    """A family, the labels that are told apart, and what takes what it grew by into the figures of a stretch."""

    family: str
    by: tuple[str, ...]
    take: Callable[[Figures, Labels, float], None]


def _take_runs(figures: Figures, labels: Labels, count: float) -> None:
    _run(figures, labels, {hourly.RUNS: count, f"{hourly.OUTCOME}{labels.get(semconv.OUTCOME, NONE)}": count})


def _take_run_seconds(figures: Figures, labels: Labels, seconds: float) -> None:
    _run(figures, labels, {hourly.MICROSECONDS: seconds * 1e6})


def _take_run_bucket(figures: Figures, labels: Labels, count: float) -> None:
    _run(figures, labels, {f"{hourly.BUCKET}{_bound(float(labels['le']))}": count})


def _take_violations(figures: Figures, labels: Labels, count: float) -> None:
    _run(figures, labels, {hourly.VIOLATIONS: count, f"{hourly.POLICY}{hourly.plain(labels.get('policy'))}": count})


def _take_blocks(figures: Figures, labels: Labels, count: float) -> None:
    _run(figures, labels, {hourly.GUARDRAIL_BLOCKS: count})


def _take_calls(figures: Figures, labels: Labels, count: float) -> None:
    outcome = labels.get(semconv.OUTCOME, NONE)
    counts = {hourly.CALLS: count, f"{hourly.OUTCOME}{outcome}": count}
    if is_in_vain(outcome):
        counts[hourly.WASTED_ATTEMPTS] = count
    error = labels.get("error_type", NONE)
    if error != NONE and was_sent(outcome):
        counts[f"{hourly.ERROR}{hourly.plain(error)}"] = count
    _call(figures, labels, counts)


def _take_call_seconds(figures: Figures, labels: Labels, seconds: float) -> None:
    _call(figures, labels, {hourly.MICROSECONDS: seconds * 1e6})


def _take_timed_calls(figures: Figures, labels: Labels, count: float) -> None:
    _call(figures, labels, {hourly.TIMED: count})


def _take_tokens(figures: Figures, labels: Labels, count: float) -> None:
    name = _TOKENS.get(labels.get(semconv.L_KIND, ""))
    if name is not None:  # the other kinds are parts of these
        _call(figures, labels, {name: count})


def _take_cost(figures: Figures, labels: Labels, dollars: float) -> None:
    _call(figures, labels, {hourly.COST: round(dollars * _PICO)})


def _take_unpriced(figures: Figures, labels: Labels, count: float) -> None:
    _call(figures, labels, {hourly.UNPRICED: count})


def _take_retries(figures: Figures, labels: Labels, count: float) -> None:
    _call(figures, labels, {hourly.RETRIES: count, hourly.WASTED_ATTEMPTS: count})


def _take_wasted_tokens(figures: Figures, labels: Labels, count: float) -> None:
    _call(figures, labels, {hourly.WASTED_TOKENS: count})


def _take_wasted_cost(figures: Figures, labels: Labels, dollars: float) -> None:
    _call(figures, labels, {hourly.WASTED: round(dollars * _PICO)})


def _take_feedback(figures: Figures, labels: Labels, count: float) -> None:
    if labels.get(semconv.L_VERDICT) == semconv.VERDICT_CORRECT:
        figures.correct += count
    else:
        figures.incorrect += count


def _run(figures: Figures, labels: Labels, counts: Mapping[str, float]) -> None:
    figures.add_runs(labels.get(semconv.WORKFLOW, NONE), counts)


def _call(figures: Figures, labels: Labels, counts: Mapping[str, float]) -> None:
    figures.add_calls(labels.get(semconv.AGENT, NONE), labels.get(semconv.MODEL, NONE), counts)


_ASKED: Final = (
    _Asked(semconv.M_WORKFLOW_RUNS, (semconv.WORKFLOW, semconv.OUTCOME), _take_runs),
    _Asked(f"{semconv.M_WORKFLOW_DURATION}_sum", (semconv.WORKFLOW,), _take_run_seconds),
    _Asked(f"{semconv.M_WORKFLOW_DURATION}_bucket", (semconv.WORKFLOW, "le"), _take_run_bucket),
    _Asked(semconv.M_POLICY_VIOLATIONS, ("policy",), _take_violations),
    _Asked(semconv.M_GUARDRAIL_BLOCKS, (), _take_blocks),
    _Asked(semconv.M_LLM_CALLS, (semconv.AGENT, semconv.MODEL, semconv.OUTCOME, "error_type"), _take_calls),
    _Asked(f"{semconv.M_LLM_DURATION}_sum", (semconv.MODEL,), _take_call_seconds),
    _Asked(f"{semconv.M_LLM_DURATION}_count", (semconv.MODEL,), _take_timed_calls),
    _Asked(semconv.M_LLM_TOKENS, (semconv.AGENT, semconv.MODEL, semconv.L_KIND), _take_tokens),
    _Asked(semconv.M_LLM_COST, (semconv.AGENT, semconv.MODEL), _take_cost),
    _Asked(semconv.M_LLM_UNPRICED, (semconv.MODEL,), _take_unpriced),
    _Asked(semconv.M_LLM_RETRIES, (semconv.AGENT, semconv.MODEL), _take_retries),
    _Asked(semconv.M_LLM_WASTED_TOKENS, (semconv.AGENT, semconv.MODEL), _take_wasted_tokens),
    _Asked(semconv.M_LLM_WASTED_COST, (semconv.AGENT, semconv.MODEL), _take_wasted_cost),
    _Asked(semconv.M_FEEDBACK, (semconv.L_VERDICT,), _take_feedback),
)


class PrometheusSource:
    """A Prometheus as a source of reports.

    :param url: its address; ``?job=taskpilot`` at its end narrows it down to one service. A bearer token comes from
        ``TASKPILOT_SOURCE_TOKEN``.
    :raises ConfigurationError: where it is no address.
    """

    grain = timedelta(seconds=1)
    notes: tuple[str, ...] = (
        "What a process did after it was scraped for the last time is not in Prometheus, and what it did just before a "
        "period began may count in it: figures are exact to the scrape.",
        "Which runs were checked, and the share of calls whose cost is known, is in no metric: a ledger tells it.",
    )

    def __init__(self, url: str) -> None:
        settings = Settings()
        timeout_s = max(_TIMEOUT_S, settings.source_timeout_s)
        self._prometheus = Prometheus(url, token=settings.source_token, timeout_s=timeout_s, given_as="prometheus")
        self.name = f"Prometheus {self._prometheus.address}"
        matchers = ",".join(f"{name}={quoted(value)}" for name, value in self._prometheus.matchers.items())
        if matchers:
            self.name += f" {{{matchers}}}"

    def read(self, stretch: Stretch, slots: Sequence[Stretch]) -> tuple[Figures, list[Figures]]:
        """Return the figures of a stretch, and of each of its slots."""
        if not stretch.length:
            return Figures(LACKS), [Figures(LACKS) for _ in slots]
        growth = Growth(self._prometheus, {}, **_window(stretch))
        parts = [self._figures(growth.within(**_window(slot))) if slot.length else Figures(LACKS) for slot in slots]
        return self._figures(growth), parts

    def close(self) -> None:
        """Do nothing: no connection is kept."""

    def _figures(self, growth: Growth) -> Figures:
        figures = Figures(LACKS)
        for family, by, take in _ASKED:
            for values, grown in growth.of_each(family, by).items():
                if grown > 0:
                    take(figures, {label: value for label, value in zip(by, values, strict=True) if value}, grown)
        for counts in figures.runs.values():
            _unpile(counts)
        return figures


def _unpile(counts: Counts) -> None:
    """Leave in each bucket the runs that are in it: Prometheus's buckets hold those below them too."""
    below = 0.0
    for bound in (*semconv.DURATION_BUCKETS, inf):
        name = f"{hourly.BUCKET}{_bound(bound)}"
        reached = counts.get(name, 0.0)
        if name in counts:
            counts[name] = max(0.0, reached - below)
        below = max(below, reached)


def _bound(bound: float) -> str:
    return "+Inf" if bound == inf else f"{bound:g}"


class _Window(TypedDict):
    at_ms: int
    window_ms: int


def _window(stretch: Stretch) -> _Window:
    at_ms, since_ms = (round(moment.timestamp() * 1000) for moment in (stretch.until, stretch.since))
    return {"at_ms": at_ms, "window_ms": at_ms - since_ms}
