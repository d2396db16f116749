"""Figures of a report from Prometheus: what the families grew by, as the recording rules have it."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from math import inf
from typing import Final, NamedTuple

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument import semconv
from taskpilot_instrument._prometheus import Prometheus, Series
from taskpilot_instrument._report_figures import Counts, Figures
from taskpilot_instrument._report_times import Stretch
from taskpilot_instrument.semconv import NONE
from taskpilot_instrument.settings import Settings

#: A month may have much to read.
_TIMEOUT_S: Final = 120.0
_PICO: Final = 10**12
_SLOT: Final = "slot"
#: What no family tells.
LACKS: Final = frozenset(
    {
        hourly.CHECKED, hourly.CHECK_FAILED, hourly.PRICED, hourly.WASTED, hourly.WASTED_TOKENS, hourly.WASTED_CALLS,
        hourly.WASTED_UNPRICED, hourly.WASTED_ATTEMPTS, hourly.RETRIES,
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
    counts = {hourly.CALLS: count, f"{hourly.OUTCOME}{labels.get(semconv.OUTCOME, NONE)}": count}
    error = labels.get("error_type", NONE)
    if error != NONE:
        counts[f"{hourly.ERROR}{hourly.plain(error)}"] = count
    _call(figures, labels, counts)


def _take_call_seconds(figures: Figures, labels: Labels, seconds: float) -> None:
    _call(figures, labels, {hourly.MICROSECONDS: seconds * 1e6})


def _take_tokens(figures: Figures, labels: Labels, count: float) -> None:
    name = _TOKENS.get(labels.get(semconv.L_KIND, ""))
    if name is not None:  # the other kinds are parts of these
        _call(figures, labels, {name: count})


def _take_cost(figures: Figures, labels: Labels, dollars: float) -> None:
    _call(figures, labels, {hourly.COST: round(dollars * _PICO)})


def _take_unpriced(figures: Figures, labels: Labels, count: float) -> None:
    _call(figures, labels, {hourly.UNPRICED: count})


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
    _Asked(semconv.M_LLM_TOKENS, (semconv.AGENT, semconv.MODEL, semconv.L_KIND), _take_tokens),
    _Asked(semconv.M_LLM_COST, (semconv.AGENT, semconv.MODEL), _take_cost),
    _Asked(semconv.M_LLM_UNPRICED, (semconv.MODEL,), _take_unpriced),
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
        "Prometheus reckons growth from samples: counts are estimates, money is rounded, and figures of the parts need "
        "not add up to the whole.",
        "What was wasted, retried or checked is in no metric: a ledger tells it.",
    )

    def __init__(self, url: str) -> None:
        settings = Settings()
        timeout_s = max(_TIMEOUT_S, settings.source_timeout_s)
        self._prometheus = Prometheus(url, token=settings.source_token, timeout_s=timeout_s)
        self.name = f"Prometheus {self._prometheus.address}"
        self._selector = ",".join(f"{name}={_quoted(value)}" for name, value in self._prometheus.matchers.items())
        if self._selector:
            self.name += f" {{{self._selector}}}"

    def read(self, stretch: Stretch, slots: Sequence[Stretch]) -> tuple[Figures, list[Figures]]:
        """Return the figures of a stretch, and of each of its slots."""
        (whole,) = self._figures([stretch])
        return whole, self._figures(slots) if slots else []

    def close(self) -> None:
        """Do nothing: no connection is kept."""

    def _figures(self, stretches: Sequence[Stretch]) -> list[Figures]:
        found = [Figures(LACKS) for _ in stretches]
        if all(not stretch.length for stretch in stretches):
            return found

        for asked in _ASKED:
            for series in self._ask(asked, stretches):
                grown = series.points[-1][1]
                if grown > 0:
                    asked.take(found[int(series.labels[_SLOT])], series.labels, grown)
        for figures in found:
            for counts in figures.runs.values():
                _unpile(counts)
        return found

    def _ask(self, asked: _Asked, stretches: Sequence[Stretch]) -> list[Series]:
        """Return what a family grew by in each stretch, whose number is the label ``slot``."""
        parts = [
            f'label_replace({growth(asked.family, asked.by, stretch, self._selector)}, "{_SLOT}", "{number}", "", "")'
            for number, stretch in enumerate(stretches)
            if stretch.length
        ]
        return self._prometheus.query(" or ".join(parts), stretches[-1].until.timestamp())


def growth(family: str, by: Sequence[str], stretch: Stretch, selector: str = "") -> str:
    """Return the expression of the recording rules for what a family grew by, here of any stretch of time.

    It is what ``increase`` finds, and the value that a series was born with: ``increase`` sees only what comes after
    its first sample. A series was born where the hour before the stretch has nothing of it.

    :param by: labels that are told apart.
    :param selector: matchers of labels.
    """
    range_s, at = round(stretch.length.total_seconds()), f"@ {stretch.until.timestamp():.3f}"
    series = f"{family}{{{selector}}}"
    within, hour_before = f"{series}[{range_s}s] {at}", f"{series}[1h] {at} offset {range_s}s"
    increase = f"increase({within})"
    born = f"min_over_time({within}) unless max_over_time({hour_before})"
    return f"sum by ({', '.join(by)}) ({increase} + ({born}) or {increase})"


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


def _quoted(value: str) -> str:
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
