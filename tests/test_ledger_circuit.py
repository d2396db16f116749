"""What stands between a caller and a ledger that is away, fails, or takes too long."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from backends import RedisServer, free_port

from taskpilot_instrument import _guard
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks._ledger_circuit import Circuit
from taskpilot_instrument.sinks._ledger_memory import MemoryLedger
from taskpilot_instrument.sinks._ledger_redis import RedisLedger
from taskpilot_instrument.sinks.ledger import Claim, Standing, open_ledger

NOW = 1_764_000_000.0


class Moody:
    """A ledger of a user's own that does first what it is told to."""

    def __init__(self) -> None:
        self._kept = MemoryLedger()
        self.asked = 0
        self.mood: Callable[[], object] = lambda: None

    def settle(self, reservation: str, charges: Any, now_s: float) -> tuple[Standing, ...]:
        """Do it, then settle."""
        self.asked += 1
        self.mood()
        return self._kept.settle(reservation, charges, now_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return what it is now."""
        return self.now


def fail() -> None:
    """Be away."""
    raise LedgerError("it is away")


@pytest.fixture
def moody() -> Moody:
    """A ledger that fails on demand."""
    return Moody()


@pytest.fixture
def clock() -> Clock:
    """A clock that stands."""
    return Clock()


@pytest.fixture
def circuit(moody: Moody, clock: Clock) -> Circuit:
    """The circuit before it."""
    return Circuit(moody, now_s=clock)


def settle(circuit: Any, name: str = "r") -> int:
    """Settle something; return what is spent."""
    (standing,) = circuit.settle(name, [Claim("a", "p", 5)], NOW)
    return int(standing.spent)


def refused(circuit: Any, match: str | None = None) -> None:
    """Be refused."""
    with pytest.raises(LedgerError, match=match):
        settle(circuit)


# --- open and closed ------------------------------------------------------------------------------


def test_pauses_grow_and_one_caller_tries(circuit: Circuit, moody: Moody, clock: Clock) -> None:
    """An open circuit is tried after half a second, then after one, two, … up to thirty, by one caller each time."""
    moody.mood, tried_at = fail, []
    for tick in range(1300):
        clock.now, before = tick / 10, moody.asked
        for _ in range(3):
            refused(circuit, "it is away")
        if moody.asked > before:
            tried_at.append(clock.now)
            assert before + 1 == moody.asked
    assert [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5] == tried_at
    assert (10, 3 * 1300 - 10) == (circuit.failures, circuit.turned_away)


def test_it_closes_with_the_first_success(
    circuit: Circuit, moody: Moody, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A try that succeeds closes the circuit for all; opening and closing are logged once, failures counted."""
    moody.mood = fail
    refused(circuit)
    clock.now += 0.5
    refused(circuit)
    moody.mood = lambda: None
    clock.now += 0.9
    refused(circuit)
    assert circuit.is_open
    clock.now += 0.1
    assert 5 == settle(circuit)
    assert 10 == settle(circuit, "another")
    assert not circuit.is_open
    assert {"ledger": 2} == _guard.swallowed()
    assert [
        "taskpilot_instrument: it is away; it is asked again after a pause, until then calls go by ledger_unavailable",
        "taskpilot_instrument: the ledger is back",
    ] == [record.getMessage() for record in caplog.records]


def test_callers_that_fail_together_open_it_once(circuit: Circuit, moody: Moody, clock: Clock) -> None:
    """Twenty calls that were under way when the ledger went away count as one opening: the next try is soon."""
    inside = threading.Barrier(20)

    def fail_together() -> None:
        inside.wait()
        fail()

    moody.mood = fail_together
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: refused(circuit), range(20)))
    moody.mood = lambda: None
    clock.now += 0.5
    assert 5 == settle(circuit)


def test_a_ledger_that_is_too_slow_is_left_alone(circuit: Circuit, moody: Moody, clock: Clock) -> None:
    """Five slow calls in a row open the circuit; four, and then a quick one, do not."""

    def dawdle() -> None:
        clock.now += 0.3

    for number in range(9):
        moody.mood = dawdle if number != 4 else lambda: None
        settle(circuit, f"r{number}")
        assert not circuit.is_open
    moody.mood = dawdle
    assert 50 == settle(circuit, "last")
    refused(circuit, "too slow")


def test_one_long_wait_of_many_is_one(circuit: Circuit, moody: Moody, clock: Clock) -> None:
    """Twenty calls that waited for the same slow moment are no reason to leave the ledger alone."""
    inside = threading.Barrier(20)

    def dawdle_together() -> None:
        if inside.wait() == 0:
            clock.now += 0.3
        inside.wait()

    moody.mood = dawdle_together
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda number: settle(circuit, f"r{number}"), range(20)))
    assert not circuit.is_open


def test_what_a_ledger_of_ones_own_raises(circuit: Circuit, moody: Moody) -> None:
    """An error of the caller's passes and changes nothing; one of the network becomes a LedgerError and opens."""

    def be_wrong() -> None:
        raise ValueError("not like this")

    def be_cut_off() -> None:
        raise ConnectionResetError("cut off")

    moody.mood = be_wrong
    with pytest.raises(ValueError, match="not like this"):
        settle(circuit)
    assert not circuit.is_open
    moody.mood = be_cut_off
    refused(circuit, "cannot be reached: cut off")
    assert circuit.is_open


def test_broken_logging_does_not_reach_the_caller(circuit: Circuit, moody: Moody) -> None:
    """Where the application's logging raises, the caller still sees a LedgerError."""

    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of the application")

    logger = logging.getLogger("taskpilot_instrument")
    logger.addFilter(broken)
    try:
        moody.mood = fail
        refused(circuit, "it is away")
    finally:
        logger.removeFilter(broken)


def test_what_is_guarded_already_is_not_guarded_twice(circuit: Circuit) -> None:
    """An open ledger, and one in memory, are taken as they are; one of the user's own gets a circuit."""
    memory = MemoryLedger()
    assert [circuit, memory] == [open_ledger(circuit), open_ledger(memory)]
    own = Moody()
    own.mood = fail
    opened = open_ledger(own)
    for _ in range(3):
        refused(opened)
    assert 1 == own.asked


# --- a real Redis that is away --------------------------------------------------------------------


@contextmanager
def silent() -> Iterator[tuple[str, Callable[[], int]]]:
    """Run a server that accepts and never answers; yield its address, and what tells how many connected."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:

        def connected() -> int:
            server.settimeout(0.1)
            number = 0
            try:
                while True:
                    server.accept()[0].close()
                    number += 1
            except TimeoutError:
                return number

        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0", connected


def test_a_silent_server_holds_nobody_up() -> None:
    """Of two hundred callers at once a few ask a server that never answers; the others fail with them."""
    with silent() as (url, connected):
        ledger = open_ledger(url)
        with ThreadPoolExecutor(200) as pool:
            list(pool.map(lambda _: refused(ledger, "cannot be reached|failed a moment ago"), range(200)))
        for _ in range(1000):
            refused(ledger)
        assert 1 <= connected() <= 16
        ledger.close()


def test_nobody_listens() -> None:
    """A closed port is an open circuit, without the URL's password in what is said."""
    ledger = open_ledger(f"redis://user:s3cr3t@127.0.0.1:{free_port()}/0")
    for _ in range(2):
        with pytest.raises(LedgerError, match="cannot be reached") as caught:
            settle(ledger)
        assert "s3cr3t" not in str(caught.value)
    ledger.close()


def test_redis_restarts(tmp_path: Path, clock: Clock) -> None:
    """While Redis is away calls fail at once; when it is back so is the ledger, with what it had, each thing once."""
    server = RedisServer(tmp_path)
    circuit = Circuit(RedisLedger(server.url), now_s=clock)
    try:
        assert 5 == settle(circuit, "r1")
        server.stop()
        for _ in range(3):
            refused(circuit)
        server.start()
        refused(circuit)
        clock.now += 60
        assert 5 == settle(circuit, "r1")
        assert 10 == settle(circuit, "r2")
    finally:
        circuit.close()
        server.stop()


def test_a_quick_restart_is_not_noticed(tmp_path: Path) -> None:
    """A Redis that was restarted between two calls has lost connections and scripts; the next call does not fail."""
    server = RedisServer(tmp_path)
    ledger = open_ledger(server.url)
    try:
        assert 5 == settle(ledger, "r1")
        server.stop()
        server.start()
        assert 10 == settle(ledger, "r2")
    finally:
        ledger.close()
        server.stop()
