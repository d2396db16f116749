"""The ledger in memory: for tests, and for a single process whose budgets may begin anew with it."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from taskpilot_instrument import _forks
from taskpilot_instrument.sinks._ledger_records import Claim, Rollup, RunLink, Standing, Vote

_MOST: Final = 100_000
_NEVER_S: Final = float("inf")
#: A named tuple by its name takes twice as long to make.
_new: Final = tuple.__new__
K = TypeVar("K")
V = TypeVar("V")
_Key = tuple[str, str]


class MemoryLedger:
    """Keep everything in dictionaries under one lock; the oldest is dropped where there is too much."""

    def __init__(self) -> None:
        self._lock = _forks.lock()
        self._forking = False
        self._spent: OrderedDict[_Key, int] = OrderedDict()
        self._held: dict[str, tuple[float, tuple[Claim, ...]]] = {}
        #: What the reservations come to, and when the first of them runs out.
        self._reserved: dict[_Key, int] = {}
        self._expires_s = _NEVER_S
        #: Reservations that were settled: the latest, and those before them; when the first are many, the others go.
        self._settled: set[str] = set()
        self._settled_before: set[str] = set()
        self._votes: OrderedDict[str, Vote] = OrderedDict()
        self._runs: OrderedDict[str, RunLink] = OrderedDict()
        self._traces: OrderedDict[str, RunLink] = OrderedDict()
        self._rollups: OrderedDict[tuple[int, str], dict[str, int]] = OrderedDict()
        _forks.pause(self)

    def before_fork(self) -> None:
        """Wait until nobody is in the midst of a change, which would never end in the child."""
        self._forking = self._lock.acquire(timeout=1)

    def go_on(self) -> None:
        """Go on."""
        if self._forking:
            self._lock.release()

    def after_fork(self) -> None:
        """Do nothing: the child has a copy of its own, and its lock is free."""

    # --- money ------------------------------------------------------------------------------------

    def reserve(self, reservation: str, claims: Sequence[Claim], lease_s: float, now_s: float) -> Standing | None:
        """Hold all claims or none of them."""
        until_s, reserved = now_s + lease_s, self._reserved
        with self._lock:
            if now_s >= self._expires_s:
                self._expire(now_s)
            for account, period, amount, limit in claims:
                if limit is not None:
                    key = (account, period)
                    spent, held = self._spent.get(key, 0), reserved.get(key, 0)
                    if spent + held + amount > limit:
                        return Standing(account, period, spent, held)
            for account, period, amount, _ in claims:
                key = (account, period)
                reserved[key] = reserved.get(key, 0) + amount
            self._held[reservation] = (until_s, tuple(claims))
            if until_s < self._expires_s:
                self._expires_s = until_s
        return None

    def settle(self, reservation: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Free a reservation and add what was spent, once."""
        spent, reserved = self._spent, self._reserved
        with self._lock:
            held = self._held.pop(reservation, None)
            if held is not None:
                self._give_back(held[1])
            if now_s >= self._expires_s:
                self._expire(now_s)
            is_new = self._is_new(reservation)
            standings = []
            for account, period, amount, _ in charges:
                key = (account, period)
                if is_new:
                    _keep(spent, key, spent.get(key, 0) + amount)
                standings.append(_new(Standing, (account, period, spent.get(key, 0), reserved.get(key, 0))))
        return tuple(standings)

    def _is_new(self, reservation: str) -> bool:
        """Remember a settlement; tell whether it is the first of its reservation. The caller holds the lock."""
        latest = self._settled
        if reservation in latest or reservation in self._settled_before:
            return False
        if len(latest) >= _MOST // 2:
            self._settled_before, latest = latest, set()
            self._settled = latest
        latest.add(reservation)
        return True

    def standings(self, accounts: Iterable[_Key], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand."""
        with self._lock:
            if now_s >= self._expires_s:
                self._expire(now_s)
            return tuple([Standing(*key, self._spent.get(key, 0), self._reserved.get(key, 0)) for key in accounts])

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return the accounts with this prefix that were charged in a period."""
        with self._lock:
            found = [account for account, within in self._spent if within == period and account.startswith(prefix)]
        return tuple(sorted(found))

    def _give_back(self, claims: tuple[Claim, ...]) -> None:
        """Take off what was held; the caller holds the lock."""
        reserved = self._reserved
        for account, period, amount, _ in claims:
            key = (account, period)
            left = reserved.get(key, 0) - amount
            if left:
                reserved[key] = left
            else:
                reserved.pop(key, None)

    def _expire(self, now_s: float) -> None:
        """Free what has run out; asked only once something has. The caller holds the lock."""
        for reservation in [name for name, (until, _) in self._held.items() if until <= now_s]:
            self._give_back(self._held.pop(reservation)[1])
        self._expires_s = min((until for until, _ in self._held.values()), default=_NEVER_S)

    # --- feedback, runs, history ------------------------------------------------------------------

    def put_vote(self, vote: Vote) -> Vote | None:
        """Keep a vote; return the one that it replaces."""
        with self._lock:
            before = self._votes.get(vote.id)
            if before is None or before._replace(at_s=vote.at_s) != vote:
                _keep(self._votes, vote.id, vote)
        return before

    def votes(self, since_s: float, until_s: float) -> tuple[Vote, ...]:
        """Return the votes given in a stretch of time."""
        with self._lock:
            found = [vote for vote in self._votes.values() if since_s <= vote.at_s < until_s]
        return tuple(sorted(found, key=lambda vote: (vote.at_s, vote.id)))

    def put_runs(self, runs: Sequence[RunLink]) -> None:
        """Keep links of finished runs."""
        with self._lock:
            for run in runs:
                _keep(self._runs, run.request_id, run)
                if run.trace_id is not None:
                    _keep(self._traces, run.trace_id, run)

    def find_run(self, *, request_id: str | None = None, trace_id: str | None = None) -> RunLink | None:
        """Return the latest run with this id."""
        with self._lock:
            if request_id is not None:
                return self._runs.get(request_id)
            return self._traces.get(trace_id) if trace_id is not None else None

    def add_rollups(self, rollups: Sequence[Rollup]) -> None:
        """Add figures to their hours."""
        with self._lock:
            for hour, key, figures in rollups:
                known = self._rollups.get((hour, key), {})
                _keep(
                    self._rollups,
                    (hour, key),
                    known | {name: known.get(name, 0) + amount for name, amount in figures.items()},
                )

    def rollups(self, since_s: float, until_s: float) -> tuple[Rollup, ...]:
        """Return the figures of every hour that begins in a stretch of time."""
        with self._lock:
            found = [
                Rollup(hour, key, dict(figures))
                for (hour, key), figures in self._rollups.items()
                if since_s <= hour < until_s
            ]
        return tuple(sorted(found, key=lambda rollup: rollup[:2]))

    def close(self) -> None:
        """Do nothing: it goes with the process."""


def _keep(kept: "OrderedDict[K, V]", key: K, value: V) -> None:
    """Keep the latest; the one that was not touched for longest goes where there are too many."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _MOST:
        kept.popitem(last=False)
