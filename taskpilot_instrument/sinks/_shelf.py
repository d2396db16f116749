"""What the workers of one machine have counted, in files that each of them can read.

They lie in prometheus_client's multiprocess directory, beside its own and in its format: one for each process, which
alone writes to it, and which goes on counting where the process was killed. A figure is a name and a number, so that
to add up many processes, or to tell what is new since a moment ago, is to add and subtract numbers.

Once a minute the first worker with something to count writes down what all of them have come to by then. A window is
what was counted since: to the minute within the last hour, to the quarter of an hour within a day.
"""

import marshal
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final
from weakref import finalize

from prometheus_client.mmap_dict import MmapedDict

from taskpilot_instrument.errors import ConfigurationError

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
_MINUTE: Final = 60
_QUARTER: Final = 900
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
#: A process looks at the clock when it begins a new bucket of time, so that a minute may begin so much later.
_LATE: Final = 5
#: What prometheus_client raises of a file that a machine going down has left half written.
_NOT_WHOLE: Final = (struct.error, RuntimeError, ValueError)
_numbers: Final = count()

Figures = dict[str, float]


class Shelf:
    """The figures of this process, to be written, and those of all, to be read.

    :param directory: must exist.
    :raises ConfigurationError: where nothing can be written there.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._minute = 0
        # A process that instruments twice has two: what it did before stays counted.
        self.number = next(_numbers)
        #: None where there is none: a child must not write to its parent's.
        self._file: MmapedDict | None = None
        self._close: Callable[[], object] = lambda: None

    def begin(self) -> None:
        """Open the file of this process: after a fork it is another one."""
        self._close()
        self._file = None
        path = self._directory / f"taskpilot_{os.getpid()}_{self.number}.cells"
        try:
            opened = MmapedDict(str(path))  # type: ignore[no-untyped-call]
        except OSError as error:
            raise ConfigurationError(
                f"{DIRECTORY}={str(self._directory)!r}: cannot be written to ({error.strerror}); "
                "expected a directory that is emptied each time before the workers start"
            ) from error
        except _NOT_WHOLE:  # left by a process of the same id
            self.number = next(_numbers)
            self.begin()
        else:
            self._file, self._close = opened, finalize(self, opened.close)

    def get(self, name: str) -> float:
        """Return what this process has written under a name: another of the same id may have begun it."""
        if self._file is None:
            return 0.0
        value, _ = self._file.read_value(name)  # type: ignore[no-untyped-call]
        return float(value)

    def put(self, name: str, value: float) -> None:
        """Write a figure of this process."""
        if self._file is not None:
            self._file.write_value(name, value, 0.0)  # type: ignore[no-untyped-call]

    def all(self) -> Figures:
        """Return the figures of all processes, also of those that have ended."""
        found: Figures = {}
        # Always in one order: sums of floats that are to be subtracted differ by nothing but what is new.
        for path in sorted(self._directory.glob("taskpilot_*.cells")):
            for name, value in _read(path):
                found[name] = found.get(name, 0.0) + value
        return found

    def since(self, window_s: float, now_s: float) -> Figures:
        """Return what all processes have counted in the last seconds, and up to a minute or quarter before."""
        then = self._before(now_s - window_s, now_s)
        if then is None:
            return {}
        return {name: new for name, value in self.all().items() if (new := value - then.get(name, 0.0))}

    def _before(self, since_s: float, now_s: float) -> Mapping[str, float] | None:
        """Return what all had come to at a moment; None where nothing has been counted since."""
        notes = sorted(self._notes())
        earlier = [each for each in notes if each[0] <= since_s]
        if not earlier:
            return {}
        at_s, _ = earlier[-1]
        # Where nobody wrote anything down for longer than usual, nothing was counted either.
        usual = (_MINUTE if now_s - at_s <= _HOUR else _QUARTER) + _LATE
        if since_s - at_s > usual:
            later = notes[len(earlier) :]
            if not later:
                return None
            earlier.append(later[0])
        # Where one cannot be read, the window reaches back to the one before.
        return next((figures for _, path in reversed(earlier) if (figures := _noted(path)) is not None), {})

    # --- a note each minute -----------------------------------------------------------------------

    def note(self, now_s: float) -> None:
        """Write down what all processes have come to, unless another one has done so this minute."""
        minute = int(now_s // _MINUTE)
        if minute == self._minute:
            return
        self._minute = minute
        notes = list(self._notes())
        if any(at_s // _MINUTE == minute for at_s, _ in notes):
            return
        draft = self._directory / f"taskpilot_{os.getpid()}_{self.number}.draft"
        draft.write_bytes(marshal.dumps(self.all()))
        draft.replace(self._directory / f"taskpilot_{int(now_s * 1000)}.note")
        self._tidy(sorted(notes), now_s)

    def _notes(self) -> Iterator[tuple[float, Path]]:
        for path in self._directory.glob("taskpilot_*.note"):
            yield int(path.stem.partition("_")[2]) / 1000, path

    def _tidy(self, notes: list[tuple[float, Path]], now_s: float) -> None:
        """Keep one note of each quarter where they are older than an hour, none where older than a day."""
        quarter = None
        for at_s, path in notes:
            before, quarter = quarter, at_s // _QUARTER
            if at_s < now_s - _DAY - _QUARTER or (at_s < now_s - _HOUR - _QUARTER and quarter == before):
                path.unlink(missing_ok=True)


def _read(path: Path) -> list[tuple[str, float]]:
    """Return the numbers of a file; none where its process has not come to the first yet."""
    with suppress(OSError, *_NOT_WHOLE):
        values = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
        return [(name, value) for name, value, *_ in values]
    return []


def _noted(path: Path) -> Figures | None:
    """Return what a note says; None where it cannot be read."""
    try:
        figures = marshal.loads(path.read_bytes())  # noqa: S302 - our own file
    except (OSError, ValueError, EOFError, TypeError):
        return None
    return figures if isinstance(figures, dict) else None
