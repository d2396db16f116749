"""Alias names: the dotted names as Prometheus metrics, label-free, made from the same figures at scrape time."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Final, NamedTuple, cast

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from taskpilot_instrument.semconv import DURATION_BUCKETS
from taskpilot_instrument.sinks._names import HISTOGRAMS, STATIC, sanitise

_log = logging.getLogger("taskpilot_instrument")

#: Upper bounds as Prometheus writes them, in seconds and in milliseconds.
_BOUNDS: Final[dict[str, str]] = {
    floatToGoString(bound): floatToGoString(bound * 1000)  # type: ignore[no-untyped-call]
    for bound in (*DURATION_BUCKETS, inf)
}
_SUFFIXES: Final = {"counter": ("_total", "_created"), "histogram": ("_bucket", "_sum", "_count", "_created")}
#: Collisions reported at most once a name, and not without end.
_MOST_REPORTS: Final = 100


class Distribution(NamedTuple):
    """A latency histogram in milliseconds.

    :param buckets: cumulative count by upper bound.
    :param total_ms: sum of all values.
    """

    buckets: dict[str, float]
    total_ms: float


def distribution(samples: Iterable[Sample], **labels: str) -> Distribution:
    """Add up the samples of a histogram in seconds that have these labels, as milliseconds."""
    buckets, total = dict.fromkeys(_BOUNDS.values(), 0.0), 0.0
    for sample in samples:
        if any(sample.labels[label] != value for label, value in labels.items()):
            continue
        if sample.name.endswith("_bucket"):
            buckets[_BOUNDS[sample.labels["le"]]] += sample.value
        elif sample.name.endswith("_sum"):
            total += sample.value * 1000
    return Distribution(buckets, total)


Figure = float | Distribution


class Aliases(Collector):
    """Serve every dotted name under its alias.

    :param figures: returns the figures by dotted name.
    """

    def __init__(self, figures: Callable[[], Mapping[str, Figure]]) -> None:
        self._figures = figures
        self._taken: frozenset[str] = frozenset()
        self._reported: set[str] = set()
        self._reserved = frozenset(name for metric in self.describe() for name in _claims(metric))

    def register(self, registry: CollectorRegistry) -> None:
        """Join a registry, leaving out aliases that the application has metrics of its own under."""
        try:
            registry.register(self)
        except ValueError:
            # Only here are the application's collectors asked: what they are called is known to nobody else.
            self._taken = self._reserved.intersection(name for metric in registry.collect() for name in _claims(metric))
            _log.warning(
                "taskpilot_instrument: not served as aliases, taken already: %s", ", ".join(sorted(self._taken))
            )
            registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Yield the families whose names are known beforehand."""
        for name, node in STATIC.items():
            empty = Distribution({}, 0.0) if node.family in HISTOGRAMS else 0.0
            metric = _static(sanitise(name), name, empty)
            if self._taken.isdisjoint(_claims(metric)):
                yield metric

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each alias."""
        figures = self._figures()
        for name in STATIC:
            metric = _static(sanitise(name), name, figures[name])
            if self._taken.isdisjoint(_claims(metric)):
                yield metric
        named: dict[str, tuple[str, Figure]] = {}
        for name, figure in figures.items():
            alias = sanitise(name)
            if name in STATIC:
                continue
            if alias in self._reserved:
                self._report(alias, f"{name} is served under its dotted name only")
                continue
            if alias in named:
                self._report(alias, f"{named[alias][0]} and {name} are added up")
                figure = _sum(named[alias][1], figure)  # noqa: PLW2901 - the sum takes the place of its part
            named[alias] = name, figure
        for alias, (name, figure) in named.items():
            yield _family(alias, name, figure)

    def _report(self, alias: str, consequence: str) -> None:
        if alias not in self._reported and len(self._reported) < _MOST_REPORTS:
            self._reported.add(alias)
            _log.warning("taskpilot_instrument: several figures share the alias %s; %s", alias, consequence)


def _sum(one: Figure, other: Figure) -> Figure:
    if isinstance(one, Distribution) and isinstance(other, Distribution):
        buckets = {bound: count + other.buckets[bound] for bound, count in one.buckets.items()}
        return Distribution(buckets, one.total_ms + other.total_ms)
    # A latency and a count never share an alias: their names end differently.
    return cast("float", one) + cast("float", other)


def _static(alias: str, name: str, figure: Figure) -> Metric:
    if isinstance(figure, float) and alias.endswith("_total"):
        return CounterMetricFamily(alias, _help(name), value=figure)
    return _family(alias, name, figure)


def _family(alias: str, name: str, figure: Figure) -> Metric:
    """Return a family named exactly so; a counter would have to end in ``_total``, which these need not."""
    if not isinstance(figure, Distribution):
        return UnknownMetricFamily(alias, _help(name), value=figure)
    metric = HistogramMetricFamily(alias, _help(name))
    if figure.buckets:
        metric.add_metric([], list(figure.buckets.items()), figure.total_ms)
    return metric


def _help(name: str) -> str:
    return f"Alias of {name!r}, label-free."


def _claims(metric: Metric) -> set[str]:
    return {metric.name, *(metric.name + suffix for suffix in _SUFFIXES.get(metric.type, ()))}
