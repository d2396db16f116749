"""Windows that the workers of one machine share: each writes what it counts, any of them reads what all did."""

import json
import logging
import os
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from time import time
from typing import Any, Final

from prometheus_client import values

from taskpilot_instrument import _forks
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._money import ZERO, add
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import OTHER, Kind
from taskpilot_instrument.sinks._cell_figures import Name, amount_of, cell_of, numbers, pico, sketches, written
from taskpilot_instrument.sinks._names import Node
from taskpilot_instrument.sinks._shelf import DIRECTORY, Figures, Shelf
from taskpilot_instrument.sinks._sketch import Sketch, ToldSketch
from taskpilot_instrument.sinks._windows import Bucket, Cell, CellKey, Windows

_log = logging.getLogger("taskpilot_instrument")
_SECOND: Final = 1_000_000_000
_MOST_NAMES: Final = 65_536
#: As many as are kept apart in the sums of all time.
_MOST_SLOTS: Final = 4_096
_SAID: Final = '["said", '


def is_shared() -> bool:
    """Tell whether prometheus_client writes for many processes; it decides so when it is imported."""
    return bool(getattr(values.ValueClass, "_multiprocess", False))


def open_windows(now_ns: Callable[[], int]) -> Windows:
    """Return the windows of this process, shared with others where prometheus_client's metrics are.

    :raises ConfigurationError: where their directory cannot be written to.
    """
    directory = os.environ.get(DIRECTORY)
    if directory and not is_shared():
        _log.warning(
            "taskpilot_instrument: %s was set after prometheus_client was imported; this process counts for itself. "
            "Set it in the environment of the command that starts the workers.",
            DIRECTORY,
        )
    return SharedWindows(now_ns, Shelf(directory)) if directory and is_shared() else Windows(now_ns)


class _Slot:
    """What this process has written of one cell.

    :param prefix: begins the names of its figures.
    """

    __slots__ = ("base", "cell", "counted", "names", "prefix", "written")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.cell: Cell | None = None
        #: Full names, what had been written under them before the cell began, and what of the cell was.
        self.names: dict[Name, str] = {}
        self.base: dict[Name, float] = {}
        self.written: dict[Name, float] = {}
        #: The latest of these, but for sketches.
        self.counted: dict[Name, float] = {}


class _Lock:
    """A lock that has what was written under it put where all can read it, before it is free again."""

    def __init__(self, lock: Any, put: Callable[[], None]) -> None:
        self._lock = lock
        self._put = put
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        try:
            if self._depth == 1:
                self._put()
        except Exception as error:
            swallow("metric", error)
        finally:
            self._depth -= 1
            self._lock.release()

    def after_fork(self) -> None:
        """Begin free, as the lock beneath does."""
        self._depth = 0


class SharedWindows(Windows):
    """Windows of this process whose readers get what all processes have counted.

    Every change is in the file before the lock is free, so that a process which is killed loses nothing.

    :param shelf: where it is written.
    :param now_s: seconds since 1970, the same for all processes.
    """

    most_waiting = 1

    def __init__(self, now_ns: Callable[[], int], shelf: Shelf, now_s: Callable[[], float] = time) -> None:
        self._shelf = shelf
        self._now_s = now_s
        self._slots: dict[CellKey, _Slot]
        self._touched: dict[CellKey, Cell]
        self._spoken: dict[Node, Decimal]
        super().__init__(now_ns)
        self.lock = _Lock(self.lock, self._put)
        self._note()

    def clear(self) -> None:
        """Begin empty, in a forked process, with a file of its own."""
        super().clear()
        self._slots, self._touched, self._spoken = {}, {}, {}
        self._shelf.begin()

    def after_fork(self) -> None:
        """Leave to the parent what it has written."""
        self.lock.after_fork()
        _free_files()
        try:
            self.clear()
        except ConfigurationError as error:  # the directory is gone or full; the rest begins anew all the same
            swallow("metric", error)

    # --- writing ----------------------------------------------------------------------------------

    def open_cell(self, key: CellKey) -> Cell:
        """Return the cell for ``key`` in the open bucket; it is read when the lock is left."""
        if key not in self._slots and len(self._slots) >= _MOST_SLOTS:
            key = CellKey(key.kind, OTHER, OTHER, OTHER)
        cell = super().open_cell(key)
        if self._finest.open.cells.get(key) is not cell:
            key = CellKey(key.kind, OTHER, OTHER, OTHER)
        if type(cell.latency) is Sketch:
            cell.latency = ToldSketch()  # it is new
        if self._touched.setdefault(key, cell) is not cell:
            self._put()
            self._touched[key] = cell
        return cell

    def say(self, node: Node, amount: Decimal) -> None:
        """Note a direct write."""
        super().say(node, amount)
        name = json.dumps(["said", *node.at, node.family])
        if node not in self._spoken:
            self._spoken[node] = amount_of(self._shelf.get(name))
        whole = self._spoken[node] = add(self._spoken[node], amount)
        self._shelf.put(name, pico(whole))

    def _put(self) -> None:
        touched, self._touched = self._touched, {}
        for key, cell in touched.items():
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot(json.dumps(["cell", *key])[:-1])
            if slot.cell is not cell:
                slot.cell = cell
                for name, value in slot.written.items():
                    slot.base[name] += value
                slot.written = {}
                slot.counted = {}
            self._put_changes(slot, cell)

    def _put_changes(self, slot: _Slot, cell: Cell) -> None:
        counted = dict(numbers(cell))
        for name in slot.counted.keys() - counted.keys():
            counted[name] = 0.0  # a verdict was taken back
        for name, value in counted.items():
            self._put_one(slot, name, value)
        slot.counted = counted
        for what, sketch in sketches(cell):
            for key, seen in sketch.changes() if isinstance(sketch, ToldSketch) else sketch.items():
                self._put_one(slot, (what, key), seen)
            if sketch.count:
                self._put_one(slot, what, sketch.total)

    def _put_one(self, slot: _Slot, name: Name, value: float) -> None:
        if slot.written.get(name) == value:
            return
        full = slot.names.get(name)
        if full is None:
            full = slot.names[name] = f"{slot.prefix}, {json.dumps(written(name))}]"
            slot.base[name] = self._shelf.get(full)
        slot.written[name] = value
        self._shelf.put(full, slot.base[name] + value)

    def _roll(self, level: int, now_ns: int) -> None:
        if level == 0:
            self._note()
        super()._roll(level, now_ns)

    def _note(self) -> None:
        """Write down what all have come to, before more is counted: so this cannot wait until the lock is free."""
        try:
            self._shelf.note(self._now_s())
        except OSError as error:
            swallow("metric", error)

    # --- reading ----------------------------------------------------------------------------------

    def select(self, window_ns: int | None = None) -> list[Bucket]:
        """Return what all processes counted, as one bucket.

        The window reaches back further than asked by up to a minute, beyond an hour by up to a quarter of an hour.
        """
        if window_ns is None:
            return [_bucket(self._shelf.all())]
        return [_bucket(self._shelf.since(window_ns / _SECOND, self._now_s()))]

    def said(self) -> dict[Node, Decimal]:
        """Return what was written directly in any process since the start."""
        return _bucket({name: value for name, value in self._shelf.all().items() if name.startswith(_SAID)}).said


def _free_files() -> None:
    """Free the one lock of prometheus_client's files in a forked process: it renews the files, but not the lock."""
    get: Any = values.ValueClass.get
    for name, held in zip(get.__code__.co_freevars, get.__closure__ or (), strict=True):
        if name == "lock":
            _forks.free(held.cell_contents)


@lru_cache(_MOST_NAMES)
def _parsed(name: str) -> tuple[CellKey | Node | None, str]:
    """Return whom a name speaks of and of what; None where another release has written it."""
    try:
        what, *parts, last = json.loads(name)
        if what == "said":
            return Node(last, tuple(parts)), ""
        kind, workflow, agent, model = parts
        return CellKey(Kind(kind), workflow, agent, model), last
    except (ValueError, TypeError):
        return None, ""


def _bucket(figures: Figures) -> Bucket:
    """Return the cells that figures speak of."""
    bucket = Bucket()
    by_key: dict[CellKey, Figures] = {}
    for name, value in figures.items():
        key, what = _parsed(name)
        if isinstance(key, CellKey):
            by_key.setdefault(key, {})[what] = value
        elif key is not None and value:
            bucket.said[key] = add(bucket.said.get(key, ZERO), amount_of(value))
    bucket.cells = {key: cell_of(each) for key, each in by_key.items()}
    return bucket
