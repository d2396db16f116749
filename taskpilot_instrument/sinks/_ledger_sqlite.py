"""The ledger in a SQLite file, shared by the processes of one machine.

Write-ahead logging keeps what was committed when a process is killed. With ``synchronous=NORMAL`` a power cut may take
the last moments, never the file. The threads of a process queue at a gate of ours, which is fair; the lock on the file
is left to the processes, and held for no longer than one statement runs.
"""

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from taskpilot_instrument import _forks
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks import _ledger_sql as sql
from taskpilot_instrument.sinks._ledger_gate import Gate
from taskpilot_instrument.sinks._ledger_patience import Answer, execute, is_busy, patiently
from taskpilot_instrument.sinks._ledger_records import (
    Claim,
    Rollup,
    RunLink,
    Standing,
    Vote,
    run_from,
    run_text,
    vote_from,
    vote_text,
)

_log: Final = logging.getLogger("taskpilot_instrument")
#: At the start many processes may want to make the file at once.
_OPEN_S: Final = 5.0
#: Rows of one statement: older releases of SQLite take 999 values.
_MOST_ROWS: Final = 200
_PAGE: Final = 1000
#: Connections of a parent whose fork was not announced: SQLite forbids their use in the child, and even closing them.
_ghosts: Final[list[sqlite3.Connection]] = []


class SqliteLedger:
    """Keep everything in one SQLite file.

    :param path: the file; it and its folder are made, readable by their owner only.
    :param is_default: True where nobody named the path: then the folders above are made, too.
    :param wait_s: how long a call may wait while no other process gets anything done, in seconds; while they do, it
        waits for its turn.
    :raises LedgerError: where the file cannot be opened or is no ledger of ours.
    """

    def __init__(self, path: Path, *, wait_s: float = 0.05, is_default: bool = False) -> None:
        self.path = path
        self._is_default = is_default
        self._wait_s = wait_s
        self._gate = Gate(str(path))
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._entered = 0
        with self._gate.turn():
            self._open(_OPEN_S)
        _forks.pause(self)

    def before_fork(self) -> None:
        """Close the file.

        SQLite's locks belong to a process, what it knows of them to its memory: in a child that was forked with the
        file open, SQLite believes that it holds locks which it does not, and what the child writes may be lost.
        """
        self._entered = self._gate.enter_all()
        if self._entered:
            self._close()

    def go_on(self) -> None:
        """Go on; the file is opened again when it is needed."""
        for _ in range(self._entered):
            self._gate.leave()

    def after_fork(self) -> None:
        """Go on with a gate that nobody is in."""
        self._gate = Gate(self._gate.name)

    # --- the file ---------------------------------------------------------------------------------

    def _open(self, wait_s: float) -> sqlite3.Connection:
        connection = None
        try:
            self._make()
            connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            patiently(connection, "PRAGMA journal_mode = WAL", (), wait_s)
            connection.execute("PRAGMA synchronous = NORMAL")
            version = self._upgrade(connection, wait_s)
        except (OSError, sqlite3.Error) as error:
            if connection is not None:
                connection.close()
            raise LedgerError(f"the ledger {self.path} cannot be opened: {error}") from error
        if version not in {0, sql.VERSION}:
            connection.close()
            raise LedgerError(
                f"the ledger {self.path} was written by another release (version {version}); name another file"
            )
        self._connection, self._pid = connection, os.getpid()
        return connection

    def _make(self) -> None:
        """Make the file where there is none, and say so: a path with a typo in it would begin at zero in silence.

        :raises OSError: where it cannot be made.
        """
        if self.path.exists():
            return
        folder = self.path.parent
        if not self._is_default and not folder.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {folder.parent} to make {folder.name}/ in; is the path right?")
        folder.mkdir(mode=0o700, parents=self._is_default, exist_ok=True)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:  # another process was faster
            return
        _log.log(
            logging.INFO if self._is_default else logging.WARNING,
            "taskpilot_instrument: there was no ledger at %s; a new one was made, and budgets begin at zero",
            self.path,
        )

    @staticmethod
    def _upgrade(connection: sqlite3.Connection, wait_s: float) -> int:
        """Make the tables of a new file; return the version that it had before."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            patiently(connection, "BEGIN IMMEDIATE", (), wait_s)
            (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been faster
            if version == 0:
                for statement in sql.schema():
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {sql.VERSION}")
            connection.execute("COMMIT")
        return int(version)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._pid == os.getpid():
            connection.close()
        else:
            _ghosts.append(connection)

    def _ask(self, statement: str, values: Sequence[Any] = ()) -> Answer:
        """Run one statement to its end."""
        return self._ask_all([(statement, values)])

    def _ask_all(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> Answer:
        """Run statements, all of them or none; everything that is asked of the file comes through here."""
        with self._gate.turn():
            if self._pid != os.getpid():
                self._close()
            connection = self._connection or self._open(self._wait_s)
            try:
                if len(statements) == 1:
                    return patiently(connection, *statements[0], self._wait_s)
                patiently(connection, "BEGIN IMMEDIATE", (), self._wait_s)
                for statement, values in statements:
                    execute(connection, statement, values)
                return patiently(connection, "COMMIT", (), self._wait_s)
            except BaseException as error:
                ill = error if isinstance(error, sqlite3.Error) else None
                if connection.in_transaction or (ill is not None and not is_busy(ill)):
                    self._close()  # takes back what was half done; the next one sees whether the file is well again
                if ill is None:
                    raise  # Ctrl+C, or a number that SQLite has no room for
                raise LedgerError(f"the ledger {self.path} cannot be used: {error}") from error

    def _pages(self, query: str, key: Sequence[Any], *bounds: Any) -> Iterator[tuple[Any, ...]]:
        """Read much without holding others up: page by page, each after the key that the last one ended with."""
        while True:
            rows, _ = self._ask(query, (*key, *bounds, _PAGE))
            yield from rows
            if len(rows) < _PAGE:
                return
            key = rows[-1][: len(key)]

    # --- money ------------------------------------------------------------------------------------

    def reserve(self, reservation: str, claims: Sequence[Claim], lease_s: float, now_s: float) -> Standing | None:
        """Hold all claims or none of them."""
        if not claims:
            return None
        values = [reservation, now_s + lease_s, now_s, *(value for claim in claims for value in claim)]
        while not self._ask(sql.reserving(len(claims)), values).wrote:
            standings = self.standings([claim[:2] for claim in claims], now_s)
            for claim, standing in zip(claims, standings, strict=True):
                if claim.limit is not None and standing.spent + standing.reserved + claim.amount > claim.limit:
                    return standing
            # Somebody made room in this very moment.
        return None

    def settle(self, reservation: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Free a reservation and add what was spent, once."""
        values: list[Any] = [value for charge in charges for value in charge[:3]] or [None] * 3
        self._ask(sql.settling(len(values) // 3), [reservation, now_s, *values])
        return self.standings([charge[:2] for charge in charges], now_s)

    def standings(self, accounts: Iterable[tuple[str, str]], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand."""
        return tuple([Standing(*account, *self._ask(sql.STANDING, (*account, now_s)).rows[0]) for account in accounts])

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return the accounts with this prefix that were charged in a period."""
        query = (
            "SELECT account FROM spent WHERE account > ?1 AND account >= ?2 AND account < ?3 AND period = ?4 "
            "ORDER BY account LIMIT ?5"
        )
        return tuple([row[0] for row in self._pages(query, ("",), prefix, f"{prefix}\U0010ffff", period)])

    # --- feedback, runs, history ------------------------------------------------------------------

    def put_vote(self, vote: Vote) -> Vote | None:
        """Keep a vote; return the one that it replaces."""
        text = vote_text(vote)
        while True:
            rows = self._ask("SELECT vote, at_s FROM votes WHERE id = ?", (vote.id,)).rows
            before = rows[0][0] if rows else None
            if before == text or self._ask(sql.VOTING, (vote.id, vote.at_s, text, before)).wrote:
                return vote_from(*rows[0]) if rows else None
            # Somebody else put one in between: it is that one which is replaced.

    def votes(self, since_s: float, until_s: float) -> tuple[Vote, ...]:
        """Return the votes given in a stretch of time."""
        query = "SELECT at_s, id, vote FROM votes WHERE (at_s, id) > (?, ?) AND at_s < ? ORDER BY at_s, id LIMIT ?"
        return tuple([vote_from(text, at_s) for at_s, _, text in self._pages(query, (since_s, ""), until_s)])

    def put_runs(self, runs: Sequence[RunLink]) -> None:
        """Keep links of finished runs."""
        rows = [(run.request_id, run.trace_id, run.at_s, run_text(run)) for run in runs]
        if rows:
            into = "INSERT INTO runs (request_id, trace_id, at_s, run) "
            self._ask_all([(into + sql.values(len(part), 4), list(chain.from_iterable(part))) for part in _parts(rows)])

    def find_run(self, *, request_id: str | None = None, trace_id: str | None = None) -> RunLink | None:
        """Return the latest run with this id."""
        rows = self._ask(sql.RUN, (request_id, trace_id)).rows
        return run_from(rows[0][0]) if rows else None

    def add_rollups(self, batch: str, rollups: Sequence[Rollup]) -> None:
        """Add figures to their hours, once."""
        rows = [(hour, key, name, figure) for hour, key, figures in rollups for name, figure in figures.items()]
        if rows:
            adding = [(sql.adding(len(part)), [batch, *chain.from_iterable(part)]) for part in _parts(rows)]
            self._ask_all([*adding, (sql.ADDED, [batch, max(rollup.hour for rollup in rollups)])])

    def rollups(self, since_s: float, until_s: float) -> tuple[Rollup, ...]:
        """Return the figures of every hour that begins in a stretch of time."""
        query = (
            "SELECT hour, key, name, figure FROM rollups WHERE (hour, key, name) > (?, ?, ?) AND hour < ? "
            "ORDER BY hour, key, name LIMIT ?"
        )
        found: dict[tuple[int, str], dict[str, int]] = {}
        for hour, key, name, figure in self._pages(query, (since_s, "", ""), until_s):
            found.setdefault((hour, key), {})[name] = figure
        return tuple([Rollup(*place, figures) for place, figures in found.items()])

    def close(self) -> None:
        """Close the file; it is opened again where the ledger is used all the same."""
        with self._gate.turn():
            self._close()


def _parts(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    return (rows[start : start + _MOST_ROWS] for start in range(0, len(rows), _MOST_ROWS))
