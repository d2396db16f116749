"""One behaviour of the ledger, whatever it is kept in: memory, a SQLite file, a real Redis."""

import os
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
from backends import RedisServer
from hypothesis import given
from hypothesis import strategies as st

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks.ledger import (
    Claim,
    Ledger,
    Rollup,
    RunLink,
    Standing,
    Vote,
    default_path,
    open_ledger,
    to_pico,
    to_usd,
)

NOW = 1_764_000_000.0


@pytest.fixture(params=["memory", "sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a ledger of each kind."""
    if request.param == "memory":
        return "memory"
    if request.param == "sqlite":
        return str(tmp_path / "folder" / "ledger.db")
    server: RedisServer = request.getfixturevalue("redis")
    return server.url


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    """An open ledger of each kind."""
    opened = open_ledger(where)
    yield opened
    opened.close()


class Names:
    """New names, for the Redis of all tests is one."""

    count = 0

    @classmethod
    def new(cls, what: str) -> str:
        """Return one."""
        cls.count += 1
        return f"{what}-{os.getpid()}-{time.time_ns()}-{cls.count}"


# --- money --------------------------------------------------------------------------------------


def test_all_claims_or_none(ledger: Ledger) -> None:
    """Where one of several accounts has not enough, nothing is held in any of them."""
    roomy, tight = Names.new("roomy"), Names.new("tight")
    claims = [Claim(roomy, "p", 10, 1_000), Claim(tight, "p", 10, 5)]
    assert Standing(tight, "p", 0, 0) == ledger.reserve(Names.new("r"), claims, 60.0, NOW)
    assert (Standing(roomy, "p", 0, 0), Standing(tight, "p", 0, 0)) == ledger.standings(
        [(roomy, "p"), (tight, "p")], NOW
    )


def test_periods_are_apart(ledger: Ledger) -> None:
    """What is spent in one window is not spent in the next."""
    account = Names.new("a")
    ledger.settle(Names.new("r"), [Claim(account, "2026-01", 7)], NOW)
    assert [7, 0] == [each.spent for each in ledger.standings([(account, "2026-01"), (account, "2026-02")], NOW)]
    assert (account,) == ledger.accounts(account, "2026-01")
    assert () == ledger.accounts(account, "2026-02")


def test_text_that_no_file_can_hold(ledger: Ledger) -> None:
    """Half a surrogate pair, which JSON from outside can bring, costs nobody their money or their history."""
    bad, good = Names.new("bad\ud800"), Names.new("good")
    claims = [Claim(account, "p", 10, 15) for account in (bad, good)]
    reservation = Names.new("r")
    assert ledger.reserve(reservation, claims, 60.0, NOW) is None
    assert ledger.reserve(Names.new("r"), claims, 60.0, NOW) == Standing(bad, "p", 0, 10)
    ledger.settle(reservation, [claim._replace(amount=7) for claim in claims], NOW)
    assert [7, 7] == [each.spent for each in ledger.standings([(bad, "p"), (good, "p")], NOW)]
    runs = [RunLink(name, None, None, "w", "a", "m", (), NOW) for name in (bad, good)]
    ledger.put_runs(runs)
    ledger.put_vote(Vote(bad, bad, None, True, "u\udfff", "c\ud800", None, NOW))
    assert [True, True] == [ledger.find_run(request_id=name) is not None for name in (bad, good)]


def test_a_late_settlement_counts(ledger: Ledger) -> None:
    """A call that outlived its lease is charged all the same, once."""
    account, name = Names.new("a"), Names.new("r")
    ledger.reserve(name, [Claim(account, "p", 10, 10)], 1.0, NOW)
    assert ledger.reserve(Names.new("r"), [Claim(account, "p", 10, 10)], 1.0, NOW + 2) is None
    for _ in range(2):
        ledger.settle(name, [Claim(account, "p", 9)], NOW + 2)
    assert (Standing(account, "p", 9, 10),) == ledger.standings([(account, "p")], NOW + 2)


def test_large_sums_stay_exact(ledger: Ledger) -> None:
    """Millions of dollars and single pico-dollars add up to the last of them."""
    account = Names.new("a")
    ledger.settle(Names.new("r"), [Claim(account, "total", to_pico(Decimal(8_000_000)))], NOW)
    ledger.settle(Names.new("r"), [Claim(account, "total", 1)], NOW)
    assert [8_000_000 * 10**12 + 1] == [each.spent for each in ledger.standings([(account, "total")], NOW)]


@given(st.decimals(0, 9_000_000, places=12))
def test_money_survives_the_way_there_and_back(usd: Decimal) -> None:
    """Any amount with up to twelve decimals is held exactly."""
    assert usd == to_usd(to_pico(usd))


# --- feedback, runs, history --------------------------------------------------------------------


def vote(name: str, *, correct: bool = True, at_s: float = NOW) -> Vote:
    """Return a vote."""
    return Vote(name, "req-1", None, correct, "u", "a comment", 0.5, at_s)


def test_a_vote_replaces_the_one_before(ledger: Ledger) -> None:
    """A vote comes back as it was; a later one with its id takes its place and gets it back."""
    name, since = Names.new("v"), NOW + Names.count * 1000
    first, second = vote(name, at_s=since), vote(name, correct=False, at_s=since + 1)
    assert [None, first, second] == [ledger.put_vote(one) for one in (first, second, second)]
    assert (second,) == ledger.votes(since, since + 2)
    assert () == ledger.votes(since + 2, since + 3)


def test_a_run_is_found_by_either_id(ledger: Ledger) -> None:
    """A run's link is found by request and by trace id, with its variants; the latest wins, an unknown one is None."""
    request, trace = Names.new("req"), Names.new("trace")
    first = RunLink(request, trace, "b" * 16, "triage", "PlannerAgent", "gpt-4o-mini", (("exp", "terse"),), NOW)
    later = first._replace(agent="Reviewer", at_s=NOW + 1)
    ledger.put_runs([first])
    assert [first, first] == [ledger.find_run(request_id=request), ledger.find_run(trace_id=trace)]
    ledger.put_runs([later])
    assert [later, None] == [ledger.find_run(request_id=request), ledger.find_run(request_id=Names.new("x"))]
    assert ledger.find_run(trace_id=Names.new("x")) is None


def test_rollups_add_up(ledger: Ledger) -> None:
    """Figures of one hour and key are added; others stay apart, and come back oldest first."""
    hour, key = 3600 * (400_000 + time.time_ns() % 1_000_000_000), "agent=A|model=m"
    ledger.add_rollups(uuid4().hex, [Rollup(hour, key, {"calls": 1, "cost": 5})])
    ledger.add_rollups(uuid4().hex, [Rollup(hour, key, {"calls": 2}), Rollup(hour + 3600, key, {"calls": 4})])
    expected = (Rollup(hour, key, {"calls": 3, "cost": 5}), Rollup(hour + 3600, key, {"calls": 4}))
    assert expected == ledger.rollups(hour, hour + 7200)
    assert expected[:1] == ledger.rollups(hour, hour + 1)


def test_a_batch_of_rollups_counts_once(ledger: Ledger) -> None:
    """Where it is not known whether figures arrived they are added again, and count once all the same."""
    hour, batch = 3600 * (400_000 + time.time_ns() % 1_000_000_000), uuid4().hex
    figures = [Rollup(hour, f"agent=A|model=m{number}", {"calls": 1, "cost": number}) for number in range(600)]
    for _ in range(3):
        ledger.add_rollups(batch, figures)
    assert tuple(sorted(figures)) == ledger.rollups(hour, hour + 1)


# --- where it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a|b=c", "%7C", "\x1f", "x:y", "new\nline", "é", "\ud800", ""])
def test_rollups_keep_every_name(ledger: Ledger, name: str) -> None:
    """Agents, models and errors may be named as they like: what was put under a name is found under it alone."""
    hour = 3600 * (time.time_ns() % 10**9)
    keys = sorted([hourly.of_run(name), hourly.of_call(name, name), hourly.of_call(f"x{name}", name)])
    figure = f"{hourly.ERROR}{hourly.plain(name)}"
    for _ in range(2):
        ledger.add_rollups(uuid4().hex, [Rollup(hour, key, {figure: 2**40, hourly.CALLS: 1}) for key in keys])
    found = {rollup.key: dict(rollup.figures) for rollup in ledger.rollups(hour, hour + 1)}
    assert {key: {figure: 2**41, hourly.CALLS: 2} for key in keys} == found
    shown = name.encode("utf-8", "backslashreplace").decode() or "none"
    assert {"agent": shown, "model": shown} == hourly.dimensions(hourly.of_call(name, name))
    assert shown == hourly.named(figure.removeprefix(hourly.ERROR))


def test_the_file_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place the file lies in the user's state folder, readable by its owner only."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    open_ledger().close()
    path = tmp_path / "taskpilot" / "ledger.db"
    assert path == default_path()
    assert [0o700, 0o600] == [path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777]


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    """Something else in the file is said, and not overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and longer than a header of one " * 10)
    with pytest.raises(LedgerError, match=r"notes\.txt cannot be opened"):
        open_ledger(path)
    assert path.read_text().startswith("not a database")
