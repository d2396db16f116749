"""The ledger in a SQLite file, shared by the processes of one machine.

Write-ahead logging keeps what was committed when a process is killed. With ``synchronous=NORMAL`` a power cut may take
the last moments, never the file. Writers of one process queue at a lock of ours, which is fair and wakes at once;
SQLite's own lock, which sleeps and tries again, is left to the processes.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, TypeVar

from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks._ledger_records import Claim, Rollup, RunLink, Standing, Vote

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE spent (account TEXT, period TEXT, pico INTEGER NOT NULL, at_s REAL NOT NULL,
    PRIMARY KEY (account, period)) WITHOUT ROWID;
CREATE TABLE held (reservation TEXT, account TEXT, period TEXT, pico INTEGER NOT NULL, until_s REAL NOT NULL,
    PRIMARY KEY (account, period, reservation)) WITHOUT ROWID;
CREATE INDEX held_by_reservation ON held (reservation);
CREATE TABLE settled (reservation TEXT PRIMARY KEY, at_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX settled_by_time ON settled (at_s);
CREATE TABLE votes (id TEXT PRIMARY KEY, at_s REAL NOT NULL, vote TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX votes_by_time ON votes (at_s);
CREATE TABLE runs (request_id TEXT PRIMARY KEY, trace_id TEXT, at_s REAL NOT NULL, run TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX runs_by_trace ON runs (trace_id);
CREATE INDEX runs_by_time ON runs (at_s);
CREATE TABLE rollups (hour INTEGER, key TEXT, name TEXT, figure INTEGER NOT NULL,
    PRIMARY KEY (hour, key, name)) WITHOUT ROWID;
"""
_DAY: Final = 86_400.0
#: How long things are kept: what is older is taken away now and then.
_KEEP_SETTLED_S: Final = 2 * _DAY
_KEEP_S: Final = 400 * _DAY
#: Threads queue here while others write, each for some ten microseconds.
_LONGEST_QUEUE_S: Final = 1.0
_OPEN_S: Final = 5.0
_NAP_S: Final = 0.0002
_WRITES_BETWEEN_PRUNES: Final = 5_000
_T = TypeVar("_T")


class SqliteLedger:
    """Keep everything in one SQLite file.

    :param path: the file; it and its folder are made, readable by their owner only.
    :param wait_s: how long a call may wait for other writers, in seconds.
    :raises LedgerError: where the file cannot be opened or is no ledger of ours.
    """

    def __init__(self, path: Path, *, wait_s: float = 0.05) -> None:
        self.path = path
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._writes = 0
        self._failures = 0
        self._open(_OPEN_S)
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Leave the parent's connection alone: SQLite forbids its use, and even its closing, in a child."""
        self._lock = threading.Lock()
        self._kept, self._connection = self._connection, None

    def _open(self, wait_s: float) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=wait_s, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
            self.path.chmod(0o600)
            connection.execute("PRAGMA busy_timeout = 0")
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the ledger {self.path} cannot be opened: {error}") from error
        if version not in {0, _VERSION}:
            connection.close()
            raise LedgerError(
                f"the ledger {self.path} was written by another release (version {version}); name another file"
            )
        self._connection, self._pid = connection, os.getpid()
        return connection

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Queue for the connection; whoever queued while it failed fails too, instead of waiting once more."""
        failures = self._failures
        if not self._lock.acquire(timeout=_LONGEST_QUEUE_S):
            raise LedgerError(f"the ledger {self.path} is busy: {_LONGEST_QUEUE_S:.0f} s were not enough")
        try:
            self._require_no_failure_since(failures)
            yield
        except LedgerError:
            self._failures += 1
            raise
        finally:
            self._lock.release()

    def _require_no_failure_since(self, failures: int) -> None:
        if failures != self._failures:
            raise LedgerError(f"the ledger {self.path} failed a moment ago")

    def _do(self, work: Callable[[sqlite3.Connection], _T], *, writes: bool) -> _T:
        with self._locked():
            connection = self._connection or self._open(self._wait_s)
            try:
                if not writes:
                    return work(connection)
                self._begin(connection)
                try:
                    result = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LedgerError(f"the ledger {self.path} cannot be used: {error}") from error
            return result

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Begin to write. SQLite's own waiting sleeps ever longer, and so starves among many processes."""
        until = monotonic() + self._wait_s
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > until:
                    raise
            else:
                return
            sleep(_NAP_S)

    # --- money ------------------------------------------------------------------------------------

    def reserve(self, reservation: str, claims: Sequence[Claim], lease_s: float, now_s: float) -> Standing | None:
        """Hold all claims or none of them."""

        def work(db: sqlite3.Connection) -> Standing | None:
            for claim in claims:
                if claim.limit is not None:
                    standing = _standing(db, claim.account, claim.period, now_s)
                    if standing.spent + standing.reserved + claim.amount > claim.limit:
                        return standing
            db.executemany(
                "INSERT INTO held VALUES (?, ?, ?, ?, ?)",
                [(reservation, claim.account, claim.period, claim.amount, now_s + lease_s) for claim in claims],
            )
            return None

        return self._do(work, writes=True)

    def settle(self, reservation: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Free a reservation and add what was spent, once."""

        def work(db: sqlite3.Connection) -> tuple[Standing, ...]:
            db.execute("DELETE FROM held WHERE reservation = ?", (reservation,))
            fresh = db.execute("INSERT OR IGNORE INTO settled VALUES (?, ?)", (reservation, now_s)).rowcount
            if fresh:
                db.executemany(
                    "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET pico = pico + excluded.pico, "
                    "at_s = excluded.at_s",
                    [(charge.account, charge.period, charge.amount, now_s) for charge in charges],
                )
                self._prune(db, now_s)
            return tuple(_standing(db, charge.account, charge.period, now_s) for charge in charges)

        return self._do(work, writes=True)

    def _prune(self, db: sqlite3.Connection, now_s: float) -> None:
        self._writes += 1
        if self._writes % _WRITES_BETWEEN_PRUNES:
            return
        db.execute("DELETE FROM held WHERE until_s <= ?", (now_s - _DAY,))
        db.execute("DELETE FROM settled WHERE at_s < ?", (now_s - _KEEP_SETTLED_S,))
        db.execute("DELETE FROM spent WHERE at_s < ? AND period <> 'total'", (now_s - _KEEP_S,))
        db.execute("DELETE FROM votes WHERE at_s < ?", (now_s - _KEEP_S,))
        db.execute("DELETE FROM runs WHERE at_s < ?", (now_s - _KEEP_S,))
        db.execute("DELETE FROM rollups WHERE hour < ?", (now_s - _KEEP_S,))

    def standings(self, accounts: Iterable[tuple[str, str]], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand."""
        return self._do(
            lambda db: tuple(_standing(db, account, period, now_s) for account, period in accounts), writes=False
        )

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return the accounts with this prefix that were touched in a period."""
        rows = self._do(
            lambda db: db.execute(
                "SELECT account FROM spent WHERE period = ?1 UNION SELECT account FROM held WHERE period = ?1",
                (period,),
            ).fetchall(),
            writes=False,
        )
        return tuple(sorted(account for (account,) in rows if account.startswith(prefix)))

    # --- feedback, runs, history ------------------------------------------------------------------

    def put_vote(self, vote: Vote) -> Vote | None:
        """Keep a vote; return the one that it replaces."""

        def work(db: sqlite3.Connection) -> Vote | None:
            found = db.execute("SELECT vote FROM votes WHERE id = ?", (vote.id,)).fetchone()
            db.execute("INSERT OR REPLACE INTO votes VALUES (?, ?, ?)", (vote.id, vote.at_s, json.dumps(vote)))
            return None if found is None else Vote(*json.loads(found[0]))

        return self._do(work, writes=True)

    def votes(self, since_s: float, until_s: float) -> tuple[Vote, ...]:
        """Return the votes given in a stretch of time."""
        rows = self._do(
            lambda db: db.execute(
                "SELECT vote FROM votes WHERE at_s >= ? AND at_s < ? ORDER BY at_s", (since_s, until_s)
            ).fetchall(),
            writes=False,
        )
        return tuple(Vote(*json.loads(text)) for (text,) in rows)

    def put_runs(self, runs: Sequence[RunLink]) -> None:
        """Keep links of finished runs."""
        rows = [(run.request_id, run.trace_id, run.at_s, json.dumps(run)) for run in runs]
        self._do(lambda db: db.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", rows), writes=True)

    def find_run(self, *, request_id: str | None = None, trace_id: str | None = None) -> RunLink | None:
        """Return the latest run with this id."""
        column, value = ("request_id", request_id) if request_id is not None else ("trace_id", trace_id)
        query = f"SELECT run FROM runs WHERE {column} = ? ORDER BY at_s DESC LIMIT 1"  # noqa: S608 - one of two words
        found = self._do(lambda db: db.execute(query, (value,)).fetchone(), writes=False)
        return None if found is None else run_link(json.loads(found[0]))

    def add_rollups(self, rollups: Sequence[Rollup]) -> None:
        """Add figures to their hours."""
        rows = [
            (rollup.hour, rollup.key, name, figure) for rollup in rollups for name, figure in rollup.figures.items()
        ]
        self._do(
            lambda db: db.executemany(
                "INSERT INTO rollups VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET figure = figure + excluded.figure",
                rows,
            ),
            writes=True,
        )

    def rollups(self, since_s: float, until_s: float) -> tuple[Rollup, ...]:
        """Return the figures of every hour that begins in a stretch of time."""
        rows = self._do(
            lambda db: db.execute(
                "SELECT hour, key, name, figure FROM rollups WHERE hour >= ? AND hour < ? ORDER BY hour, key",
                (since_s, until_s),
            ).fetchall(),
            writes=False,
        )
        found: dict[tuple[int, str], dict[str, int]] = {}
        for hour, key, name, figure in rows:
            found.setdefault((hour, key), {})[name] = figure
        return tuple(Rollup(hour, key, figures) for (hour, key), figures in found.items())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._pid == os.getpid():
                connection.close()


def run_link(fields: Sequence[Any]) -> RunLink:
    """Return a run's link from its fields as JSON has them."""
    run = RunLink(*fields)
    return run._replace(variants=tuple((experiment, variant) for experiment, variant in run.variants))


def _standing(db: sqlite3.Connection, account: str, period: str, now_s: float) -> Standing:
    spent = db.execute("SELECT pico FROM spent WHERE account = ? AND period = ?", (account, period)).fetchone()
    (held,) = db.execute(
        "SELECT COALESCE(SUM(pico), 0) FROM held WHERE account = ? AND period = ? AND until_s > ?",
        (account, period, now_s),
    ).fetchone()
    return Standing(account, period, spent[0] if spent else 0, held)
