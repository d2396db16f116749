"""Run statements on a SQLite file that other processes write to as well."""

import sqlite3
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any, Final, NamedTuple

from taskpilot_instrument.sinks._ledger_records import UNENCODABLE

#: SQLite's own waiting sleeps ever longer, and so starves among many processes.
_NAP_S: Final = 0.0002
_FEWEST_NAPS: Final = 25
#: However many others get their turn.
_LONGEST_WAIT_S: Final = 1.0


class Answer(NamedTuple):
    """What a statement gave: its rows, and how many it wrote."""

    rows: list[tuple[Any, ...]]
    wrote: int


def patiently(connection: sqlite3.Connection, statement: str, values: Sequence[Any], wait_s: float) -> Answer:
    """Run a statement, again and again while other processes are writing.

    :param wait_s: for how long nobody may have got anything done.
    """
    patience = None
    while True:
        try:
            cursor = execute(connection, statement, values)
            return Answer(cursor.fetchall(), cursor.rowcount)
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
            patience = patience or _Patience(connection, wait_s)
            if patience.is_over():
                raise
        sleep(_NAP_S)


def execute(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> sqlite3.Cursor:
    """Run a statement; what comes from outside may hold halves of surrogate pairs, which no file can."""
    try:
        return connection.execute(statement, values)
    except UnicodeEncodeError:
        return connection.execute(
            statement,
            [value.encode("utf-8", UNENCODABLE).decode() if isinstance(value, str) else value for value in values],
        )


class _Patience:
    """Tell waiting for those who were faster from waiting for one who holds the file and does not go on.

    :param wait_s: for how long nobody may have got anything done.
    """

    def __init__(self, connection: sqlite3.Connection, wait_s: float) -> None:
        self._connection = connection
        self._wait_s = wait_s
        self._naps = 0
        self._began = self._since = monotonic()
        self._version = self._writes_of_others()

    def is_over(self) -> bool:
        """Tell whether to give up; asked before each nap."""
        self._naps += 1
        now = monotonic()
        # On a machine that is too busy to run us, time passes without our looking: a few looks have to be among it.
        if now - self._since < self._wait_s or self._naps < _FEWEST_NAPS:
            return False
        version = self._writes_of_others()
        if version == self._version or now - self._began > _LONGEST_WAIT_S:
            return True
        self._naps, self._since, self._version = 0, now, version
        return False

    def _writes_of_others(self) -> int | None:
        """Return a number that changes with every write of another connection; None where not even that can be read."""
        try:
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return None
        return int(version)


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another process was writing."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
