"""The ledger's SQLite file: whose it is, what is in the way of it, and what is taken away from it."""

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from taskpilot_instrument import Settings
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.errors import ConfigurationError, LedgerError
from taskpilot_instrument.sinks._ledger_sqlite import SqliteLedger
from taskpilot_instrument.sinks.ledger import Claim, Ledger, Rollup, RunLink, Vote, open_ledger
from taskpilot_instrument.testing import capture

NOW = 1_764_000_000.0
DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file that is not there yet."""
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    """A ledger without a circuit, so that every failure is the file's own."""
    opened = SqliteLedger(path)
    yield opened
    opened.close()


def rows(path: Path, table: str) -> int:
    """Return how many rows a table has."""
    with sqlite3.connect(path) as connection:
        (number,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    connection.close()
    return int(number)


# --- where it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "sqlite://"])
def test_a_path_or_a_url(path: Path, prefix: str) -> None:
    """A file is named by its path, or by a URL."""
    open_ledger(f"{prefix}{path}").close()
    assert path.exists()


def test_a_new_file_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That a ledger begins at zero, and where, is one warning; one that is there is opened in silence."""
    for _ in range(2):
        with capture(ledger=path):
            pass
    expected = f"taskpilot_instrument: there was no ledger at {path}; a new one was made, and budgets begin at zero"
    assert [("WARNING", expected)] == [(record.levelname, record.getMessage()) for record in caplog.records]


def test_only_the_last_folder_is_made(tmp_path: Path) -> None:
    """A path with a typo in it is refused rather than made, folders and all."""
    with capture(ledger=tmp_path / "state" / "ledger.db"):
        pass
    assert (tmp_path / "state" / "ledger.db").is_file()
    with pytest.raises(LedgerError, match=r"there is no folder .*stat to make app/ in; is the path right\?"):
        open_ledger(tmp_path / "stat" / "app" / "ledger.db")
    assert ["state"] == [each.name for each in tmp_path.iterdir()]


def test_the_users_own_ledger_makes_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a fresh machine the state folder is not there yet, and nobody named it wrongly."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / ".local" / "state"))
    with caplog.at_level(logging.INFO, "taskpilot_instrument"), capture(budgets=[Budget("all", 1)], ledger=None):
        pass
    assert (tmp_path / "home/.local/state/taskpilot/ledger.db").is_file()
    assert ["INFO"] == [record.levelname for record in caplog.records if "there was no ledger" in record.getMessage()]


@pytest.mark.parametrize(
    "where",
    [
        "postgres://user:s3cr3t@db/x",
        ":memory:",
        "sqlite://",
        " ",
        "redis:/x",
        "redis:user:s3cr3t@db",
        "SQLite:/x/y",
        "redis",
        "sqlite",
    ],
)
def test_what_is_no_place_is_refused(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither a file nor a Redis is refused, with what would be right and without its password."""
    with pytest.raises(ConfigurationError, match=r"ledger=.*expected the path of a SQLite file") as caught:
        open_ledger(where)
    assert "s3cr3t" not in str(caught.value)
    monkeypatch.setenv("TASKPILOT_LEDGER", where.strip() or ":memory:")
    with pytest.raises(ConfigurationError, match=r"TASKPILOT_LEDGER=.*expected the path of a SQLite file") as caught:
        Settings()
    assert "s3cr3t" not in str(caught.value)


def test_memory_is_written_in_any_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word is a word, and no file of that name."""
    monkeypatch.chdir(tmp_path)
    with capture(ledger="Memory", budgets=[Budget("all", 1)]) as captured:
        assert "memory" == captured.handle.settings.ledger
    assert [] == list(tmp_path.iterdir())


def test_other_peoples_files_keep_their_mode(path: Path) -> None:
    """A file that its owner shares with a group stays so."""
    path.touch()
    path.chmod(0o660)
    open_ledger(path).close()
    assert 0o660 == path.stat().st_mode & 0o777


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    """A folder cannot be opened, and the message names it."""
    with pytest.raises(LedgerError, match=f"{tmp_path} cannot be opened"):
        open_ledger(tmp_path)


def test_a_later_release_s_file_is_refused(path: Path) -> None:
    """A file whose tables are of another release is left alone."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 77")
    connection.close()
    with pytest.raises(LedgerError, match="written by another release"):
        open_ledger(path)


# --- what is in the way ---------------------------------------------------------------------------


def test_a_writer_that_does_not_end_is_not_waited_for(ledger: SqliteLedger, path: Path) -> None:
    """While somebody else holds the file's lock, writing fails, reading does not; afterwards both work."""
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="database is locked"):
            ledger.settle("r", [Claim("a", "p", 1)], NOW)
        with pytest.raises(LedgerError, match="database is locked"):
            ledger.add_rollups(uuid4().hex, [Rollup(0, str(number), {"calls": 1}) for number in range(201)])
        assert [0] == [each.spent for each in ledger.standings([("a", "p")], NOW)]
        other.execute("ROLLBACK")
    other.close()
    assert [1] == [each.spent for each in ledger.settle("r", [Claim("a", "p", 1)], NOW)]
    assert () == ledger.rollups(0, 1)


def test_what_cannot_be_written_leaves_nothing_half_done(ledger: SqliteLedger, path: Path) -> None:
    """A number that SQLite has no room for is refused as such, and others write and read on at once."""
    ledger.put_runs([RunLink("req", None, None, None, None, None, (), NOW)])
    with pytest.raises(OverflowError):
        ledger.add_rollups(uuid4().hex, [Rollup(0, "k", {"calls": 1, "input_tokens": 1 << 70})])
    other = SqliteLedger(path)
    assert [1] == [each.spent for each in other.settle("r", [Claim("a", "p", 1)], NOW)]
    other.close()
    assert () == ledger.rollups(0, 1)


def test_the_ledger_comes_back_with_the_file(path: Path) -> None:
    """A file that is spoilt while it is open fails; once it is whole again, so is the ledger."""
    ledger = SqliteLedger(path)
    ledger.settle("r", [Claim("a", "p", 1)], NOW)
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(b"spoilt" * 1000)
    for _ in range(2):
        with pytest.raises(LedgerError, match="not a database"):
            ledger.settle("r2", [Claim("a", "p", 1)], NOW)
    path.write_bytes(whole)
    assert [2] == [each.spent for each in ledger.settle("r2", [Claim("a", "p", 1)], NOW)]
    ledger.close()


# --- what is taken away ---------------------------------------------------------------------------


def fill(ledger: Ledger, name: str, now_s: float) -> None:
    """Put one of everything."""
    ledger.reserve(f"held-{name}", [Claim("a", f"p-{name}", 1)], 60.0, now_s)
    ledger.settle(f"r-{name}", [Claim("a", f"p-{name}", 1), Claim("a", "total", 1)], now_s)
    ledger.put_vote(Vote(name, "req", None, True, None, None, None, now_s))
    ledger.put_runs([RunLink(name, name, None, None, None, None, (), now_s)])
    ledger.add_rollups(uuid4().hex, [Rollup(int(now_s), "k", {"calls": 1})])


def test_what_is_old_goes_as_new_comes(ledger: SqliteLedger, path: Path) -> None:
    """What is too old goes, two rows with each that comes; what never ends stays."""
    for number in range(10):
        fill(ledger, str(number), NOW)
    for number in range(10, 16):
        fill(ledger, str(number), NOW + 500 * DAY)
    left = {table: rows(path, table) for table in ("held", "settled", "votes", "runs", "rollups", "spent")}
    assert {"held": 6, "settled": 18, "votes": 6, "runs": 6, "rollups": 1, "spent": 7} == left
    assert [16] == [each.spent for each in ledger.standings([("a", "total")], NOW)]


@pytest.mark.parametrize("days", [0.2, 13, 69, 399])
def test_what_is_not_old_stays(ledger: SqliteLedger, path: Path, days: float) -> None:
    """Settlements stay for hours, runs for two weeks, accounts for two months, votes and figures for a year."""
    fill(ledger, "old", NOW)
    fill(ledger, "new", NOW + days * DAY)
    ends = {"settled": 0.25, "runs": 14, "spent": 70, "votes": 400}
    expected = {
        "settled": 6 if days < ends["settled"] else 3, "runs": 2 if days < ends["runs"] else 1,
        "spent": 3 if days < ends["spent"] else 2, "votes": 2,
    }  # fmt: skip
    assert expected == {table: rows(path, table) for table in ends}


def test_much_is_read_in_pages(ledger: SqliteLedger) -> None:
    """More accounts, votes and figures than are read at once come back whole, each once, in order."""
    names = [f"a{number:04}" for number in range(2_001)]
    for start in range(0, 2_001, 100):
        ledger.settle(f"r{start}", [Claim(name, "p", 1) for name in names[start : start + 100]], NOW)
    for name in names:
        ledger.put_vote(Vote(name, None, None, True, None, None, None, NOW))
    ledger.add_rollups(uuid4().hex, [Rollup(3600, name, {"calls": 1, "pico": 2}) for name in names])
    assert tuple(names) == ledger.accounts("a", "p")
    assert names == [vote.id for vote in ledger.votes(NOW, NOW + 1)]
    assert tuple(Rollup(3600, name, {"calls": 1, "pico": 2}) for name in names) == ledger.rollups(0, 3601)
