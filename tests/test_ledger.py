"""One behaviour of the ledger, whatever it is kept in: memory, a SQLite file, a real Redis."""

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from backends import RedisServer, free_port
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskpilot_instrument.errors import ConfigurationError, LedgerError
from taskpilot_instrument.sinks._ledger_circuit import Circuit
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
FORK = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


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
def shared(where: str) -> str:
    """Name a ledger that several processes can share."""
    if where == "memory":
        pytest.skip("memory is one process's")
    return where


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


@given(
    st.lists(
        st.tuples(st.sampled_from(["reserve", "settle", "replay", "expire"]), st.integers(0, 40), st.integers(0, 60)),
        max_size=30,
    )
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_counts_as_a_plain_model_does(ledger: Ledger, steps: list[tuple[str, int, int]]) -> None:
    """Reservations, settlements, replays and leases come to what adding them up by hand comes to."""
    account, limit, now, spent = Names.new("a"), 100, NOW, 0
    held: dict[str, tuple[int, float]] = {}
    settled: list[str] = []
    for step, amount, cost in steps:
        alive = {name: one for name, one in held.items() if one[1] > now}
        reserved = sum(worst for worst, _ in alive.values())
        if step == "reserve":
            name = Names.new("r")
            answer = ledger.reserve(name, [Claim(account, "p", amount, limit)], 60.0, now)
            fits = spent + reserved + amount <= limit
            assert (None if fits else Standing(account, "p", spent, reserved)) == answer
            if fits:
                held[name] = (amount, now + 60.0)
        elif step == "settle" and held:
            name = next(iter(held))
            del held[name]
            settled.append(name)
            spent += cost
            left = sum(worst for worst, until in held.values() if until > now)
            assert (Standing(account, "p", spent, left),) == ledger.settle(name, [Claim(account, "p", cost)], now)
        elif step == "replay" and settled:
            ledger.settle(settled[0], [Claim(account, "p", cost)], now)
        else:
            now += 30.0
    left = sum(worst for worst, until in held.values() if until > now)
    assert (Standing(account, "p", spent, left),) == ledger.standings([(account, "p")], now)


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


def test_threads_never_pass_a_limit(ledger: Ledger) -> None:
    """Sixteen threads that reserve and settle at once spend no more than the limit, and all of it is counted."""
    account, settled = Names.new("a"), []

    def work() -> None:
        for _ in range(20):
            name = Names.new("r")
            if ledger.reserve(name, [Claim(account, "p", 3, 300)], 60.0, NOW) is None:
                ledger.settle(name, [Claim(account, "p", 3)], NOW)
                settled.append(3)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Standing(account, "p", 300, 0),) == ledger.standings([(account, "p")], NOW)
    assert sum(settled) == 300


def spend(where: str, account: str, times: int) -> int:
    """Reserve and settle as long as there is room; return what was spent."""
    ledger, spent = open_ledger(where), 0
    for _ in range(times):
        name = Names.new("r")
        if ledger.reserve(name, [Claim(account, "p", 3, 600)], 60.0, NOW) is None:
            ledger.settle(name, [Claim(account, "p", 3)], NOW)
            spent += 3
    ledger.close()
    return spent


def test_processes_never_pass_a_limit(shared: str) -> None:
    """Eight processes that share a ledger spend no more than the limit, and all of it is counted."""
    account = Names.new("a")
    with FORK.Pool(8) as pool:
        spent = pool.starmap(spend, [(shared, account, 40)] * 8)
    ledger = open_ledger(shared)
    assert (Standing(account, "p", 600, 0),) == ledger.standings([(account, "p")], NOW)
    assert sum(spent) == 600
    ledger.close()


KILLED = """
import sys
from taskpilot_instrument.sinks.ledger import Claim, open_ledger

ledger = open_ledger(sys.argv[1])
for number in range(1_000_000):
    ledger.settle(f"{sys.argv[2]}-{number}", [Claim(sys.argv[2], "p", 1)], 1.0)
    print(number + 1, flush=True)
"""


def test_kill_loses_nothing_that_was_settled(shared: str) -> None:
    """After ``kill -9`` in the midst of settling, everything that was acknowledged is in the ledger."""
    account = Names.new("a")
    process = subprocess.Popen([sys.executable, "-c", KILLED, shared, account], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= 50:
            process.send_signal(signal.SIGKILL)
            break
    acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
    process.stdout.close()
    process.wait()
    ledger = open_ledger(shared)
    (standing,) = ledger.standings([(account, "p")], NOW)
    assert acknowledged <= standing.spent <= acknowledged + 1
    ledger.close()


def test_a_forked_child_has_a_ledger_of_its_own(shared: str) -> None:
    """A child that was forked with the ledger open counts on; so does its parent."""
    account = Names.new("a")
    ledger = open_ledger(shared)
    ledger.settle(Names.new("r"), [Claim(account, "p", 1)], NOW)
    child = os.fork()
    if child == 0:
        try:
            ledger.settle(f"child-{account}", [Claim(account, "p", 10)], NOW)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ledger.settle(Names.new("r"), [Claim(account, "p", 100)], NOW)
    assert [111] == [each.spent for each in ledger.standings([(account, "p")], NOW)]
    ledger.close()


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


def test_racing_votes_see_each_other(ledger: Ledger) -> None:
    """Of many that put the same vote at once exactly one is the first."""
    name, answers = Names.new("v"), []
    threads = [threading.Thread(target=lambda: answers.append(ledger.put_vote(vote(name)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(None) == 1


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
    ledger.add_rollups([Rollup(hour, key, {"calls": 1, "cost": 5})])
    ledger.add_rollups([Rollup(hour, key, {"calls": 2}), Rollup(hour + 3600, key, {"calls": 4})])
    expected = (Rollup(hour, key, {"calls": 3, "cost": 5}), Rollup(hour + 3600, key, {"calls": 4}))
    assert expected == ledger.rollups(hour, hour + 7200)
    assert expected[:1] == ledger.rollups(hour, hour + 1)


# --- where it is --------------------------------------------------------------------------------


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


def test_a_url_without_its_password_in_errors() -> None:
    """An unreachable Redis is named without its password."""
    ledger = open_ledger(f"redis://user:s3cr3t@127.0.0.1:{free_port()}/0")
    with pytest.raises(LedgerError, match="cannot be reached") as caught:
        ledger.standings([("a", "p")], NOW)
    assert "s3cr3t" not in str(caught.value)
    ledger.close()


def test_a_wrong_url_is_refused() -> None:
    """A URL that Redis's client cannot read is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="no Redis URL"):
        open_ledger("redis://127.0.0.1:port/0")


# --- being away ---------------------------------------------------------------------------------


def test_redis_restarts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While Redis is away calls fail at once; when it is back the ledger is, with what it had."""
    server = RedisServer(tmp_path)
    clock = [0.0]
    ledger = Circuit(open_ledger(server.url).ledger, now_s=lambda: clock[0])  # type: ignore[attr-defined]
    try:
        ledger.settle("r1", [Claim("a", "p", 5)], NOW)  # type: ignore[attr-defined]
        server.stop()
        for _ in range(3):
            with pytest.raises(LedgerError):
                ledger.settle("r2", [Claim("a", "p", 5)], NOW)  # type: ignore[attr-defined]
        assert ledger.is_open
        server.start()
        with pytest.raises(LedgerError):
            ledger.settle("r2", [Claim("a", "p", 5)], NOW)  # type: ignore[attr-defined]
        clock[0] += 60
        (standing,) = ledger.settle("r2", [Claim("a", "p", 5)], NOW)  # type: ignore[attr-defined]
        assert standing.spent == 10
        assert not ledger.is_open
    finally:
        ledger.close()
        server.stop()
    assert [logging.WARNING] * 2 == [record.levelno for record in caplog.records]


def test_a_silent_server_is_not_waited_for() -> None:
    """A server that accepts and never answers holds nobody up: after the first call the circuit is open."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ledger = open_ledger(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        asked: list[Callable[[], object]] = [lambda: ledger.standings([("a", "p")], NOW)] * 200
        for ask in asked:
            with pytest.raises(LedgerError):
                ask()
        silent.settimeout(0.2)
        accepted = 0
        try:
            while True:
                silent.accept()[0].close()
                accepted += 1
        except TimeoutError:
            pass
        ledger.close()
    assert accepted <= 3


def test_pauses_grow_and_one_caller_tries() -> None:
    """An open circuit is tried after half a second, then after one, two, … up to thirty, by one caller each time."""

    class Broken:
        tries = 0

        def standings(self, *_: object) -> tuple[Standing, ...]:
            self.tries += 1
            raise LedgerError("gone")

        reserve = settle = accounts = put_vote = votes = put_runs = find_run = add_rollups = rollups = standings

    broken, clock, tried_at = Broken(), [0.0], []
    circuit = Circuit(broken, now_s=lambda: clock[0])  # type: ignore[arg-type]
    for tick in range(1300):
        clock[0] = tick / 10
        before = broken.tries
        for _ in range(3):
            with pytest.raises(LedgerError, match="gone"):
                circuit.standings([], NOW)  # type: ignore[attr-defined]
        if broken.tries > before:
            tried_at.append(clock[0])
            assert broken.tries == before + 1
    assert [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5] == tried_at
