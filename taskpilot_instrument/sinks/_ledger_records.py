"""What a ledger keeps, and what can be asked of one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from math import ceil
from typing import Final, NamedTuple, Protocol

PICO_PER_USD: Final = 10**12
#: The largest integer of SQLite and Redis, $9.2 million: an account counts no further in one period.
MOST_PICO: Final = 2**63 - 1
#: The one period that never ends.
TOTAL: Final = "total"

#: What becomes of characters that UTF-8 does not have: halves of surrogate pairs, which JSON can bring.
UNENCODABLE: Final = "backslashreplace"
_DAY_S: Final = 86_400
#: How long things are kept after they were written. A settlement is remembered for as long as it might be repeated.
KEEP_SETTLED_S: Final = _DAY_S // 4
KEEP_PERIOD_S: Final = 70 * _DAY_S
KEEP_RUN_S: Final = 14 * _DAY_S
KEEP_S: Final = 400 * _DAY_S
#: Ours, because an application may have given its own thread's context fewer digits.
_EXACT: Final = Context(prec=60, traps=[])


class Claim(NamedTuple):
    """What one budget is asked to hold, or was charged.

    :param account: whose money: a budget and the value of its scope.
    :param period: which window of it, such as ``2026-11-25``; each period is counted by itself.
    :param amount: pico-dollars.
    :param limit: pico-dollars that spent and reserved together may reach; None where only counted.
    """

    account: str
    period: str
    amount: int
    limit: int | None = None


class Standing(NamedTuple):
    """How an account stands in one period, in pico-dollars."""

    account: str
    period: str
    spent: int
    reserved: int


class RunLink(NamedTuple):
    """What feedback has to know of a run to be counted in the right series."""

    request_id: str
    trace_id: str | None
    span_id: str | None
    workflow: str | None
    agent: str | None
    model: str | None
    variants: tuple[tuple[str, str], ...]
    at_s: float


class Vote(NamedTuple):
    """One user's verdict on one run; a later one with the same id takes its place."""

    id: str
    request_id: str | None
    trace_id: str | None
    correct: bool
    user: str | None
    comment: str | None
    score: float | None
    at_s: float
    agent: str | None = None
    workflow: str | None = None
    linked: bool = False


class Rollup(NamedTuple):
    """Figures of one hour under one key, for reports.

    :param hour: seconds since 1970 of its beginning.
    :param key: dimensions as sorted ``name=value`` pairs, such as ``agent=PlannerAgent|model=gpt-4o-mini``.
    :param figures: whole numbers by name; adding two roll-ups of one hour and key adds them.
    """

    hour: int
    key: str
    figures: Mapping[str, int]


class Ledger(Protocol):
    """Keep accounts, votes, runs and roll-ups; every method is safe from any thread and process.

    Each method raises :class:`LedgerError` where the store cannot be reached in time; the circuit in front of the store
    has counted and logged that already.
    """

    def reserve(self, reservation: str, claims: Sequence[Claim], lease_s: float, now_s: float) -> Standing | None:
        """Hold all claims or none of them, in one step.

        :param reservation: a new id.
        :param claims: each account and period once.
        :param lease_s: after so many seconds the reservation no longer counts: its holder died.
        :return: None where all are held; else the standing of the first account that would pass its limit.
        """

    def settle(self, reservation: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Free a reservation and add what was really spent, in one step, also where its lease has run out.

        A second settlement of the same reservation changes nothing, so one that may or may not have arrived can be
        made again. Return how each charged account stands.

        :param charges: each account and period once; they need not be those of the reservation.
        """

    def standings(self, accounts: Iterable[tuple[str, str]], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand in given periods, in their order; an unknown one stands at zero."""

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return the accounts with this prefix that were charged in a period."""

    def put_vote(self, vote: Vote) -> Vote | None:
        """Keep a vote, in one step; return the one that it replaces.

        A replay, which is equal but for its time, changes nothing; the vote that stands is returned. Whoever counts
        votes takes off what is returned and adds what was put: then the counters of all processes come to the ledger's.
        """

    def votes(self, since_s: float, until_s: float) -> tuple[Vote, ...]:
        """Return the votes given in a stretch of time, oldest first."""

    def put_runs(self, runs: Sequence[RunLink]) -> None:
        """Keep links of finished runs."""

    def find_run(self, *, request_id: str | None = None, trace_id: str | None = None) -> RunLink | None:
        """Return the latest run with this id."""

    def add_rollups(self, batch: str, rollups: Sequence[Rollup]) -> None:
        """Add figures to their hours, in one step.

        A second addition of the same batch changes nothing, so one that may or may not have arrived can be made again.

        :param batch: a new id.
        """

    def rollups(self, since_s: float, until_s: float) -> tuple[Rollup, ...]:
        """Return the figures of every hour that begins in a stretch of time."""

    def close(self) -> None:
        """Give the store back."""


def to_pico(usd: Decimal) -> int:
    """Return USD in pico-dollars, rounded up: nothing spent is lost."""
    return ceil(_EXACT.scaleb(usd, 12))


def to_usd(pico: int) -> Decimal:
    """Return pico-dollars in USD, exactly."""
    return Decimal(pico).scaleb(-12, _EXACT) if pico else Decimal(0)  # which else would read 0E-12


def vote_text(vote: Vote) -> str:
    """Return a vote as JSON, without its time: equal votes have equal texts."""
    return json.dumps(vote._replace(at_s=0.0), ensure_ascii=False)


def vote_from(text: str, at_s: float) -> Vote:
    """Return the vote of :func:`vote_text`."""
    return Vote(*json.loads(text))._replace(at_s=at_s)


def run_text(run: RunLink) -> str:
    """Return a run's link as JSON."""
    return json.dumps(run, ensure_ascii=False)


def run_from(text: str) -> RunLink:
    """Return the link of :func:`run_text`."""
    run = RunLink(*json.loads(text))
    return run._replace(variants=tuple((experiment, variant) for experiment, variant in run.variants))
