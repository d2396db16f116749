"""What happened in a stretch of time: counts and sums that can be added to those of another stretch, exactly."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument._report.times import Stretch

K = TypeVar("K")
Counts = dict[str, float]


class Figures:
    """Counts and sums by workflow, and by agent and model, under the names of the hourly figures.

    Whole numbers stay whole, however many are added. Percentiles are not among them, buckets are.

    :param lacks: names of figures that the source cannot tell.
    """

    def __init__(self, lacks: frozenset[str] = frozenset()) -> None:
        self.runs: dict[str, Counts] = {}
        self.calls: dict[tuple[str, str], Counts] = {}
        #: What users said of results.
        self.correct: float = 0
        self.incorrect: float = 0
        self.lacks = lacks

    def add_runs(self, workflow: str, counts: Mapping[str, float]) -> None:
        """Add counts of a workflow's runs."""
        _add(self.runs.setdefault(workflow, {}), counts)

    def add_calls(self, agent: str, model: str, counts: Mapping[str, float]) -> None:
        """Add counts of a model's calls in an agent."""
        _add(self.calls.setdefault((agent, model), {}), counts)

    def add(self, other: "Figures") -> None:
        """Add all of another's."""
        for workflow, counts in other.runs.items():
            self.add_runs(workflow, counts)
        for (agent, model), counts in other.calls.items():
            self.add_calls(agent, model, counts)
        self.correct += other.correct
        self.incorrect += other.incorrect
        self.lacks |= other.lacks

    @property
    def is_empty(self) -> bool:
        """True where nothing was recorded at all: whether nothing happened is not known then."""
        return not (self.runs or self.calls or self.correct or self.incorrect)

    def of_runs(self) -> Counts:
        """Return the counts of all runs together."""
        return total(self.runs.values())

    def of_calls(self) -> Counts:
        """Return the counts of all calls together."""
        return total(self.calls.values())


class Source(Protocol):
    """Tell what happened."""

    #: How it is named in a report; without credentials.
    name: str
    #: The finest that its figures are known in.
    grain: timedelta
    #: What a reader has to know of its figures.
    notes: tuple[str, ...]

    def read(self, stretch: Stretch, slots: Sequence[Stretch]) -> tuple[Figures, list[Figures]]:
        """Return the figures of a stretch, and of each of the slots that it consists of.

        :raises LedgerError: where the ledger cannot be read; SourceError where Prometheus cannot.
        """

    def close(self) -> None:
        """Give it back."""


def total(some: Iterable[Mapping[str, float]]) -> Counts:
    """Return the sum of counts, name by name."""
    whole: Counts = {}
    for counts in some:
        _add(whole, counts)
    return whole


def named(counts: Mapping[str, float], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield what stands after a prefix such as ``error:``, and how often."""
    return (
        (hourly.named(name.removeprefix(prefix)), count) for name, count in counts.items() if name.startswith(prefix)
    )


def grouped(counts: Mapping[K, Mapping[str, float]], by: Mapping[K, str]) -> dict[str, Counts]:
    """Return counts added up under other names."""
    found: dict[str, Counts] = {}
    for key, each in counts.items():
        _add(found.setdefault(by[key], {}), each)
    return found


def _add(whole: Counts, counts: Mapping[str, float]) -> None:
    for name, count in counts.items():
        whole[name] = whole.get(name, 0) + count
