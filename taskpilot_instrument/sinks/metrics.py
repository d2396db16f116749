"""The metrics sink and its API by dotted names.

Everything is read from one store of cells: dotted names, aliases and golden signals are views of it. The canonical
families count the same records as prometheus_client children, so that multiprocess mode and exemplars work.
"""

import contextlib
from decimal import Decimal, InvalidOperation
from math import isfinite
from time import monotonic_ns, time_ns

from prometheus_client import CollectorRegistry

from taskpilot_instrument import _forks, _guard, semconv
from taskpilot_instrument._waste import Waste
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import NONE, Kind
from taskpilot_instrument.sinks._aliases import Aliases, Figure, distribution
from taskpilot_instrument.sinks._custom import CustomCounter, CustomHistogram, Customs, warn_of_slip
from taskpilot_instrument.sinks._families import observer
from taskpilot_instrument.sinks._figures import Figures, figures, golden_sample, latency, waste_by_agent
from taskpilot_instrument.sinks._names import DIMENSIONS, HISTOGRAMS, STATIC, Node, names_with, parse
from taskpilot_instrument.sinks._recording import Recording
from taskpilot_instrument.sinks._scrape import shared_registry
from taskpilot_instrument.sinks._signals import Sample, dictionary
from taskpilot_instrument.sinks._sketch import Sketch
from taskpilot_instrument.sinks._windows import CellKey
from taskpilot_instrument.sinks._workers import is_shared
from taskpilot_instrument.typing import Clock

Stats = dict[str, float | None]
_SYSTEM_CLOCK = Clock(monotonic_ns, time_ns)


class MetricsBackend(Recording):
    """Count, time and price every finished operation, and answer by dotted name.

    :param registry: where the families are registered; a private one where none is given.
    :param clock: decides which window a record falls into.
    :param label_cap: distinct values per label; further ones count as ``other``.
    :param aliases: also serve the alias names.
    :raises ConfigurationError: if the registry has these families already.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        clock: Clock | None = None,
        label_cap: int = 200,
        aliases: bool = True,
    ) -> None:
        if label_cap < 1:
            raise ConfigurationError(f"label_cap must be at least 1, not {label_cap}")
        clock = clock or _SYSTEM_CLOCK
        super().__init__(clock.monotonic_ns, label_cap)
        self._epoch_ns = clock.epoch_ns
        self._began_ns = clock.epoch_ns()
        self.registry = CollectorRegistry() if registry is None else registry
        self._customs = Customs(self.registry)
        self._aliases = Aliases(self._alias_figures) if aliases else None
        self._closed = False
        #: True where the workers of this machine share their metrics.
        self.is_shared = is_shared()
        #: What to serve: the registry, or where metrics are shared one with those of all workers.
        self.scraped = shared_registry() if self.is_shared else self.registry
        try:
            self.registry.register(self.families)
        except ValueError as error:
            raise ConfigurationError(
                "the registry has the taskpilot_ families already: close() the backend that registered them, "
                "or give each its own CollectorRegistry"
            ) from error
        if self._aliases is not None:
            self._aliases.register(self.registry)
        if self.is_shared:
            self.scraped.register(self.families)
            if self._aliases is not None:
                self.scraped.register(self._aliases)
        _guard.policy.listeners.append(self._count_error)
        _forks.tell(self)

    def after_fork(self) -> None:
        """Begin at zero: what the parent counted is the parent's to tell."""
        for registry in (self.registry, self.scraped):
            _forks.free(getattr(registry, "_lock", None))  # a thread of the parent may have been scraping
        super().after_fork()
        self._began_ns = self._epoch_ns()
        for custom in self._customs.all():
            custom.clear()

    def close(self) -> None:
        """Leave the registry; what was counted stays readable from Python."""
        if self._closed:
            return
        self._closed = True
        _guard.policy.listeners.remove(self._count_error)
        for collector in (self.families, self._aliases, *self._customs.collectors()):
            if collector is not None:
                with contextlib.suppress(KeyError):  # the application may have emptied its registry itself
                    self.registry.unregister(collector)

    # --- writing by name ------------------------------------------------------------------------

    def increment_counter(self, name: str, value: float | Decimal = 1.0) -> None:
        """Add to a counter.

        Names that overlap may be written together, in any order, or alone: ``workflow.runs`` beside
        ``workflow.success``, ``policy.violations.total`` beside ``agent.X.policy.violations``. What operations record
        by themselves is added to that, so do not also write it by hand.

        :param name: a dotted name of the library (a known figure), or any other (a family of its own).
        :param value: how much to add, zero or more; USD for cost.
        :raises ConfigurationError: if the name is empty or a histogram's, or the value is negative or no number.
        """
        amount = _amount(value)
        node = self._node(name)
        if node is None:
            counter = self._customs.counter(name)
            if counter is None:
                self.families.count_overflow("name")
            else:
                counter.add(amount)
            return
        if node.family in HISTOGRAMS:
            raise ConfigurationError(f"{name!r} is a histogram: use record_histogram()")
        at = tuple(
            None if value is None else self.families.labels.admit(label, value)
            for label, value in zip(DIMENSIONS[node.family], node.at, strict=True)
        )
        with self._lock:
            self.windows.say(Node(node.family, at), amount)

    def record_histogram(self, name: str, value: float) -> None:
        """Count one value of a histogram.

        :param name: ``workflow.latency_ms``, ``agent.<agent>.latency_ms``, or any other (a family of its own).
        :param value: milliseconds for the known names; zero or more.
        :raises ConfigurationError: if the name is empty or a counter's, or the value is negative or no number.
        """
        number = float(_amount(value))
        node = self._node(name)
        if node is None:
            histogram = self._customs.histogram(name)
            if histogram is None:
                self.families.count_overflow("name")
            else:
                histogram.add(number)
            return
        if node.family not in HISTOGRAMS:
            raise ConfigurationError(f"{name!r} is a counter: use increment_counter()")
        kind = Kind.AGENT if node.at else Kind.WORKFLOW
        who = self.families.labels.admit(semconv.AGENT, node.at[0]) if node.at else NONE
        observe = observer(self.families.histogram(node.family, who))
        with self._lock:
            observe(number / 1000)
            self.windows.cell(CellKey(kind, NONE, who, NONE)).latency.add(number)

    # --- reading by name ------------------------------------------------------------------------

    def get_counter(self, name: str) -> float:
        """Return what a counter has come to; 0.0 for a name that nothing was counted under.

        :raises ConfigurationError: if the name is empty or a histogram's.
        """
        node = self._node(name)
        if node is not None and node.family not in HISTOGRAMS:
            return self._figures().value(node)
        custom = self._customs.find(name)
        if node is not None or isinstance(custom, CustomHistogram):
            raise ConfigurationError(f"{name!r} is a histogram: use get_histogram_stats()")
        if custom is None:
            warn_of_slip(name, "nothing was counted under it")
            return 0.0
        return float(custom.total)

    def get_histogram_stats(self, name: str) -> Stats:
        """Return count, min, max, avg, p50, p95 and p99; all but the count are None where nothing was counted.

        A percentile is the value at the nearest rank, within 1 %.

        :raises ConfigurationError: if the name is empty or a counter's.
        """
        node = self._node(name)
        if node is not None and node.family in HISTOGRAMS:
            return _stats(latency(self.windows.select(), node))
        custom = self._customs.find(name)
        if node is not None or isinstance(custom, CustomCounter):
            raise ConfigurationError(f"{name!r} is a counter: use get_counter()")
        if custom is None:
            warn_of_slip(name, "nothing was counted under it")
            return _stats(Sketch())
        return _stats(custom.sketch())

    def get_all_metrics(self) -> dict[str, dict[str, float] | dict[str, Stats]]:
        """Return every figure by dotted name: ``{"counters": {name: value}, "histograms": {name: stats}}``."""
        buckets = self.windows.select()
        known = figures(buckets)
        counters: dict[str, float] = {}
        histograms: dict[str, Stats] = {}
        for name, node in self._names(known).items():
            if node.family in HISTOGRAMS:
                histograms[name] = _stats(latency(buckets, node))
            else:
                counters[name] = known.value(node)
        for custom in self._customs.all():
            if isinstance(custom, CustomHistogram):
                histograms[custom.name] = _stats(custom.sketch())
            else:
                counters[custom.name] = float(custom.total)
        return {"counters": counters, "histograms": histograms}

    def get_golden_signals(self) -> dict[str, float | None]:
        """Return the five golden signals since the start, rounded to 2 decimals (cost: 4), 0.0 where nothing ran."""
        return dictionary(self.golden_sample())

    def golden_sample(
        self,
        window_ns: int | None = None,
        *,
        workflow: str | None = None,
        agent: str | None = None,
        model: str | None = None,
        own: bool = False,
    ) -> Sample:
        """Return the counts and sums behind the golden signals.

        :param window_ns: how far to look back; None for all time.
        :param own: only those of this process, where many share theirs.
        """
        look = self.windows.own if own else self.windows.select
        return golden_sample(look(window_ns), workflow, agent, model)

    @property
    def began_at_s(self) -> float | None:
        """When it began to count, in seconds since 1970; None where workers share what they count."""
        return None if self.is_shared else self._began_ns / 1e9

    def waste(self, window_ns: int | None = None) -> dict[str, Waste]:
        """Return what each agent's LLM calls wasted, the most expensive first; ``none`` is calls without an agent.

        :param window_ns: how far to look back; None for all time.
        """
        return waste_by_agent(self.windows.select(window_ns))

    # --- inside ---------------------------------------------------------------------------------

    def _figures(self) -> Figures:
        return figures(self.windows.select())

    def _names(self, known: Figures) -> dict[str, Node]:
        """Return every dotted name there is now; names without a value in them come first and win."""
        names = dict(STATIC)
        for label in (semconv.AGENT, semconv.MODEL):
            for value in known.values_of(label):
                for name, node in names_with(label, value):
                    if value != NONE or known.value(node):
                        names.setdefault(name, node)
        return names

    def _alias_figures(self) -> dict[str, Figure]:
        known = self._figures()
        timed = self.families.samples(*HISTOGRAMS)
        result: dict[str, Figure] = {}
        for name, node in self._names(known).items():
            if node.family in HISTOGRAMS:
                labels = zip(DIMENSIONS[node.family], node.at, strict=True)
                result[name] = distribution(timed[node.family], **{label: value or NONE for label, value in labels})
            else:
                result[name] = known.value(node)
        return result

    def _node(self, name: str) -> Node | None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"a metric needs a name such as {semconv.N_WORKFLOW_RUNS!r}, not {name!r}")
        return parse(name)

    def _count_error(self, where: str) -> None:
        self.families.counter(semconv.M_INSTRUMENT_ERRORS, where).inc()


def _amount(value: object) -> Decimal:
    """Return a number as it reads in decimal, so that ten times 0.1 is 1."""
    try:
        amount = value if isinstance(value, Decimal) else Decimal(repr(float(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, InvalidOperation):
        amount = None
    if amount is None or isinstance(value, str) or not isfinite(amount) or amount < 0:
        raise ConfigurationError(f"a metric's value must be a finite number of zero or more, not {value!r}")
    return amount


def _stats(sketch: Sketch) -> Stats:
    some = sketch.count > 0
    return {
        "count": sketch.count,
        "min": sketch.low if some else None,
        "max": sketch.high if some else None,
        "avg": sketch.total / sketch.count if some else None,
        "p50": sketch.quantile(50),
        "p95": sketch.quantile(95),
        "p99": sketch.quantile(99),
    }
