"""What the runs of experiments came to, by variant, in bounded memory.

Runs of one unit are alike: a user with hard questions asks many of them. To take each for an observation of its own
would promise more than is known. So figures are added up in blocks, in which a unit always falls into the same one,
and the spread is taken between the blocks (random groups; Chamandy, Muralidharan, Najmi and Naidu 2012, "Estimating
uncertainty for massive data streams"). Whether the units were shared out as designed is told from distinct units:
those whose number is below a bar that sinks as they grow many, so that the ones kept are always a fair sample
(Gibbons 2001, "Distinct sampling for highly-accurate answers to distinct values queries").
"""

import logging
from array import array
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final, NamedTuple
from zlib import crc32

from taskpilot_instrument import semconv
from taskpilot_instrument._assignment import Assigned, Design
from taskpilot_instrument._money import Spend, add
from taskpilot_instrument._records import Finished
from taskpilot_instrument.semconv import COST_PARTIAL, NONE, Kind, Outcome
from taskpilot_instrument.sinks._families import Families, adder, observer
from taskpilot_instrument.sinks._windows import Bucket, Cell, CellKey, TierSpec, Windows

_log: Final = logging.getLogger("taskpilot_instrument")

#: Experiments that can be compared; further ones have metrics and no report.
_MOST_TRIALS: Final = 20
_MOST_BOUND: Final = 1_000
BLOCKS: Final = 256
_MOST_UNITS: Final = 8_192
_ALL_UNITS: Final = 1 << 64
_MINUTE: Final = 60_000_000_000
#: Of these an experiment has few cells: one for each variant.
_TIERS: Final = (TierSpec(_MINUTE, 61, 256, 2_000_000), TierSpec(15 * _MINUTE, 97, 256, 4_000_000))


class Sums:
    """What one figure adds up to in each block, and how many runs told it."""

    __slots__ = ("counts", "totals")

    def __init__(self) -> None:
        self.counts = array("q", bytes(8 * BLOCKS))
        self.totals = array("d", bytes(8 * BLOCKS))

    def add(self, block: int, value: float, count: int = 1) -> None:
        """Add one run, or take one back."""
        self.counts[block] += count
        self.totals[block] += value


class Arm:
    """Everything about one variant since its experiment began, or was designed anew."""

    __slots__ = ("cell", "correct", "cost", "costed", "latency", "success")

    def __init__(self) -> None:
        self.cell = Cell()
        self.success = Sums()
        self.correct = Sums()
        self.cost = Sums()
        self.latency = Sums()


class Trial:
    """One experiment while its design stays as it is.

    What two designs came to cannot be mixed: where shares change over time, so do the hours that each variant saw.
    """

    __slots__ = ("arms", "bar", "design", "units")

    def __init__(self, design: Design) -> None:
        self.design = design
        self.arms = {variant: Arm() for variant in design.variants}
        self.units: dict[int, str] = {}
        self.bar = _ALL_UNITS

    def meet(self, assigned: Assigned) -> None:
        """Note that a unit has taken part."""
        if assigned.unit < self.bar and assigned.unit not in self.units:
            self.units[assigned.unit] = str(assigned)
            if len(self.units) > _MOST_UNITS:
                self.bar //= 2
                self.units = {unit: variant for unit, variant in self.units.items() if unit < self.bar}


class _Bound(NamedTuple):
    """What a run touches, looked up once."""

    cell: CellKey
    add: Callable[[float], None]
    observe: Callable[[float], None]
    spend: tuple[str, str]


class Trials:
    """Count, time and price the runs of experiments.

    :param now_ns: monotonic nanoseconds.
    """

    def __init__(self, now_ns: Callable[[], int], families: Families) -> None:
        self._families = families
        self._now_ns = now_ns
        self._bound: dict[tuple[str, str, Outcome], _Bound] = {}
        self._spends: dict[tuple[str, ...], Spend] = {}
        self.windows = Windows(now_ns, _TIERS)
        self.lock = self.windows.lock
        self.trials: dict[str, Trial] = {}
        self._redesigned: set[str] = set()

    def clear(self) -> None:
        """Begin empty."""
        self.windows.clear()
        self.trials, self._bound, self._spends = {}, {}, {}

    # --- writing ----------------------------------------------------------------------------------

    def finished(self, record: Finished) -> None:
        """Count one workflow run in every experiment that it takes part in."""
        operation = record.operation
        around = operation.parent if operation is not None else None
        for pair in record.ids.variants:
            # A run within a run of the same variant is a part of it, not one more.
            if around is None or pair not in around.ids.variants:
                self._count(record, *pair)

    def _count(self, record: Finished, experiment: str, variant: str) -> None:
        key = (experiment, variant, record.outcome)
        bound = self._bound.get(key) or self._bind(key)
        cost, whole, won = record.cost, record.cost_source != COST_PARTIAL, record.outcome is Outcome.SUCCESS
        with self.lock:
            bound.add(1)
            bound.observe(record.duration_ns / 1e9)
            _count_run(self.windows.cell(bound.cell), won, cost, whole, record.duration_ns)
            if cost:
                self._spend(bound.spend).add(cost)
            trial = self._trial(experiment, variant)
            if trial is None or variant not in trial.arms:
                return
            arm = trial.arms[variant]
            _count_run(arm.cell, won, cost, whole, record.duration_ns)
            block = _block(variant, record.ids.request_id)
            arm.success.add(block, won)
            arm.latency.add(block, record.duration_ns / 1e6)
            if cost is not None and whole:
                arm.cost.add(block, float(cost))

    def voted(self, variants: Iterable[tuple[str, str]], request_id: str | None, correct: bool, count: int = 1) -> None:  # noqa: FBT001 - a verdict
        """Count a user's verdict on a run for every experiment that the run took part in.

        :param count: -1 takes a verdict back.
        """
        for experiment, variant in variants:
            key = self._key(experiment, variant)
            with self.lock:
                _count_vote(self.windows.cell(key), correct, count)
                trial = self.trials.get(experiment)
                # A verdict on a run of an earlier design comes too late for this one's comparison.
                if (
                    trial is not None
                    and variant in trial.arms
                    and getattr(variant, "design", trial.design) == trial.design
                ):
                    arm = trial.arms[variant]
                    _count_vote(arm.cell, correct, count)
                    arm.correct.add(_block(variant, request_id or ""), count * correct, count)

    def _trial(self, experiment: str, variant: str) -> Trial | None:
        """Return where a run is added up, None where its experiment is not known here; the caller holds the lock."""
        trial = self.trials.get(experiment)
        if isinstance(variant, Assigned):
            if trial is None or trial.design != variant.design:
                if trial is not None and experiment not in self._redesigned:
                    self._redesigned.add(experiment)  # two places with different designs would tell it again and again
                    _warn_of_redesign(trial.design, variant.design)
                if trial is None and len(self.trials) >= _MOST_TRIALS:
                    self._families.count_overflow(semconv.EXPERIMENT)
                    return None
                trial = self.trials[experiment] = Trial(variant.design)
            trial.meet(variant)
        return trial

    def _key(self, experiment: str, variant: str) -> CellKey:
        admit = self._families.labels.admit
        return CellKey(Kind.WORKFLOW, admit(semconv.EXPERIMENT, experiment), admit(semconv.VARIANT, variant), NONE)

    def _bind(self, key: tuple[str, str, Outcome]) -> _Bound:
        cell = self._key(key[0], key[1])
        names = cell.workflow, cell.agent
        bound = _Bound(
            cell,
            adder(self._families.counter(semconv.M_EXPERIMENT_RUNS, *names, str(key[2]))),
            observer(self._families.histogram(semconv.M_EXPERIMENT_DURATION, *names)),
            names,
        )
        if names == key[:2] and len(self._bound) < _MOST_BOUND:
            self._bound[str(key[0]), str(key[1]), key[2]] = bound
        return bound

    def _spend(self, names: tuple[str, str]) -> Spend:
        labels = self._families.resolve(semconv.M_EXPERIMENT_COST, *names)
        if labels not in self._spends:
            self._spends[labels] = Spend(adder(self._families.counter(semconv.M_EXPERIMENT_COST, *labels)))
        return self._spends[labels]

    # --- reading ----------------------------------------------------------------------------------

    def cell(self, experiment: str, variant: str, window_ns: int) -> Cell:
        """Return what a variant came to in the last ``window_ns``, to the minute, or a quarter of an hour."""
        buckets: list[Bucket] = self.windows.select(window_ns)
        key, whole = self._key(experiment, variant), Cell()
        for bucket in buckets:
            if key in bucket.cells:
                whole.merge(bucket.cells[key])
        return whole


def _warn_of_redesign(before: Design, now: Design) -> None:
    _log.warning(
        "taskpilot_instrument: experiment %s has got other variants or weights: %s, before %s. Its comparison begins "
        "anew; give a changed experiment another name to keep the old one's figures apart.",
        now.experiment,
        _said(now),
        _said(before),
    )


def _said(design: Design) -> str:
    return ", ".join(f"{variant} {share:.0%}" for variant, share in zip(design.variants, design.shares, strict=True))


def _block(variant: str, request_id: str) -> int:
    """Return the block of a run: its unit's, and where that is not known one of its own."""
    number: Any = getattr(variant, "unit", None)
    return (crc32(request_id.encode("utf-8", "replace")) if number is None else number) % BLOCKS


def _count_run(cell: Cell, won: bool, cost: Decimal | None, whole: bool, nanoseconds: int) -> None:  # noqa: FBT001 - facts
    cell.runs += 1
    cell.successes += won
    cell.latency.add(nanoseconds / 1e6)
    if cost is None or not whole:
        cell.unpriced += 1
    else:
        cell.priced += 1
        cell.cost = add(cell.cost, cost)


def _count_vote(cell: Cell, correct: bool, count: int) -> None:  # noqa: FBT001 - a verdict
    if correct:
        cell.correct += count
    else:
        cell.incorrect += count
