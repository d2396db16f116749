"""The golden signals of many processes, asked of the Prometheus that scrapes them.

What a counter grew by is counted exactly, where ``increase()`` would stretch it to the ends of the window. For each
series it is the last value, less the last one before the window, plus what it had come to at each restart within. Of
targets that did not restart Prometheus adds that up; of those that did, the samples themselves are read. A restart is
known by the start time that a process tells, by when its counters were created, and by any counter that fell; all
counters of a target began anew with it, also those that have overtaken their old value when they are seen again.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from math import fsum, inf
from typing import Final, NamedTuple

from taskpilot_instrument import golden, semconv
from taskpilot_instrument._prometheus import Prometheus, Series
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks._families import readable
from taskpilot_instrument.sinks._signals import Sample

RUNS: Final = {
    Kind.WORKFLOW: semconv.M_WORKFLOW_RUNS, Kind.AGENT: semconv.M_AGENT_RUNS, Kind.LLM: semconv.M_LLM_CALLS,
}  # fmt: skip
LATENCY: Final = {
    Kind.WORKFLOW: f"{semconv.M_WORKFLOW_DURATION}_bucket",
    Kind.AGENT: f"{semconv.M_AGENT_DURATION}_bucket",
    Kind.LLM: f"{semconv.M_LLM_DURATION}_bucket",
}
#: Without a window: all that Prometheus keeps, which is 15 days where nobody told it otherwise.
_ALL_S: Final = 30 * 86_400
#: How long a series may be silent before the window and still go on in it. The recording rules have the same.
_BEFORE_S: Final = 3600
#: A scrape is written under the time at which it began: what is this old has arrived.
_SETTLED_S: Final = 1.0
#: Restarted targets whose samples are read at once, which bounds what an answer takes of memory.
_AT_ONCE: Final = 20
#: Feedback is no witness of a restart: it goes down where a user changes a vote.
_FALL: Final = (
    *RUNS.values(), *LATENCY.values(), semconv.M_LLM_COST, semconv.M_LLM_UNPRICED, semconv.M_POLICY_VIOLATIONS,
)  # fmt: skip
#: Gauges that change with a restart; prometheus_client has both, unless they were switched off.
_CHANGE: Final = ("process_start_time_seconds", *(f"{name.removesuffix('_total')}_created" for name in RUNS.values()))
#: Money is counted in whole pico-dollars; what floats add below that is noise.
_PICO: Final = Decimal("1e-12")


def ask(
    source: str,
    settings: Settings,
    *,
    window: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    model: str | None = None,
) -> GoldenSignals:
    """Return the golden signals of all processes that a Prometheus scrapes.

    :param source: its URL; see :class:`Prometheus`.
    :param settings: bearer token and time limit.
    :param window: how far back, such as ``15m``, ``1h`` or ``24h``; None means all that it keeps.
    :raises ConfigurationError: for an argument that is not valid, and for a filter that metrics cannot answer.
    :raises SourceError: where there is no answer in time, or none that is whole.
    """
    seconds = None if window is None else golden.parse_window(window)
    if workflow is not None and not (agent is None and model is None):
        raise ConfigurationError("metrics tell no agent or model within a workflow: with source=, ask for one of them")
    prometheus = Prometheus(source, token=settings.source_token, timeout_s=settings.source_timeout_s)
    sample = _sample(prometheus, seconds, workflow, agent, model)
    return golden.of_sample(sample, seconds, workflow, agent, model, prometheus.address)


def _sample(
    prometheus: Prometheus, seconds: int | None, workflow: str | None, agent: str | None, model: str | None
) -> Sample:
    kind = Kind.LLM if model is not None else Kind.AGENT if agent is not None else Kind.WORKFLOW
    asked = {semconv.WORKFLOW: workflow, semconv.AGENT: agent, semconv.MODEL: model}
    growth = _Growth(prometheus, seconds, asked)
    counted = growth.of(RUNS[kind], by=semconv.OUTCOME) or {}
    timed, p95, bounds = quantile(growth.of(LATENCY[kind], by="le") or {})
    cost, violations = growth.of(semconv.M_LLM_COST), growth.of(semconv.M_POLICY_VIOLATIONS)
    feedback, calls = growth.of(semconv.M_FEEDBACK, by=semconv.L_VERDICT), growth.of(semconv.M_LLM_CALLS)
    unpriced = growth.of(semconv.M_LLM_UNPRICED)
    if unpriced is None:  # it tells no agent, no workflow; where there was none at all, these had none either
        whole = growth.of(semconv.M_LLM_UNPRICED, whole=True)
        unpriced = None if whole is None or _sum(whole) else whole
    known = any((counted, cost, violations, feedback, calls))
    return Sample(
        runs=_sum(counted),
        successes=_number(counted.get(Outcome.SUCCESS, 0.0)),
        p95_ms=p95,
        timed=timed,
        spent_usd=None if cost is None or not known else Decimal(repr(fsum(cost.values()))).quantize(_PICO).normalize(),
        calls=None if calls is None or not known else round(_sum(calls)),
        priced=None,
        unpriced=None if unpriced is None or not known else round(_sum(unpriced)),
        violations=None if violations is None or not known else _sum(violations),
        correct=None if feedback is None or not known else _number(feedback.get(semconv.VERDICT_CORRECT, 0.0)),
        incorrect=None if feedback is None or not known else _number(feedback.get(semconv.VERDICT_INCORRECT, 0.0)),
        checked=None,
        check_failed=None,
        wasted=None,
        p95_bounds_ms=bounds,
    )


class _Reach(NamedTuple):
    """How far back is looked, in PromQL.

    :param range: the window.
    :param whole: the window and what is before it, for samples and restarts.
    :param since: beginning of the window, in seconds since 1970; what is before counts as its base.
    """

    range: str
    whole: str
    since: float


class _Growth:
    """What counters grew by.

    :param seconds: of the window; None for all that Prometheus keeps.
    :param asked: labels that series must have; a family that lacks one cannot be told apart by it.
    """

    def __init__(self, prometheus: Prometheus, seconds: int | None, asked: dict[str, str | None]) -> None:
        self._prometheus = prometheus
        self._asked = {name: readable(value) for name, value in asked.items() if value is not None}
        self._at = prometheus.query("time()")[0].points[0][1] - _SETTLED_S
        self._reach = (
            _Reach(f"[{_ALL_S}s]", f"[{_ALL_S}s]", -inf)
            if seconds is None
            else _Reach(f"[{seconds}s]", f"[{seconds + _BEFORE_S}s]", self._at - seconds)
        )
        self._base = None if seconds is None else f"[{_BEFORE_S}s] offset {seconds}s"
        self._restarted = self._find_restarted()
        self._restarts = self._find_restarts()

    def of(self, family: str, by: str | None = None, *, whole: bool = False) -> dict[str, float] | None:
        """Return growth by the values of a label; None where the filter cannot be answered by this family.

        :param by: the label; where there is none, all is under the empty text.
        :param whole: leave out what the family cannot tell, instead.
        """
        if not whole and not self._can_tell(family):
            return None
        found: dict[str, list[float]] = defaultdict(list)
        others = f"instance!~{_any(self._restarted)}" if self._restarted else ""
        for series in self._prometheus.query(self._sum(self._selector(family, others), by), self._at):
            found[series.labels.get(by or "", "")].append(series.points[0][1])
        for label, amount in self._read(family, by):
            found[label].append(amount)
        return {label: fsum(amounts) for label, amounts in found.items()}

    def _sum(self, series: str, by: str | None) -> str:
        last = f"last_over_time({series}{self._reach.range})"
        grown = last if self._base is None else f"({last} - (last_over_time({series}{self._base}) or 0 * {last}))"
        return f"sum by ({by or ''}) ({grown})"

    def _read(self, family: str, by: str | None) -> Iterator[tuple[str, float]]:
        """Yield the growth of each series of the targets that restarted."""
        falls = family != semconv.M_FEEDBACK
        for series in self._samples(family):
            restarts = self._restarts[_target(series)]
            yield series.labels.get(by or "", ""), grown(series.points, self._reach.since, restarts, falls=falls)

    def _samples(self, family: str) -> Iterator[Series]:
        for place in range(0, len(self._restarted), _AT_ONCE):
            these = f"instance=~{_any(self._restarted[place : place + _AT_ONCE])}"
            yield from self._prometheus.query(self._selector(family, these) + self._reach.whole, self._at)

    def _find_restarted(self) -> list[str]:
        """Return the instances of which anything says that they restarted."""
        names = "|".join(RUNS.values())
        ours = f"count by (instance) (last_over_time({{__name__=~{_quoted(names)}}}{self._reach.whole}))"
        fell = [f"resets({self._selector(family)}{self._reach.whole})" for family in _FALL]
        changed = [f"changes({self._selector(family)}{self._reach.whole})" for family in _CHANGE]
        expr = " or ".join(f"count by (instance) ({each} > 0)" for each in (*fell, *changed))
        found = self._prometheus.query(f"({expr}) and {ours}", self._at)
        return [series.labels.get("instance", "") for series in found]

    def _find_restarts(self) -> dict[tuple[str, str], set[float]]:
        """Return when each of these targets was scraped for the last time before a restart."""
        found: dict[tuple[str, str], set[float]] = defaultdict(set)
        for family in (*_CHANGE, *RUNS.values()):
            for series in self._samples(family):
                found[_target(series)].update(
                    moment
                    for (moment, value), (_, after) in pairwise(series.points)
                    if (after != value if family in _CHANGE else after < value)
                )
        return found

    def _can_tell(self, family: str) -> bool:
        return self._asked.keys() <= _labels(family)

    def _selector(self, family: str, further: str = "") -> str:
        labels = _labels(family)
        asked = ((name, value) for name, value in self._asked.items() if name in labels)
        given = [f"{name}={_quoted(value)}" for name, value in (*self._prometheus.matchers.items(), *asked)]
        return f"{family}{{{','.join([*given, *filter(None, [further])])}}}"


def grown(
    points: Sequence[tuple[float, float]], since: float, restarts: Collection[float] = (), *, falls: bool = True
) -> float:
    """Return what a counter grew by, exactly: after a restart it began at zero again.

    :param points: time and value, oldest first.
    :param since: what it had come to by then does not count; a counter that was born later began at zero.
    :param restarts: times after which the process is known to have restarted before it was seen again.
    :param falls: whether a value that is lower than the one before says so, too.
    """
    before = [point for point in points if point[0] <= since][-1:] or [(-inf, 0.0)]
    within = [point for point in points if point[0] > since]
    return fsum(
        value if moment in restarts or (falls and value < earlier) else value - earlier
        for (moment, earlier), (_, value) in pairwise(before + within)
    )


def quantile(buckets: dict[str, float], share: float = 0.95) -> tuple[int, float | None, tuple[float, float] | None]:
    """Return how many were timed, the quantile in milliseconds as ``histogram_quantile`` has it, and its bounds.

    Which bucket it lies in is certain; where in it, is taken to be in proportion.

    :param buckets: how many took at most so many seconds, by the label ``le``.
    """
    at_most = sorted((float(bound), count) for bound, count in buckets.items())
    total = at_most[-1][1] if at_most else 0.0
    if total <= 0:
        return 0, None, None
    low = below = 0.0
    for bound, count in at_most:
        if count >= share * total:
            break
        low, below = bound, count
    value = low if bound == inf else low + (bound - low) * (share * total - below) / (count - below)
    return round(total), value * 1000, (low * 1000, bound * 1000)


def _labels(family: str) -> set[str]:
    """Return the labels of a family; those that only tell of restarts are asked for without any."""
    return set(semconv.METRIC_LABELS.get(family.removesuffix("_bucket"), ()))


def _target(series: Series) -> tuple[str, str]:
    return series.labels.get("job", ""), series.labels.get("instance", "")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _any(values: Sequence[str]) -> str:
    return _quoted("|".join(map(re.escape, values)))


def _sum(amounts: dict[str, float]) -> float:
    return _number(fsum(amounts.values()))


def _number(amount: float) -> float:
    return int(amount) if amount.is_integer() else amount
