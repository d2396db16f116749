"""What counters grew by, asked of a Prometheus that scrapes them.

Growth is counted exactly, where ``increase()`` would stretch it to the ends of the window: a counter's last
value, less the last one before the window, plus what it had come to at each restart within. When a target restarted is
known by the start time that its process tells, else by when its counters were created, else by a counter that fell.
With it all its counters began anew, also those that have overtaken their old value by the time they are seen again,
and none else: a counter of votes falls where a user changes a vote, too. The adding is Prometheus' own work.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import fsum
from typing import Final, NamedTuple, Self

from taskpilot_instrument import semconv
from taskpilot_instrument._prometheus import Prometheus, Series
from taskpilot_instrument.semconv import Kind
from taskpilot_instrument.sinks._families import readable

RUNS: Final = {
    Kind.WORKFLOW: semconv.M_WORKFLOW_RUNS, Kind.AGENT: semconv.M_AGENT_RUNS, Kind.LLM: semconv.M_LLM_CALLS,
}  # fmt: skip
LATENCY: Final = {
    Kind.WORKFLOW: f"{semconv.M_WORKFLOW_DURATION}_bucket",
    Kind.AGENT: f"{semconv.M_AGENT_DURATION}_bucket",
    Kind.LLM: f"{semconv.M_LLM_DURATION}_bucket",
}
#: How long a series may be silent before the window and still go on in it. The recording rules have the same.
_BEFORE_S: Final = 3600
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


class _Target(NamedTuple):
    """Where counters are scraped from."""

    job: str
    instance: str


#: When targets were scraped for the last time before each restart, in milliseconds since 1970.
_Restarts = dict[_Target, set[int]]


class Growth:
    """What counters grew by in a window.

    :param asked: labels that series must have; a family that lacks one cannot be told apart by it.
    :param at_ms: when the window ends, in milliseconds since 1970, as Prometheus counts.
    :param window_ms: how long it is.
    :param is_all: what came before the window is not taken off.
    :param restarts: when targets restarted; looked for where they are not given.
    """

    def __init__(
        self,
        prometheus: Prometheus,
        asked: dict[str, str | None],
        *,
        at_ms: int,
        window_ms: int,
        is_all: bool = False,
        restarts: _Restarts | None = None,
    ) -> None:
        self._prometheus = prometheus
        self._given = asked
        self._asked = {name: readable(value) for name, value in asked.items() if value is not None}
        self._at = at_ms
        self._window = window_ms
        self._before = 0 if is_all else _BEFORE_S * 1000
        self._restarts = self._find_restarts(self._find_restarted()) if restarts is None else restarts
        self._rounds = _rounds(self._restarts)

    def within(self, *, at_ms: int, window_ms: int) -> Self:
        """Return what counters grew by in a part of the window, without looking for restarts again."""
        since = at_ms - window_ms - self._before
        restarts = {
            target: {moment for moment in moments if since <= moment < at_ms}
            for target, moments in self._restarts.items()
        }
        return type(self)(self._prometheus, self._given, at_ms=at_ms, window_ms=window_ms, restarts=restarts)

    def of(self, family: str, by: str = "", *, whole: bool = False) -> dict[str, float] | None:
        """Return growth by the values of a label; None where the filter cannot be answered by this family.

        :param by: the label; where there is none, all is under the empty text.
        :param whole: leave out what the family cannot tell, instead.
        """
        if not whole and not self._asked.keys() <= _labels(family):
            return None
        return {"".join(values): amount for values, amount in self.of_each(family, (by,) if by else ()).items()}

    def of_each(self, family: str, by: Sequence[str]) -> dict[tuple[str, ...], float]:
        """Return growth by the values of several labels."""
        found: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for expr in (self._grown(family), *self._lost(family)):
            for series in self._ask(f"sum by ({', '.join(by)}) ({expr})"):
                found[tuple(series.labels.get(label, "") for label in by)].append(series.points[0][1])
        return {values: fsum(amounts) for values, amounts in found.items()}

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
        names = quoted("|".join(RUNS.values()))
        ours = f"count by (job, instance) (last_over_time({{__name__=~{names}}}{reach}))"
        return sorted(map(_target, self._ask(f"({anything}) and {ours}")))

    def _find_restarts(self, restarted: list[_Target]) -> _Restarts:
        """Return when each of these targets was scraped for the last time before a restart."""
        found: _Restarts = {}
        for witnesses in _WITNESSES:
            waiting = [target for target in restarted if target not in found]
            for place in range(0, len(waiting), _AT_ONCE):
                for target, moment in self._hear(witnesses, waiting[place : place + _AT_ONCE]):
                    found.setdefault(target, set()).add(moment)
        return found

    def _hear(self, witnesses: Sequence[str], targets: list[_Target]) -> Iterator[tuple[_Target, int]]:
        instances = quoted("|".join(re.escape(target.instance) for target in targets))
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
            f"{name}={quoted(value)}"
            for matchers in (self._prometheus.matchers, asked, where)
            for name, value in matchers.items()
        ]
        return f"{family}{{{','.join([*given, *filter(None, [further])])}}}"


def _rounds(restarts: _Restarts) -> list[list[tuple[_Target, int]]]:
    """Return all restarts, several at once, but never two of one target: in PromQL they would be one."""
    rounds = []
    for turn in range(max(map(len, restarts.values()), default=0)):
        these = [(target, sorted(moments)[turn]) for target, moments in restarts.items() if len(moments) > turn]
        rounds += [these[place : place + _AT_ONCE] for place in range(0, len(these), _AT_ONCE)]
    return rounds


def _labels(family: str) -> set[str]:
    """Return the labels of a family; those that only tell of restarts are asked for without any."""
    return set(semconv.METRIC_LABELS.get(family.removesuffix("_bucket"), ()))


def _target(series: Series) -> _Target:
    return _Target(series.labels.get("job", ""), series.labels.get("instance", ""))


def quoted(value: str) -> str:
    """Return a text as PromQL has it."""
    return json.dumps(value, ensure_ascii=False)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f}"
