"""Figures of a report from Prometheus: what the families grew by, as the recording rules have it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from math import inf
from typing import Final, NamedTuple

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument import semconv
from taskpilot_instrument._prometheus import Prometheus, Series
from taskpilot_instrument._report_figures import Figures
from taskpilot_instrument._report_times import Stretch
from taskpilot_instrument.semconv import NONE

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


class _Asked(NamedTuple):
    """A family, and the labels that are told apart."""

    family: str
    by: tuple[str, ...]


_RUNS: Final = _Asked(semconv.M_WORKFLOW_RUNS, (semconv.WORKFLOW, semconv.OUTCOME))
_RUN_SECONDS: Final = _Asked(f"{semconv.M_WORKFLOW_DURATION}_sum", (semconv.WORKFLOW,))
_RUN_BUCKETS: Final = _Asked(f"{semconv.M_WORKFLOW_DURATION}_bucket", (semconv.WORKFLOW, "le"))
_VIOLATIONS: Final = _Asked(semconv.M_POLICY_VIOLATIONS, ("policy",))
_BLOCKS: Final = _Asked(semconv.M_GUARDRAIL_BLOCKS, ())
_CALLS: Final = _Asked(semconv.M_LLM_CALLS, (semconv.AGENT, semconv.MODEL, semconv.OUTCOME, "error_type"))
_CALL_SECONDS: Final = _Asked(f"{semconv.M_LLM_DURATION}_sum", (semconv.MODEL,))
_USED: Final = _Asked(semconv.M_LLM_TOKENS, (semconv.AGENT, semconv.MODEL, semconv.L_KIND))
_COST: Final = _Asked(semconv.M_LLM_COST, (semconv.AGENT, semconv.MODEL))
_UNPRICED: Final = _Asked(semconv.M_LLM_UNPRICED, (semconv.MODEL,))
_FEEDBACK: Final = _Asked(semconv.M_FEEDBACK, (semconv.L_VERDICT,))


class PrometheusSource:
    """A Prometheus as a source of reports.

    :param url: its address; ``?job=taskpilot`` at its end narrows it down to one service.
    :raises ConfigurationError: where it is no address.
    """

    grain = timedelta(seconds=1)
    notes = (
        "Prometheus reckons growth from samples: counts are estimates, money is rounded, and figures of the parts need "
        "not add up to the whole.",
        "What was wasted, retried or checked is in no metric: a ledger tells it.",
    )

    def __init__(self, url: str) -> None:
        self._prometheus = Prometheus(url, timeout_s=_TIMEOUT_S)
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

        def grown(asked: _Asked) -> Iterable[tuple[Figures, Mapping[str, str], float]]:
            for series in self._ask(asked, stretches):
                value = series.points[-1][1]
                if value > 0:
                    yield found[int(series.labels[_SLOT])], series.labels, value

        for figures, labels, count in grown(_RUNS):
            outcome = f"{hourly.OUTCOME}{labels.get(semconv.OUTCOME, NONE)}"
            figures.add_runs(labels.get(semconv.WORKFLOW, NONE), {hourly.RUNS: count, outcome: count})
        for figures, labels, seconds in grown(_RUN_SECONDS):
            figures.add_runs(labels.get(semconv.WORKFLOW, NONE), {hourly.MICROSECONDS: seconds * 1e6})
        _add_buckets(grown(_RUN_BUCKETS))
        for figures, labels, count in grown(_VIOLATIONS):
            policy = f"{hourly.POLICY}{hourly.plain(labels.get('policy'))}"
            figures.add_runs(NONE, {hourly.VIOLATIONS: count, policy: count})
        for figures, _, count in grown(_BLOCKS):
            figures.add_runs(NONE, {hourly.GUARDRAIL_BLOCKS: count})
        for figures, labels, count in grown(_CALLS):
            _add_calls(figures, labels, count)
        for figures, labels, seconds in grown(_CALL_SECONDS):
            _call(figures, labels, {hourly.MICROSECONDS: seconds * 1e6})
        for figures, labels, count in grown(_USED):
            if labels.get(semconv.L_KIND) in _TOKENS:  # the others are parts of these
                _call(figures, labels, {_TOKENS[labels[semconv.L_KIND]]: count})
        for figures, labels, dollars in grown(_COST):
            _call(figures, labels, {hourly.COST: round(dollars * _PICO)})
        for figures, labels, count in grown(_UNPRICED):
            _call(figures, labels, {hourly.UNPRICED: count})
        for figures, labels, count in grown(_FEEDBACK):
            if labels.get(semconv.L_VERDICT) == semconv.VERDICT_CORRECT:
                figures.correct += count
            else:
                figures.incorrect += count
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


def _add_buckets(found: Iterable[tuple[Figures, Mapping[str, str], float]]) -> None:
    """Add runs under the bucket that each is in; Prometheus's buckets hold those below them too."""
    ladders: dict[tuple[int, str], tuple[Figures, list[tuple[float, float]]]] = {}
    for figures, labels, count in found:
        workflow = labels.get(semconv.WORKFLOW, NONE)
        ladder = ladders.setdefault((id(figures), workflow), (figures, []))
        ladder[1].append((float(labels["le"]), count))
    for (_, workflow), (figures, steps) in ladders.items():
        below = 0.0
        for bound, count in sorted(steps):
            name = "+Inf" if bound == inf else f"{bound:g}"
            figures.add_runs(workflow, {f"{hourly.BUCKET}{name}": max(0.0, count - below)})
            below = max(below, count)


def _add_calls(figures: Figures, labels: Mapping[str, str], count: float) -> None:
    counts = {hourly.CALLS: count, f"{hourly.OUTCOME}{labels.get(semconv.OUTCOME, NONE)}": count}
    error = labels.get("error_type", NONE)
    if error != NONE:
        counts[f"{hourly.ERROR}{hourly.plain(error)}"] = count
    _call(figures, labels, counts)


def _call(figures: Figures, labels: Mapping[str, str], counts: Mapping[str, float]) -> None:
    figures.add_calls(labels.get(semconv.AGENT, NONE), labels.get(semconv.MODEL, NONE), counts)


def _quoted(value: str) -> str:
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
