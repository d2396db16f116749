"""Metrics under names of the caller's own: each a family, in a bounded number."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import Metric, UnknownMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass

from taskpilot_instrument import _forks
from taskpilot_instrument._money import Spend
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.sinks._names import looks_like_alias, nearest, sanitise
from taskpilot_instrument.sinks._sketch import Sketch

_log = logging.getLogger("taskpilot_instrument")

#: Units are the caller's, so the bounds span nine decades.
_BUCKETS: Final = tuple(step * 10.0**power for power in range(-3, 6) for step in (1, 2.5, 5))
_MOST: Final = 500
_LONGEST: Final = 200


@lru_cache(_MOST)
def warn_of_slip(name: str, what: str) -> None:
    """Say once that a name looks like a slip of a known one; it may be meant as it is.

    :param what: becomes of it.
    """
    meant = _meant(name)
    if meant:
        _log.warning("taskpilot_instrument: %r is no known metric and %s%s", name, what, meant)


def _meant(name: str) -> str:
    meant = nearest(name) if len(name) <= _LONGEST else None
    return "" if meant is None else f" (did you mean {meant!r}?)"


class CustomCounter(Collector):
    """A counter named exactly as the caller said, without a forced ``_total``."""

    def __init__(self, name: str, alias: str, registry: CollectorRegistry) -> None:
        self.name = name
        self._alias = alias
        self._text = f"Counter {name!r} of the application."
        self._lock = _forks.rlock()
        self.clear()
        registry.register(self)

    def clear(self) -> None:
        """Begin at zero."""
        # Also written where prometheus_client's own metrics are, so that workers add theirs up.
        written = ValueClass("unknown", self._alias, self._alias, (), (), self._text)
        self._spend = Spend(written.inc)

    @property
    def total(self) -> Decimal:
        """What was added, exactly."""
        return self._spend.exact

    def add(self, amount: Decimal) -> None:
        """Add an exact amount."""
        with self._lock:
            self._spend.add(amount)

    def describe(self) -> Iterator[Metric]:
        """Yield the family without samples."""
        yield UnknownMetricFamily(self._alias, self._text)

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        yield UnknownMetricFamily(self._alias, self._text, value=float(self.total))


class CustomHistogram:
    """A histogram with exact count, sum and extremes, and quantiles within 1 %."""

    def __init__(self, name: str, alias: str, registry: CollectorRegistry) -> None:
        self.name = name
        self._alias = alias
        self._registry = registry
        self._lock = _forks.rlock()
        self._begin()

    def _begin(self) -> None:
        self._sketch = Sketch()
        self.collector = Histogram(
            self._alias, f"Histogram {self.name!r} of the application.", registry=self._registry, buckets=_BUCKETS
        )

    def clear(self) -> None:
        """Begin at zero."""
        with suppress(KeyError):  # the application may have emptied its registry itself
            self._registry.unregister(self.collector)
        self._begin()

    def add(self, value: float) -> None:
        """Count one value."""
        with self._lock:
            self._sketch.add(value)
        self.collector.observe(value)

    def sketch(self) -> Sketch:
        """Return a copy of what was counted."""
        with self._lock:
            return self._sketch.copy()


class Customs:
    """All families of the caller's own.

    Names that differ only in what Prometheus cannot carry (``My-Counter``, ``my.counter``) are one family.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._families: dict[str, CustomCounter | CustomHistogram] = {}
        self._lock = _forks.rlock()
        self._full = False

    def counter(self, name: str) -> CustomCounter | None:
        """Return the counter of this name, made where there is none; None where there are too many.

        :raises ConfigurationError: if the name is a histogram's, or taken in the registry.
        """
        family = self._family(name, CustomCounter)
        if isinstance(family, CustomHistogram):
            raise ConfigurationError(f"{name!r} is a histogram already; give the counter another name")
        return family

    def histogram(self, name: str) -> CustomHistogram | None:
        """Return the histogram of this name, made where there is none; None where there are too many.

        :raises ConfigurationError: if the name is a counter's, or taken in the registry.
        """
        family = self._family(name, CustomHistogram)
        if isinstance(family, CustomCounter):
            raise ConfigurationError(f"{name!r} is a counter already; give the histogram another name")
        return family

    def find(self, name: str) -> CustomCounter | CustomHistogram | None:
        """Return the family of this name, if there is one."""
        return self._families.get(sanitise(name))

    def all(self) -> list[CustomCounter | CustomHistogram]:
        """Return every family."""
        with self._lock:
            return list(self._families.values())

    def collectors(self) -> list[Collector]:
        """Return what was registered."""
        return [family.collector if isinstance(family, CustomHistogram) else family for family in self.all()]

    def _family(
        self, name: str, make: type[CustomCounter] | type[CustomHistogram]
    ) -> CustomCounter | CustomHistogram | None:
        alias = sanitise(name)
        with self._lock:
            family = self._families.get(alias)
            if family is None and len(self._families) < _MOST:
                if len(alias) > _LONGEST:
                    raise ConfigurationError(
                        f"metric names have at most {_LONGEST} characters, {name[:40]!r}… has more"
                    )
                if looks_like_alias(alias):
                    raise ConfigurationError(
                        f"{name!r} would be served as {alias}, kept for the alias of a known name; choose another name"
                    )
                try:
                    family = self._families[alias] = make(name, alias, self._registry)
                except ValueError as error:
                    raise ConfigurationError(
                        f"{name!r} would be served as {alias}, which the registry has already; choose another name"
                        f"{_meant(name)}"
                    ) from error
                warn_of_slip(name, "counts apart")
            if family is None and not self._full:
                self._full = True
                _log.warning(
                    "taskpilot_instrument: %d metrics of your own are the most; further names are dropped", _MOST
                )
            return family
