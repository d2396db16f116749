"""Ledgers under many callers: threads, processes, forks and kills, over a SQLite file and a real Redis."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backends import RedisServer
from ledger_work import NOW, at_once, in_threads, new, spend

from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks._ledger_circuit import Circuit
from taskpilot_instrument.sinks._ledger_memory import MemoryLedger
from taskpilot_instrument.sinks.ledger import Claim, Ledger, Standing, Vote, open_ledger, open_store

CALLERS = 200
#: Its processes begin with what the server has imported once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ledger_work"])


def place(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Name a ledger of this kind."""
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        return server.url
    return kind if kind == "memory" else str(folder / "ledger.db")


@pytest.fixture(params=["memory", "sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a ledger of each kind."""
    return place(request.param, request, tmp_path)


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a ledger of each kind that processes can share."""
    return place(request.param, request, tmp_path)


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    """An open ledger of each kind, with patience: a busy machine may not answer within a call's time limit."""
    store = open_store(where, wait_s=5.0)
    opened = store if isinstance(store, MemoryLedger) else Circuit(store)
    yield opened
    opened.close()


# --- threads --------------------------------------------------------------------------------------


def test_two_hundred_threads_never_pass_a_limit(ledger: Ledger) -> None:
    """Two hundred threads at once are all served; not one of them passes the limit, and the sum is exact."""
    account = new("a")
    spent = at_once([lambda: spend(ledger, account, 1_001, 3)] * CALLERS)
    assert (Standing(account, "p", sum(spent), 0),) == ledger.standings([(account, "p")], NOW)
    assert 0 < sum(spent) + spend(ledger, account, 1_001, CALLERS) <= 1_001
    assert 1_001 - 5 < ledger.standings([(account, "p")], NOW)[0].spent <= 1_001


def test_held_at_once_is_never_more_than_the_limit(ledger: Ledger) -> None:
    """Of two hundred that reserve at once, as many as fit are held, and each other one is told what stands."""
    account = new("a")
    works = [lambda: ledger.reserve(new("r"), [Claim(account, "p", 7, 700)], 60.0, NOW)] * CALLERS
    answers = at_once(works)
    assert 100 == answers.count(None)
    assert {Standing(account, "p", 0, 700)} == {answer for answer in answers if answer is not None}


def test_counters_of_racing_votes_come_to_the_ledger(ledger: Ledger) -> None:
    """Where many change one vote at once, taking off what was replaced and adding what was put ends at what stands."""
    name, tally, lock = new("v"), {True: 0, False: 0}, threading.Lock()

    def put(number: int) -> None:
        vote = Vote(name, "req", None, number % 2 == 0, None, None, None, NOW)
        for _ in range(5):
            before = ledger.put_vote(vote)
            with lock:
                tally[vote.correct] += 1
                if before is not None:
                    tally[before.correct] -= 1

    at_once([lambda number=number: put(number) for number in range(8)])
    (last,) = [vote for vote in ledger.votes(0, NOW + 1) if vote.id == name]
    assert {last.correct: 1, not last.correct: 0} == tally


# --- processes ------------------------------------------------------------------------------------


def test_eight_processes_with_many_threads_never_pass_a_limit(shared: str) -> None:
    """Eight processes of ten threads, which open a new ledger at once, are all served, and the sum is exact."""
    account = new("a")
    with PROCESSES.Pool(8) as pool:
        spent = pool.starmap(in_threads, [(shared, account, 10, 10)] * 8, chunksize=1)
    ledger = open_ledger(shared)
    assert (Standing(account, "p", sum(spent), 0),) == ledger.standings([(account, "p")], NOW)
    assert 0 < sum(spent) <= 2_001
    spend(ledger, account, 2_001, 2_001)
    assert 2_001 - 5 < ledger.standings([(account, "p")], NOW)[0].spent <= 2_001
    ledger.close()


SETTLING = """
import sys
from taskpilot_instrument.sinks.ledger import Claim, open_ledger

ledger = open_ledger(sys.argv[1])
for number in range(1_000_000):
    name = f"{sys.argv[2]}-{number}"
    ledger.reserve(name, [Claim(sys.argv[2], "p", 10)], 60.0, float(sys.argv[3]))
    ledger.settle(name, [Claim(sys.argv[2], "p", 1)], float(sys.argv[3]))
    print(number + 1, flush=True)
"""


def test_kill_loses_nothing_that_was_acknowledged(shared: str) -> None:
    """After ``kill -9`` at any moment, every acknowledged settlement is there, and what was held is freed in time."""
    for settlements in (1, 17, 60):
        account = new("a")
        arguments = [sys.executable, "-c", SETTLING, shared, account, str(NOW)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged = [int(process.stdout.readline()) for _ in range(settlements)]
            process.send_signal(signal.SIGKILL)
            acknowledged += map(int, process.stdout.read().split())
        ledger = open_ledger(shared)
        (standing,) = ledger.standings([(account, "p")], NOW)
        assert standing.spent in {acknowledged[-1], acknowledged[-1] + 1}
        assert standing.reserved in {0, 10}
        assert 0 == ledger.standings([(account, "p")], NOW + 60)[0].reserved
        ledger.close()


# --- forks ----------------------------------------------------------------------------------------


def forked(work: Callable[[], object]) -> Callable[[], int]:
    """Run something in a forked child; return what waits for it and returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)  # a child that waits for a lock for ever is no reason for the test to do so
            work()
            code = 0
        finally:
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_outlives_its_parents_ledger(shared: str, tmp_path: Path) -> None:
    """What a forked child settles after its parent closed the ledger is kept: its locks are its own."""
    account, gone = new("a"), tmp_path / "gone"
    ledger = open_ledger(shared)
    ledger.settle(new("r"), [Claim(account, "p", 1)], NOW)

    def work() -> None:
        ledger.settle(f"{account}-1", [Claim(account, "p", 10)], NOW)
        while not gone.exists():
            pass
        ledger.settle(f"{account}-2", [Claim(account, "p", 100)], NOW)

    wait = forked(work)
    ledger.settle(new("r"), [Claim(account, "p", 1_000)], NOW)
    ledger.close()
    gone.touch()
    assert 0 == wait()
    again = open_ledger(shared)
    assert [1_111] == [each.spent for each in again.standings([(account, "p")], NOW)]
    again.close()


def test_forks_in_the_midst_of_work(ledger: Ledger) -> None:
    """Children that are forked while threads use the ledger can use it themselves, and so can theirs."""
    account, stop = new("a"), threading.Event()

    def work() -> None:
        while not stop.is_set():
            ledger.settle(new("r"), [Claim(account, "p", 1)], NOW)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:

        def settle(name: str) -> None:
            ledger.settle(name, [Claim(f"{account}-child", "p", 1)], NOW)

        def parent(name: str) -> None:
            settle(name)
            assert 0 == forked(lambda: settle(f"{name}-child"))()

        codes = [forked(lambda number=number: parent(f"{account}-{number}"))() for number in range(8)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [0] * 8 == codes
    expected = 16 if type(ledger).__name__ == "Circuit" else 0  # a child has a memory of its own
    assert expected == ledger.standings([(f"{account}-child", "p")], NOW)[0].spent


def test_an_unannounced_fork_is_seen(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that was forked by something that did not tell, the parent's connection is left alone."""
    account = new("a")
    ledger = open_ledger(shared)
    ledger.settle(new("r"), [Claim(account, "p", 1)], NOW)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    try:
        ledger.settle(new("r"), [Claim(account, "p", 1)], NOW)
    except LedgerError as error:
        raise AssertionError from error
    assert [2] == [each.spent for each in ledger.standings([(account, "p")], NOW)]
    ledger.close()
