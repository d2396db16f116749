"""What happened when: counts, spend and latencies in buckets of time, in bounded memory.

A write goes into the one open bucket of five seconds. When its time is over it is packed, kept for an hour, and
poured into the bucket of its minute; minutes are kept for a day and poured into quarters of an hour. A reader takes
each stretch of time from the finest tier that still has it whole. Where load is so varied that a tier would outgrow
its budget, its oldest buckets go first: that costs resolution, and only in the last tier history.

What operations tell waits to be counted until there is enough of it, somebody reads, or the bucket's time is over:
many at once take half the time, because the code and data of it are at hand, and every answer is the same.
"""

from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

from taskpilot_instrument import _forks
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._money import ZERO, add
from taskpilot_instrument._waste import NO_WASTE, NOTHING_LOST, Lost
from taskpilot_instrument.semconv import OTHER, Kind, Outcome
from taskpilot_instrument.sinks._calls import BIN_BYTES, Calls
from taskpilot_instrument.sinks._names import Node
from taskpilot_instrument.sinks._sketch import Sketch

_SECOND: Final = 1_000_000_000
#: Bytes of a cell without its sketch, as measured; a budget is counted in these.
_CELL_BYTES: Final = 900
_SAID_BYTES: Final = 300
_WASTE_BYTES: Final = 300
_LOST_BYTES: Final = 300


class CellKey(NamedTuple):
    """Whom a cell speaks of; labels that do not apply are ``none``."""

    kind: Kind
    workflow: str
    agent: str
    model: str


class Cell:
    """Sums over the operations of one kind, workflow, agent and model in one bucket of time.

    ``latency`` is in milliseconds, ``cost`` in exact USD. LLM calls that were refused before they were sent are no
    runs: they are in ``lost`` alone.
    """

    __slots__ = (
        "blocked_input", "blocked_output", "calls", "check_failed", "checked", "correct", "cost", "incorrect",
        "input_tokens", "latency", "lost", "output_tokens", "priced", "runs", "successes", "unpriced", "violations",
        "wasted",
    )  # fmt: skip

    def __init__(self) -> None:
        self.runs = 0
        self.successes = 0
        self.priced = 0
        self.unpriced = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.violations = 0
        self.blocked_input = 0
        self.blocked_output = 0
        self.correct = 0
        self.incorrect = 0
        #: Runs that policies or guardrails were asked about, and those where this failed.
        self.checked = 0
        self.check_failed = 0
        self.wasted = NO_WASTE
        #: What did not succeed, by how it ended; of calls their number alone.
        self.lost: dict[Outcome, Lost] | None = None
        self.cost = ZERO
        self.latency = Sketch()
        self.calls: Calls | None = None

    def of_calls(self) -> Calls:
        """Return what is known of LLM calls alone."""
        if self.calls is None:
            self.calls = Calls()
        return self.calls

    def lose(self, outcome: Outcome, lost: Lost) -> None:
        """Count what did not succeed."""
        if self.lost is None:
            self.lost = {}
        self.lost[outcome] = self.lost.get(outcome, NOTHING_LOST).plus(lost)

    def merge(self, other: "Cell") -> None:
        """Add everything that ``other`` holds."""
        self.merge_sums(other)
        self.latency.merge(other.latency)
        if other.calls is not None:
            self.of_calls().merge(other.calls)

    def merge_sums(self, other: "Cell") -> None:
        """Add everything but latencies, which take longest."""
        self.runs += other.runs
        self.successes += other.successes
        self.priced += other.priced
        self.unpriced += other.unpriced
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.violations += other.violations
        self.blocked_input += other.blocked_input
        self.blocked_output += other.blocked_output
        self.correct += other.correct
        self.incorrect += other.incorrect
        self.checked += other.checked
        self.check_failed += other.check_failed
        if other.wasted is not NO_WASTE:
            self.wasted = self.wasted.plus(other.wasted)
        if other.lost is not None:
            for outcome, lost in other.lost.items():
                self.lose(outcome, lost)
        self.cost = add(self.cost, other.cost)


class Bucket:
    """The cells of one stretch of time, and what was written directly in it."""

    __slots__ = ("cells", "said")

    def __init__(self) -> None:
        self.cells: dict[CellKey, Cell] = {}
        self.said: dict[Node, Decimal] = {}

    def cell(self, key: CellKey, limit: int) -> Cell:
        """Return the cell of a key; beyond ``limit`` cells the one that all further keys of its kind share."""
        cell = self.cells.get(key)
        if cell is None:
            if len(self.cells) >= limit:
                key = CellKey(key.kind, OTHER, OTHER, OTHER)
            cell = self.cells.setdefault(key, Cell())
        return cell

    def say(self, node: Node, amount: Decimal) -> None:
        """Note a direct write."""
        self.said[node] = add(self.said.get(node, ZERO), amount)

    def merge(self, other: "Bucket", limit: int) -> None:
        """Add everything that ``other`` holds."""
        for key, cell in other.cells.items():
            self.cell(key, limit).merge(cell)
        for node, amount in other.said.items():
            self.say(node, amount)

    def copy(self) -> "Bucket":
        """Return a bucket of its own with the same content."""
        twin = Bucket()
        twin.merge(self, len(self.cells))
        return twin

    def pack(self) -> int:
        """Shrink it for keeping and return how many bytes it takes."""
        size = _SAID_BYTES * len(self.said)
        for cell in self.cells.values():
            cell.latency.pack()
            size += _CELL_BYTES + BIN_BYTES * len(cell.latency)
            if cell.calls is not None:
                size += cell.calls.pack()
            if cell.wasted is not NO_WASTE:
                size += _WASTE_BYTES
            size += _LOST_BYTES * len(cell.lost or ())
        return size


class TierSpec(NamedTuple):
    """How one tier keeps time.

    :param width_ns: of a bucket; each tier's is a multiple of the one before.
    :param keep: buckets kept.
    :param cells: cells in one bucket.
    :param budget: bytes of all closed buckets together.
    """

    width_ns: int
    keep: int
    cells: int
    budget: int


TIERS: Final = (
    TierSpec(5 * _SECOND, 721, 4096, 8_000_000),
    TierSpec(60 * _SECOND, 1441, 1024, 8_000_000),
    TierSpec(900 * _SECOND, 97, 256, 16_000_000),
)
_ALL_TIME_CELLS: Final = 4096
_DAWN: Final = -(1 << 62)
_NEVER: Final = 1 << 62
#: So many wait at most. To count one takes some five microseconds, and whoever brings the last waits for all of them.
_MOST_WAITING: Final = 50

Facts = TypeVar("Facts")


class _Closed(NamedTuple):
    start_ns: int
    size: int
    bucket: Bucket


class Tier:
    """Buckets of one width: one open, the others closed and never changed again."""

    def __init__(self, spec: TierSpec, now_ns: int) -> None:
        self.spec = spec
        self.open = Bucket()
        self.open_ns = now_ns - now_ns % spec.width_ns
        self.size = 0
        #: Nothing that happened since then has been dropped.
        self.whole_since_ns = _DAWN
        self._closed: deque[_Closed] = deque()

    def close(self, now_ns: int) -> _Closed:
        """Put the open bucket away and open the one of ``now_ns``."""
        bucket, self.open = self.open, Bucket()
        start, self.open_ns = self.open_ns, now_ns - now_ns % self.spec.width_ns
        closed = _Closed(start, bucket.pack(), bucket)
        if closed.size:
            self._closed.append(closed)
            self.size += closed.size
        oldest = self.open_ns - self.spec.keep * self.spec.width_ns
        while self._closed and (self._closed[0].start_ns < oldest or self.size > self.spec.budget):
            dropped = self._closed.popleft()
            self.size -= dropped.size
            self.whole_since_ns = dropped.start_ns + self.spec.width_ns
        return closed

    def between(self, from_ns: int, until_ns: int) -> Iterator[Bucket]:
        """Yield the closed buckets that overlap ``from_ns`` and begin before ``until_ns``."""
        first = from_ns - from_ns % self.spec.width_ns
        for closed in reversed(self._closed):
            if closed.start_ns < first:
                return
            if closed.start_ns < until_ns:
                yield closed.bucket

    def since(self, from_ns: int) -> Iterator[tuple[int, Bucket]]:
        """Yield each bucket that begins at ``from_ns`` or later, and when that is; of the open one a copy."""
        if self.open_ns >= from_ns:
            yield self.open_ns, self.open.copy()
        for closed in reversed(self._closed):
            if closed.start_ns < from_ns:
                return
            yield closed.start_ns, closed.bucket


class Windows:
    """Cells over time. Hold :attr:`lock` to write through :meth:`cell` and :meth:`bucket`.

    :param now_ns: monotonic nanoseconds.
    """

    #: So many are counted at once.
    most_waiting = _MOST_WAITING

    def __init__(self, now_ns: Callable[[], int], tiers: tuple[TierSpec, ...] = TIERS) -> None:
        # Re-entrant, because the collector may end an abandoned stream while this very thread writes.
        self.lock: Any = _forks.rlock()
        self._now_ns = now_ns
        self._specs = tiers
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self.clear()

    def after_fork(self) -> None:
        """Leave to the parent what it has counted."""
        self.clear()

    def clear(self) -> None:
        """Begin empty."""
        self._waiting.clear()
        now = self._now_ns()
        self._tiers = tuple(Tier(spec, now) for spec in self._specs)
        self._finest = self._tiers[0]
        self._ends_ns = self._finest.open_ns + self._finest.spec.width_ns
        self._all_time = Bucket()
        self.began_ns = now

    @property
    def size(self) -> int:
        """Bytes of all closed buckets, by estimate."""
        return sum(tier.size for tier in self._tiers)

    def bucket(self) -> Bucket:
        """Return the bucket of this moment."""
        if self._waiting:
            self.settle()
        now = self._now_ns()
        if now >= self._ends_ns:
            self._roll(0, now)
            self._ends_ns = self._finest.open_ns + self._finest.spec.width_ns
        return self._finest.open

    def cell(self, key: CellKey) -> Cell:
        """Return the cell of this moment for ``key``."""
        self.bucket()
        return self.open_cell(key)

    def open_cell(self, key: CellKey) -> Cell:
        """Return the cell for ``key`` in the open bucket, also where its time is over."""
        bucket = self._finest.open
        return bucket.cells.get(key) or bucket.cell(key, self._finest.spec.cells)

    def wait(self, count: Callable[[Facts], None], facts: Facts) -> None:
        """Have something counted in the bucket of this moment, at the latest before that is read.

        :param count: called with ``facts``, which keep nothing of the application's alive; holds the lock, and writes
            through :meth:`open_cell`.
        """
        if self._now_ns() >= self._ends_ns:
            with self.lock:
                self.bucket()
        self._waiting.append((count, facts))
        if len(self._waiting) >= self.most_waiting:
            self.settle()

    def settle(self) -> None:
        """Count what waits; what another thread is counting has been counted, too, when this returns."""
        with self.lock:
            while self._waiting:
                count, facts = self._waiting.popleft()
                try:
                    count(facts)
                except Exception as error:
                    swallow("metric", error)

    def say(self, node: Node, amount: Decimal) -> None:
        """Note a direct write."""
        self.bucket().say(node, amount)

    def select(self, window_ns: int | None = None) -> list[Bucket]:
        """Return buckets to read; those of all processes where these share theirs."""
        return self.own(window_ns)

    def own(self, window_ns: int | None = None) -> list[Bucket]:
        """Return buckets of this process: those of the last ``window_ns``, or of all time where that is None.

        The oldest is taken whole, so the window reaches back further than asked by up to one bucket: five seconds
        within the last hour, a minute within a day.
        """
        with self.lock:
            self.bucket()
            opened = self._finest.open.copy()
            if window_ns is None:
                return [self._all_time.copy(), opened]
            now = self._now_ns()
            for level in range(1, len(self._tiers)):
                self._roll(level, now)
            return [opened, *self._since(now - window_ns)]

    def now(self, width_ns: int) -> int:
        """Return the number of the current stretch of ``width_ns``."""
        return self._now_ns() // width_ns

    def stretches(self, width_ns: int, first: int) -> dict[int, list[Bucket]]:
        """Return the buckets of each stretch of time in which there was anything, by its number.

        Read from the coarsest tier that fits, and where that has dropped its oldest buckets, the oldest are missing.

        :param width_ns: of a stretch; a multiple of five seconds, beyond a minute of a minute.
        :param first: the stretch to begin with; see :meth:`now`.
        """
        found: dict[int, list[Bucket]] = {}
        with self.lock:
            self.bucket()
            now = self._now_ns()
            for level in range(1, len(self._tiers)):
                self._roll(level, now)
            fitting = [tier for tier in self._tiers if width_ns % tier.spec.width_ns == 0]
            # What the open buckets of finer tiers hold has not been poured into the coarser ones yet.
            opened = [(tier.open_ns, tier.open.copy()) for tier in fitting[:-1]]
            for start_ns, bucket in (*opened, *fitting[-1].since(first * width_ns)):
                if start_ns >= first * width_ns:
                    found.setdefault(start_ns // width_ns, []).append(bucket)
        return found

    def said(self) -> dict[Node, Decimal]:
        """Return what was written directly since the start."""
        with self.lock:
            whole = Bucket()
            for bucket in (self._all_time, self._finest.open):
                for node, amount in bucket.said.items():
                    whole.say(node, amount)
            return whole.said

    def _since(self, start_ns: int) -> Iterator[Bucket]:
        until = _NEVER
        for level, (tier, since) in enumerate(zip(self._tiers, self._cuts(start_ns), strict=True)):
            if until <= start_ns:
                return
            # An open bucket is not yet in the next tier: it is read unless a finer tier has told its time already.
            if level > 0 and tier.open_ns < until:
                yield tier.open.copy()
            yield from tier.between(since, until)
            until = since

    def _cuts(self, start_ns: int) -> list[int]:
        """Return since when each tier is read; cuts lie on bounds of the next tier, so nothing is read twice."""
        cuts = [start_ns]
        for finer, coarser in reversed(list(pairwise(self._tiers))):
            width = coarser.spec.width_ns
            whole = -(-finer.whole_since_ns // width) * width
            cuts.append(max(cuts[-1], whole))
        return cuts[::-1]

    def _roll(self, level: int, now_ns: int) -> None:
        tier = self._tiers[level]
        if now_ns < tier.open_ns + tier.spec.width_ns:
            return
        closed = tier.close(now_ns)
        if level == 0:
            self._all_time.merge(closed.bucket, _ALL_TIME_CELLS)
        if level + 1 < len(self._tiers) and closed.size:
            self._roll(level + 1, closed.start_ns)
            coarser = self._tiers[level + 1]
            coarser.open.merge(closed.bucket, coarser.spec.cells)
