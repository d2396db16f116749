"""The canonical families and the caps on their labels.

The children are prometheus_client's own, so multiprocess mode, exemplars and every exposition application
work. The families are collected together by one collector of ours, which adds what was written directly by name.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.values import MutexValue

from taskpilot_instrument import _forks, semconv
from taskpilot_instrument._collector import finish_orphans
from taskpilot_instrument.semconv import DURATION_BUCKETS, METRIC_LABELS, NONE, OTHER
from taskpilot_instrument.sinks._names import DIMENSIONS, HISTOGRAMS, Node
from taskpilot_instrument.sinks._said import Said, spread
from taskpilot_instrument.sinks._scrape import merged
from taskpilot_instrument.sinks._workers import is_shared

_HELP: Final = {
    semconv.M_WORKFLOW_RUNS: "Workflow runs by outcome.",
    semconv.M_WORKFLOW_DURATION: "Duration of workflow runs.",
    semconv.M_AGENT_RUNS: "Agent runs by outcome.",
    semconv.M_AGENT_DURATION: "Duration of agent runs.",
    semconv.M_TOOL_CALLS: "Tool calls by outcome.",
    semconv.M_TOOL_DURATION: "Duration of tool calls.",
    semconv.M_LLM_CALLS: "LLM calls by outcome.",
    semconv.M_LLM_DURATION: "Duration of LLM calls.",
    semconv.M_LLM_TIME_TO_FIRST_CHUNK: "Time from request to first chunk of streamed LLM calls.",
    semconv.M_LLM_TOKENS: "Tokens as the provider counted them; input includes cached ones, output reasoning ones.",
    semconv.M_LLM_COST: "Cost of LLM calls whose price is known, in USD.",
    semconv.M_LLM_UNPRICED: "Billable LLM calls whose cost is unknown.",
    semconv.M_LLM_RETRIES: "Requests of LLM calls that the client sent again.",
    semconv.M_LLM_WASTED_TOKENS: "Tokens of LLM calls that did not succeed, by outcome.",
    semconv.M_LLM_WASTED_COST: "Known cost of LLM calls that did not succeed, by outcome, in USD.",
    semconv.M_TOKEN_LIMIT_HITS: "Times that a token limit was hit.",
    semconv.M_POLICY_VIOLATIONS: "Policy violations.",
    semconv.M_GUARDRAIL_BLOCKS: "Inputs and outputs that a guardrail blocked.",
    semconv.M_FEEDBACK: "User verdicts on results.",
    semconv.M_BUDGET_BLOCKED: "LLM calls that a budget refused.",
    semconv.M_EXPERIMENT_RUNS: "Workflow runs of experiments by variant and outcome.",
    semconv.M_EXPERIMENT_COST: "Known cost of the workflow runs of experiments, in USD.",
    semconv.M_EXPERIMENT_DURATION: "Duration of the workflow runs of experiments.",
    semconv.M_INSTRUMENT_ERRORS: "Internal errors of the instrumentation, swallowed by place.",
    semconv.M_LABEL_OVERFLOW: "Values counted as other because their label had reached its cap.",
}
_LONGEST_VALUE: Final = 200
#: Overflow is counted under this where a family has too many combinations of labels.
_COMBINATIONS: Final = "combination"
_COMBINATIONS_PER_VALUE: Final = 20
#: A label whose few values are ours is never replaced.
_FIXED: Final = frozenset({semconv.OUTCOME, semconv.L_KIND, semconv.L_DIRECTION, semconv.L_VERDICT})


class Labels:
    """Decide which values a label may take: the first ``cap`` ones that come, then only ``other``.

    :param overflow: told the label whenever a value is replaced.
    """

    def __init__(self, cap: int, overflow: Callable[[str], None]) -> None:
        self._cap = cap
        self._overflow = overflow
        self._known: dict[str, dict[str, str]] = {}
        self._lock = _forks.rlock()

    def admit(self, label: str, value: str | None) -> str:
        """Return the value under which to count.

        :param value: None counts as ``none``.
        """
        if not value or value == NONE:
            return NONE
        known = self._known.setdefault(label, {})
        admitted = known.get(value)
        if admitted is not None or value == OTHER:
            return admitted or OTHER
        plain = readable(value)
        with self._lock:
            if plain in known or len(known) < self._cap:
                known[plain] = plain
                return plain
        self._overflow(label)
        return OTHER


def readable(value: str) -> str:
    """Return a label value that any exposition format can carry: valid UTF-8, of bounded length."""
    return value[:_LONGEST_VALUE].encode("utf-8", "replace").decode("utf-8")


class Families(Collector):
    """All canonical families.

    :param label_cap: distinct values per label.
    :param said: returns what was written directly by name.
    :param settle: counts what waits to be counted.
    """

    def __init__(self, label_cap: int, said: Callable[[], Said], settle: Callable[[], None]) -> None:
        self._said = said
        self._settle = settle
        self._most_children = label_cap * _COMBINATIONS_PER_VALUE
        self.clear()
        self._resolved: dict[str, set[tuple[str, ...]]] = {name: set() for name in _HELP}
        self.labels = Labels(label_cap, self.count_overflow)

    def clear(self) -> None:
        """Begin at zero, with locks of prometheus_client that nobody holds."""
        self._counters = {name: Counter(name, text, METRIC_LABELS[name], registry=None)
                          for name, text in _HELP.items() if not name.endswith("_seconds")}  # fmt: skip
        self._histograms = {name: Histogram(name, text, METRIC_LABELS[name], registry=None, buckets=DURATION_BUCKETS)
                            for name, text in _HELP.items() if name.endswith("_seconds")}  # fmt: skip

    def counter(self, family: str, *values: str | None) -> Counter:
        """Return the child that counts under these label values."""
        return self._counters[family].labels(*self.resolve(family, *values))

    def histogram(self, family: str, *values: str | None) -> Histogram:
        """Return the child that observes under these label values, in seconds."""
        return self._histograms[family].labels(*self.resolve(family, *values))

    def resolve(self, family: str, *values: str | None) -> tuple[str, ...]:
        """Return the label values that a family really uses for these."""
        names = METRIC_LABELS[family]
        admitted = tuple(self.labels.admit(name, value) for name, value in zip(names, values, strict=True))
        seen = self._resolved[family]
        if admitted not in seen:
            if len(seen) >= self._most_children:
                self.count_overflow(_COMBINATIONS)
                return tuple(value if name in _FIXED else OTHER for name, value in zip(names, admitted, strict=True))
            seen.add(admitted)
        return admitted

    def samples(self, *histograms: str) -> dict[str, list[Sample]]:
        """Return what histograms have observed."""
        return {name: metric.samples for name, metric in self._collected(histograms).items()}

    def _collected(self, names: Iterable[str]) -> dict[str, Metric]:
        """Return families as they stand, those of all workers together where these share theirs."""
        self._settle()
        own = {name: self._counters.get(name) or self._histograms[name] for name in names}
        if not is_shared():
            return {name: next(iter(family.collect())) for name, family in own.items()}
        kinds = {"histogram" if name in self._histograms else "counter" for name in own}
        together = {metric.name: metric for metric in merged(*kinds)}
        return {
            name: together.get(name.removesuffix("_total")) or next(iter(family.describe()))
            for name, family in own.items()
        }

    def collect(self) -> Iterator[Metric]:
        """Yield every family, with direct writes added."""
        finish_orphans()
        said = self._said()
        for name, metric in self._collected(_HELP).items():
            if name in DIMENSIONS and name not in HISTOGRAMS:
                _add_said(metric, name, said)
            yield metric

    def describe(self) -> Iterator[Metric]:
        """Yield every family without its samples, so that the registry knows the names."""
        for name in _HELP:
            yield from (self._counters.get(name) or self._histograms[name]).describe()

    def count_overflow(self, label: str) -> None:
        """Count one value that was replaced or dropped because there were too many."""
        self._counters[semconv.M_LABEL_OVERFLOW].labels(label).inc()


def adder(child: Counter) -> Callable[[float], None]:
    """Return what adds to a child of a counter, an amount that is not negative.

    ``inc`` checks both that and the labels each time, which takes as long as the adding. Whoever calls it holds the one
    lock under which that child is added to.
    """
    return _adder(getattr(child, "_value", child))


def observer(child: Histogram) -> Callable[..., None]:
    """Return what adds a value to a child of a histogram; ``observe`` goes through the buckets one by one.

    Whoever calls it holds the one lock under which that child is added to.
    """
    try:
        bounds: list[float] = child._upper_bounds  # noqa: SLF001 - see above
        add = _adder(child._sum)  # noqa: SLF001
        buckets = child._buckets  # noqa: SLF001
    except AttributeError:
        return lambda value, exemplar=None: child.observe(value, exemplar.labels if exemplar is not None else None)
    count = [_adder(bucket) for bucket in buckets]

    def observe(value: float, exemplar: Exemplar | None = None) -> None:
        place = bisect_left(bounds, value)
        add(value)
        count[place](1)
        if exemplar is not None:
            buckets[place].set_exemplar(exemplar)

    return observe


def _adder(number: Any) -> Callable[[float], None]:
    """Return what adds to a number of prometheus_client's, past its own lock, which takes longest of all."""
    if type(number) is not MutexValue or type(getattr(number, "_value", None)) is not float:
        add: Callable[[float], None] = number.inc
        return add

    def plus(amount: float) -> None:
        number._value += amount  # noqa: SLF001 - see above

    return plus


def _add_said(metric: Metric, family: str, said: Said) -> None:
    dimensions = DIMENSIONS[family]
    if not any(node.family == family for node in said):
        return
    index = {
        tuple(sample.labels[label] for label in METRIC_LABELS[family]): place
        for place, sample in enumerate(metric.samples)
        if sample.name == family
    }
    for at, amount in spread(said, Node(family, (None,) * len(dimensions))):
        labels = dict.fromkeys(METRIC_LABELS[family], NONE) | dict(zip(dimensions, at, strict=True))
        place = index.get(tuple(labels.values()))
        if place is None:
            metric.add_sample(family, labels, float(amount))
        else:
            known = metric.samples[place]
            metric.samples[place] = known._replace(value=known.value + float(amount))
