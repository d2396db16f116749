"""The golden signals of many processes, asked of the Prometheus that scrapes them.

What a counter grew by is counted exactly, where ``increase()`` would stretch it to the ends of the window: its last
value, less the last one before the window, plus what it had come to at each restart within. When a target restarted is
known by the start time that its process tells, else by when its counters were created, else by a counter that fell.
With it all its counters began anew, also those that have overtaken their old value by the time they are seen again,
and none else: a counter of votes falls where a user changes a vote, too. The adding is Prometheus' own work.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
#: Restarted targets that are asked about at once, which bounds how long a question is, and an answer.
_AT_ONCE: Final = 50
#: Gauges that change with a restart; prometheus_client has both, unless they were switched off.
_STARTED: Final = "process_start_time_seconds"
_CREATED: Final = tuple(f"{name.removesuffix('_total')}_created" for name in RUNS.values())
#: Counters that fall with a restart only.
_FALLING: Final = (
    *RUNS.values(), *LATENCY.values(), semconv.M_LLM_COST, semconv.M_LLM_UNPRICED, semconv.M_POLICY_VIOLATIONS,
)  # fmt: skip
#: What tells of restarts, the surest first; where one has told of a target, the next are not asked.
_WITNESSES: Final = ((_STARTED,), _CREATED, _FALLING)
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


class _Target(NamedTuple):
    """Where counters are scraped from."""

    job: str
    instance: str


class _Growth:
    """What counters grew by.

    :param seconds: of the window; None for all that Prometheus keeps.
    :param asked: labels that series must have; a family that lacks one cannot be told apart by it.
    """

    def __init__(self, prometheus: Prometheus, seconds: int | None, asked: dict[str, str | None]) -> None:
        self._prometheus = prometheus
        self._asked = {name: readable(value) for name, value in asked.items() if value is not None}
        #: Milliseconds since 1970, as Prometheus counts.
        self._at = round((prometheus.query("time()")[0].points[0][1] - _SETTLED_S) * 1000)
        self._window = (seconds or _ALL_S) * 1000
        self._before = 0 if seconds is None else _BEFORE_S * 1000
        self._rounds = _rounds(self._find_restarts(self._find_restarted()))

    def of(self, family: str, by: str = "", *, whole: bool = False) -> dict[str, float] | None:
        """Return growth by the values of a label; None where the filter cannot be answered by this family.

        :param by: the label; where there is none, all is under the empty text.
        :param whole: leave out what the family cannot tell, instead.
        """
        if not whole and not self._asked.keys() <= _labels(family):
            return None
        found: dict[str, list[float]] = defaultdict(list)
        for expr in (self._grown(family), *self._lost(family)):
            for series in self._ask(f"sum by ({by}) ({expr})"):
                found[series.labels.get(by, "")].append(series.points[0][1])
        return {label: fsum(amounts) for label, amounts in found.items()}

    def _grown(self, family: str) -> str:
        """Return, for each series, its last value less the last one before the window."""
        series = self._selector(family)
        last = f"last_over_time({series}[{self._window}ms])"
        if not self._before:
            return last
        return f"{last} - (last_over_time({series}[{self._before}ms] offset {self._window}ms) or 0 * {last})"

    def _lost(self, family: str) -> Iterator[str]:
        """Yield what series had come to when their targets restarted, of those that are seen again later."""
        since = self._at - self._window
        for together in self._rounds:
            terms = []
            for target, moment in together:
                series = self._selector(family, target)
                later = max(1, min(self._at - moment - 1, self._window))
                term = f"last_over_time({series}[1ms] @ {_seconds(moment)}) and last_over_time({series}[{later}ms])"
                if self._before and moment < since - 1:  # it may have been seen again before the window already
                    term += f" unless last_over_time({series}[{since - moment - 1}ms] @ {_seconds(since)})"
                terms.append(f"({term})")
            yield " or ".join(terms)

    def _find_restarted(self) -> list[_Target]:
        """Return the targets of which anything says that they restarted."""
        reach = f"[{self._window + self._before}ms]"
        changed = [f"changes({self._selector(family)}{reach}) > 0" for family in (_STARTED, *_CREATED)]
        fell = [f"resets({self._selector(family)}{reach}) > 0" for family in _FALLING]
        anything = " or ".join(f"count by (job, instance) ({each})" for each in (*changed, *fell))
        names = _quoted("|".join(RUNS.values()))
        ours = f"count by (job, instance) (last_over_time({{__name__=~{names}}}{reach}))"
        return sorted(map(_target, self._ask(f"({anything}) and {ours}")))

    def _find_restarts(self, restarted: list[_Target]) -> dict[_Target, set[int]]:
        """Return when each of these targets was scraped for the last time before a restart."""
        found: dict[_Target, set[int]] = {}
        for witnesses in _WITNESSES:
            waiting = [target for target in restarted if target not in found]
            for place in range(0, len(waiting), _AT_ONCE):
                for target, moment in self._hear(witnesses, waiting[place : place + _AT_ONCE]):
                    found.setdefault(target, set()).add(moment)
        return found

    def _hear(self, witnesses: Sequence[str], targets: list[_Target]) -> Iterator[tuple[_Target, int]]:
        instances = _quoted("|".join(re.escape(target.instance) for target in targets))
        for family in witnesses:
            series = self._selector(family, further=f"instance=~{instances}")
            for each in self._ask(f"{series}[{self._window + self._before}ms]"):
                target, falls = _target(each), family in _FALLING
                if target in targets:
                    for (moment, value), (_, after) in pairwise(each.points):
                        if after < value if falls else after != value:
                            yield target, round(moment * 1000)

    def _ask(self, expr: str) -> list[Series]:
        return self._prometheus.query(expr, self._at / 1000)

    def _selector(self, family: str, target: _Target | None = None, *, further: str = "") -> str:
        labels = _labels(family)
        asked = {name: value for name, value in self._asked.items() if name in labels}
        where = {} if target is None else target._asdict()
        given = [
            f"{name}={_quoted(value)}"
            for matchers in (self._prometheus.matchers, asked, where)
            for name, value in matchers.items()
        ]
        return f"{family}{{{','.join([*given, *filter(None, [further])])}}}"


def _rounds(restarts: dict[_Target, set[int]]) -> list[list[tuple[_Target, int]]]:
    """Return all restarts, several at once, but never two of one target: in PromQL they would be one."""
    rounds = []
    for turn in range(max(map(len, restarts.values()), default=0)):
        these = [(target, sorted(moments)[turn]) for target, moments in restarts.items() if len(moments) > turn]
        rounds += [these[place : place + _AT_ONCE] for place in range(0, len(these), _AT_ONCE)]
    return rounds


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


def _target(series: Series) -> _Target:
    return _Target(series.labels.get("job", ""), series.labels.get("instance", ""))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f}"


def _sum(amounts: dict[str, float]) -> float:
    return _number(fsum(amounts.values()))


def _number(amount: float) -> float:
    return int(amount) if amount.is_integer() else amount
