"""The ledger in a real Redis: its keys, its scripts, its connections, and a cluster of it."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from backends import RedisServer, free_port, wait_for

from taskpilot_instrument.errors import ConfigurationError, LedgerError
from taskpilot_instrument.sinks._ledger_redis import RedisLedger
from taskpilot_instrument.sinks.ledger import Claim, Ledger, Rollup, RunLink, Vote, open_ledger

redis = pytest.importorskip("redis")

NOW = 1_764_000_000.0
DAY = 86_400


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RedisServer:
    """A real Redis."""
    running: RedisServer = request.getfixturevalue("redis")
    return running


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    """A client of one's own, of an empty database."""
    with redis.Redis.from_url(server.url, decode_responses=True) as made:
        made.flushall()
        yield made


@pytest.fixture
def ledger(server: RedisServer, client: Any) -> Iterator[Ledger]:
    """An open ledger."""
    opened = open_ledger(server.url)
    yield opened
    opened.close()


def settle(ledger: Ledger, name: str) -> int:
    """Settle something; return what is spent."""
    return ledger.settle(name, [Claim("a", "p", 5)], NOW)[0].spent


def fill(ledger: Ledger) -> None:
    """Put one of everything."""
    ledger.reserve("held", [Claim("a", "2026-11", 1)], 60.0, NOW)
    ledger.reserve("held for ever", [Claim("a", "total", 1)], 60.0, NOW)
    ledger.settle("r", [Claim("a", "2026-11", 1), Claim("a", "total", 1)], NOW)
    ledger.put_vote(Vote("v", "req", None, True, None, None, None, time.time()))
    ledger.put_runs([RunLink("req", "t", None, None, None, None, (), NOW)])
    ledger.add_rollups(uuid4().hex, [Rollup(3600, "k", {"calls": 1})])


def test_keys_lie_on_one_node_and_go_in_time(ledger: Ledger, client: Any) -> None:
    """Every key has the one hash tag, and an end, except for what never ends and the lists of what there is."""
    fill(ledger)
    keys = client.keys("*")
    assert all(key.startswith("{taskpilot}:") for key in keys), keys
    endless = {key for key in keys if client.ttl(key) < 0}
    total = {"account:a\x1ftotal", "leases:a\x1ftotal", "accounts:total"}
    assert {f"{{taskpilot}}:{name}" for name in total | {"votes", "hours"}} == endless
    assert 13 * DAY < client.ttl("{taskpilot}:run:req") <= 14 * DAY
    assert 69 * DAY < client.ttl("{taskpilot}:account:a\x1f2026-11") <= 70 * DAY
    assert 399 * DAY < client.ttl("{taskpilot}:rollup:3600") <= 400 * DAY


def test_lists_of_what_there_is_stay_short(ledger: Ledger, client: Any) -> None:
    """Votes and hours that are gone are no longer listed."""
    fill(ledger)
    ledger.put_vote(Vote("later", "req", None, True, None, None, None, time.time() + 401 * DAY))
    ledger.add_rollups(uuid4().hex, [Rollup(402 * DAY, "k", {"calls": 1})])
    assert ["later"] == client.zrange("{taskpilot}:votes", 0, -1)
    assert [str(402 * DAY)] == client.zrange("{taskpilot}:hours", 0, -1)


def test_scripts_that_were_flushed_come_back(ledger: Ledger, client: Any) -> None:
    """After ``SCRIPT FLUSH`` the next call loads its script again."""
    assert 5 == settle(ledger, "r1")
    client.script_flush()
    assert 10 == settle(ledger, "r2")


def test_threads_share_a_few_connections(ledger: Ledger, client: Any) -> None:
    """Two hundred threads at once are all served, over no more than a handful of connections."""
    before = client.info("stats")["total_connections_received"]
    with ThreadPoolExecutor(200) as pool:
        list(pool.map(lambda number: settle(ledger, f"r{number}"), range(1000)))
    assert [5000] == [each.spent for each in ledger.standings([("a", "p")], NOW)]
    assert client.info("stats")["total_connections_received"] - before <= 8


def test_a_sum_that_no_integer_can_hold_stops(ledger: Ledger, client: Any) -> None:
    """Beyond the largest integer an account counts no further, and stays usable."""
    for name in ("r1", "r2"):
        ledger.settle(name, [Claim("a", "p", 9 * 10**18)], NOW)
    assert 2**63 - 1 == ledger.standings([("a", "p")], NOW)[0].spent
    assert ledger.reserve("r3", [Claim("a", "p", 1, 10**18)], 60.0, NOW) is not None


def test_a_read_only_replica_is_said(ledger: Ledger, client: Any) -> None:
    """A server that cannot write is a LedgerError with its reason."""
    client.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(LedgerError, match=r"cannot be reached: .*read only"):
            settle(ledger, "r")
    finally:
        client.replicaof("NO", "ONE")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:port/0", "redis://127.0.0.1/0?health_check_interval=often"])
def test_a_wrong_url_is_refused(url: str) -> None:
    """A URL that Redis's client cannot read is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="is no Redis URL"):
        open_ledger(url)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is missing, the message names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'taskpilot-instrument\[redis\]'"):
        open_ledger("redis://127.0.0.1/0")


def test_a_unix_socket(tmp_path: Path) -> None:
    """A Redis on this machine can be reached through a socket in the file system."""
    server = RedisServer(tmp_path, "--unixsocket", str(tmp_path / "s"))
    ledger = open_ledger(f"unix://{tmp_path / 's'}")
    try:
        assert 5 == settle(ledger, "r")
    finally:
        ledger.close()
        server.stop()


def test_a_cluster_is_reached_through_any_of_its_nodes(tmp_path: Path) -> None:
    """A node that does not have the ledger's keys says which one has, and that one is asked."""
    with ExitStack() as opened:
        servers = []
        for name in "ab":
            folder = tmp_path / name
            folder.mkdir()
            bus = free_port()
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--save", ""]
            servers.append(RedisServer(folder, *options))
            opened.callback(servers[-1].stop)
        clients = [opened.enter_context(redis.Redis.from_url(server.url, decode_responses=True)) for server in servers]
        for client, slots in zip(clients, ((0, 8191), (8192, 16383)), strict=True):
            client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
        clients[0].execute_command("CLUSTER MEET", "127.0.0.1", servers[1].port, bus)
        for client in clients:
            wait_for("cluster", lambda client=client: "ok" == client.execute_command("CLUSTER INFO")["cluster_state"])
        for number, server in enumerate(servers):
            ledger = RedisLedger(server.url)
            opened.callback(ledger.close)
            assert 5 * (number + 1) == settle(ledger, f"r{number}")
            fill(ledger)
        assert [0] == sorted(client.dbsize() for client in clients)[:1]
