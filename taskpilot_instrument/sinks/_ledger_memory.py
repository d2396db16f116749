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
#: Pico-dollars spent, those reserved, and how many charges there were.
_Cell = list[int]
_NOTHING: Final[_Cell] = [0, 0, 0]


class MemoryLedger:
    """Keep everything in dictionaries under one lock; the oldest is dropped where there is too much."""

    def __init__(self) -> None:
        self._lock = _forks.lock()
        self._forking = False
        #: By account and period; the one that was charged longest ago comes first.
        self._cells: OrderedDict[_Key, _Cell] = OrderedDict()
        self._held: dict[str, tuple[float, list[tuple[_Cell, int]]]] = {}
        #: When the first reservation runs out.
        self._expires_s = _NEVER_S
        #: What was settled or added: the latest, and those before them; when the first are many, the others go.
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
        until_s, cells = now_s + lease_s, self._cells
        held: list[tuple[_Cell, int]] = []
        with self._lock:
            if now_s >= self._expires_s:
                self._expire(now_s)
            for account, period, amount, limit in claims:
                cell = cells.get((account, period)) or self._new_cell((account, period))
                if limit is not None and cell[0] + cell[1] + amount > limit:
                    return Standing(account, period, cell[0], cell[1])
                held.append((cell, amount))
            for cell, amount in held:
                cell[1] += amount
            self._held[reservation] = until_s, held
            if until_s < self._expires_s:
                self._expires_s = until_s
        return None

    def settle(self, reservation: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Free a reservation and add what was spent, once."""
        cells, standings = self._cells, []
        with self._lock:
            held = self._held.pop(reservation, None)
            if held is not None:
                for cell, amount in held[1]:
                    cell[1] -= amount
            if now_s >= self._expires_s:
                self._expire(now_s)
            is_new = self._is_new(reservation)
            for account, period, amount, _ in charges:
                key = (account, period)
                cell = cells.get(key) or self._new_cell(key)
                if is_new:
                    cell[0] += amount
                    cell[2] += 1
                    cells.move_to_end(key)
                standings.append(_new(Standing, (account, period, cell[0], cell[1])))
        return tuple(standings)

    def _new_cell(self, key: _Key) -> _Cell:
        """Open an account; the one that was charged longest ago goes where there are too many."""
        cell = self._cells[key] = [0, 0, 0]
        if len(self._cells) > _MOST:
            self._cells.popitem(last=False)
        return cell

    def _is_new(self, name: str) -> bool:
        """Remember what was settled or added; tell whether it is the first with its id. The caller holds the lock."""
        latest = self._settled
        if name in latest or name in self._settled_before:
            return False
        if len(latest) >= _MOST // 2:
            self._settled_before, latest = latest, set()
            self._settled = latest
        latest.add(name)
        return True

    def standings(self, accounts: Iterable[_Key], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand."""
        with self._lock:
            if now_s >= self._expires_s:
                self._expire(now_s)
            return tuple([Standing(*key, *self._cells.get(key, _NOTHING)[:2]) for key in accounts])

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return the accounts with this prefix that were charged in a period."""
        with self._lock:
            found = [
                account
                for (account, within), (_, _, charges) in self._cells.items()
                if charges and within == period and account.startswith(prefix)
            ]
        return tuple(sorted(found))

    def _expire(self, now_s: float) -> None:
        """Free what has run out; asked only once something has. The caller holds the lock."""
        for reservation in [name for name, (until, _) in self._held.items() if until <= now_s]:
            for cell, amount in self._held.pop(reservation)[1]:
                cell[1] -= amount
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

    def add_rollups(self, batch: str, rollups: Sequence[Rollup]) -> None:
        """Add figures to their hours, once."""
        with self._lock:
            for hour, key, figures in rollups if self._is_new(batch) else ():
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
