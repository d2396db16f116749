"""The ledgers in memory, in SQLite and in Redis do, step by step, what a plain model does."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from backends import RedisServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from taskpilot_instrument.sinks.ledger import Claim, Ledger, Rollup, RunLink, Standing, Vote, open_ledger

NOW = 1_764_000_000.0
#: That of NOW: a ledger forgets which batches it has added once their hour is long past.
HOUR = int(NOW) // 3600 * 3600
#: Names as users have them, Redis's and SQLite's own signs, and one that begins like another.
ACCOUNTS = ["a|", "a|user=é*", "a|user=é*?", "b:{x}\n'", "%"]
PERIODS = ["2026-11", "total"]
RESERVATIONS = st.sampled_from([f"r{number}" for number in range(6)])
#: Small ones, and ones where a float is no longer exact.
AMOUNTS = st.integers(0, 50) | st.sampled_from([10**18, 10**18 + 1, 9_007_199_254_740_993])
LIMITS = st.none() | st.integers(0, 120) | st.sampled_from([10**18, 2 * 10**18 + 1, 9_007_199_254_740_993])
KEYS = st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(PERIODS))
TEXTS = st.none() | st.text(max_size=5)


class Model:
    """What a ledger is to do, said as plainly as possible."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, str], int] = {}
        self.held: dict[str, tuple[float, Sequence[Claim]]] = {}
        self.settled: set[str] = set()
        self.added: set[str] = set()
        self.kept: dict[str, Vote] = {}
        self.runs: list[RunLink] = []
        self.figures: dict[tuple[int, str], dict[str, int]] = {}

    def stands(self, key: tuple[str, str], now_s: float) -> Standing:
        """Return how an account stands."""
        alive = [claim for until, claims in self.held.values() if until > now_s for claim in claims]
        return Standing(*key, self.spent.get(key, 0), sum(claim.amount for claim in alive if claim[:2] == key))

    def reserve(self, name: str, claims: Sequence[Claim], lease_s: float, now_s: float) -> Standing | None:
        """Hold all or none."""
        for claim in claims:
            standing = self.stands(claim[:2], now_s)
            if claim.limit is not None and standing.spent + standing.reserved + claim.amount > claim.limit:
                return standing
        self.held[name] = (now_s + lease_s, claims)
        return None

    def settle(self, name: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Charge once."""
        self.held.pop(name, None)
        if name not in self.settled:
            self.settled.add(name)
            for charge in charges:
                self.spent[charge[:2]] = self.spent.get(charge[:2], 0) + charge.amount
        return self.standings([charge[:2] for charge in charges], now_s)

    def standings(self, accounts: Sequence[tuple[str, str]], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand."""
        return tuple(self.stands(key, now_s) for key in accounts)

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return those that were charged."""
        return tuple(sorted(one for one, within in self.spent if within == period and one.startswith(prefix)))

    def put_vote(self, vote: Vote) -> Vote | None:
        """Keep one."""
        before = self.kept.get(vote.id)
        if before is None or before._replace(at_s=0) != vote._replace(at_s=0):
            self.kept[vote.id] = vote
        return before

    def votes(self, since_s: float, until_s: float) -> tuple[Vote, ...]:
        """Return some, in order."""
        found = [vote for vote in self.kept.values() if since_s <= vote.at_s < until_s]
        return tuple(sorted(found, key=lambda vote: (vote.at_s, vote.id)))

    def put_runs(self, runs: Sequence[RunLink]) -> None:
        """Keep some."""
        self.runs += runs

    def find_run(self, *, request_id: str | None = None, trace_id: str | None = None) -> RunLink | None:
        """Return the latest."""
        wanted = (request_id, 0) if request_id is not None else (trace_id, 1)
        return next((run for run in reversed(self.runs) if run[wanted[1]] == wanted[0]), None)

    def add_rollups(self, batch: str, rollups: Sequence[Rollup]) -> None:
        """Add up, once."""
        for hour, key, figures in rollups if batch not in self.added else ():
            known = self.figures.setdefault((hour, key), {})
            for name, figure in figures.items():
                known[name] = known.get(name, 0) + figure
        self.added.add(batch)

    def rollups(self, since_s: float, until_s: float) -> tuple[Rollup, ...]:
        """Return some, in order."""
        found = sorted(self.figures.items())
        return tuple(Rollup(*place, figures) for place, figures in found if since_s <= place[0] < until_s)


@pytest.fixture(scope="module")
def redis_url(redis: RedisServer) -> str:
    """A real Redis."""
    return redis.url


class Ledgers(RuleBasedStateMachine):
    """Ask the model and all ledgers the same."""

    redis_url = ""

    @initialize()
    def open(self) -> None:
        """Open new ones."""
        self.opened = ExitStack()
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushdb()
        folder = self.opened.enter_context(tempfile.TemporaryDirectory())
        self.ledgers: list[Ledger] = [open_ledger(at) for at in ("memory", Path(folder) / "l.db", self.redis_url)]
        for ledger in self.ledgers:
            self.opened.callback(ledger.close)
        self.model, self.now = Model(), NOW

    def teardown(self) -> None:
        """Close them."""
        self.opened.close()

    def ask(self, what: Callable[[Any], object]) -> None:
        """Ask each ledger, and the model."""
        expected = what(self.model)
        assert [expected] * 3 == [what(ledger) for ledger in self.ledgers]

    @rule(name=RESERVATIONS, claims=st.dictionaries(KEYS, st.tuples(AMOUNTS, LIMITS), max_size=3), long=st.booleans())
    def reserve(self, name: str, claims: dict[tuple[str, str], tuple[int, int | None]], long: bool) -> None:
        """Reserve under a new id."""
        if name in self.model.held or name in self.model.settled:
            return  # ids are new
        asked = [Claim(*key, *claim) for key, claim in claims.items()]
        self.ask(lambda one: one.reserve(name, asked, 200.0 if long else 60.0, self.now))

    @rule(name=RESERVATIONS, charges=st.dictionaries(KEYS, AMOUNTS, max_size=3))
    def settle(self, name: str, charges: dict[tuple[str, str], int]) -> None:
        """Settle what is held, what is not, and what is settled."""
        self.ask(lambda one: one.settle(name, [Claim(*key, cost) for key, cost in charges.items()], self.now))

    @rule(step=st.sampled_from([1.0, 30.0, 60.0, 200.0]))
    def wait(self, step: float) -> None:
        """Let leases end."""
        self.now += step

    @rule(
        name=st.sampled_from("uvw"),
        correct=st.booleans(),
        user=TEXTS,
        comment=TEXTS,
        score=st.none() | st.floats(0, 1),
    )
    def vote(self, name: str, correct: bool, user: str | None, comment: str | None, score: float | None) -> None:
        """Vote."""
        vote = Vote(name, "req", None, correct, user, comment, score, self.now, "A", None, True)
        self.ask(lambda one: one.put_vote(vote))

    @rule(since=st.sampled_from([0.0, NOW, NOW + 30]), until=st.sampled_from([NOW + 30, NOW + 1e6]))
    def look_at_votes(self, since: float, until: float) -> None:
        """Read votes."""
        self.ask(lambda one: one.votes(since, until))

    @rule(requests=st.lists(st.tuples(st.sampled_from("pq"), st.none() | st.sampled_from("st")), max_size=3))
    def put_runs(self, requests: list[tuple[str, str | None]]) -> None:
        """Link runs."""
        runs = [
            RunLink(*ids, None, "w", "Ä", "m", (("e", "v"),) * place, self.now) for place, ids in enumerate(requests)
        ]
        self.ask(lambda one: one.put_runs(runs))

    @rule(name=st.sampled_from("pqst"))
    def find_run(self, name: str) -> None:
        """Find a run."""
        self.ask(lambda one: one.find_run(request_id=name))
        self.ask(lambda one: one.find_run(trace_id=name))

    @rule(
        batch=st.sampled_from([f"b{number}" for number in range(9)]),
        hour=st.sampled_from([HOUR, HOUR + 3600]),
        key=st.sampled_from(["", "agent=A", "agent=A|model=m"]),
        figures=st.dictionaries(st.sampled_from(["calls", "pico"]), st.integers(0, 10**18), max_size=2),
    )
    def add_rollups(self, batch: str, hour: int, key: str, figures: dict[str, int]) -> None:
        """Add figures, perhaps again."""
        if figures:
            self.ask(lambda one: one.add_rollups(batch, [Rollup(hour, key, figures), Rollup(hour, "x", {"calls": 1})]))

    @rule(since=st.sampled_from([HOUR, HOUR + 1, HOUR + 3600]), until=st.sampled_from([HOUR + 3600, HOUR + 3601]))
    def look_at_rollups(self, since: float, until: float) -> None:
        """Read figures."""
        self.ask(lambda one: one.rollups(since, until))

    @invariant()
    def everything_adds_up(self) -> None:
        """Compare all accounts."""
        self.ask(lambda one: one.standings([(account, period) for account in ACCOUNTS for period in PERIODS], self.now))
        self.ask(lambda one: (one.accounts("a|user=é*", "total"), one.accounts("", "2026-11")))


def test_all_ledgers_do_what_the_model_does(redis_url: str) -> None:
    """Whatever is asked in whatever order, each ledger answers as the model does."""
    run_state_machine_as_test(
        type("LedgersAtHand", (Ledgers,), {"redis_url": redis_url}),
        settings=settings(max_examples=30, stateful_step_count=25, suppress_health_check=list(HealthCheck)),
    )
