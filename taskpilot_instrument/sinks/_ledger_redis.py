"""The ledger in Redis, shared by a fleet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskpilot_instrument import _forks
from taskpilot_instrument.errors import ConfigurationError, LedgerError
from taskpilot_instrument.redaction import redact
from taskpilot_instrument.sinks import _ledger_scripts as scripts
from taskpilot_instrument.sinks._ledger_gate import Gate
from taskpilot_instrument.sinks._ledger_records import (
    KEEP_PERIOD_S,
    KEEP_RUN_S,
    KEEP_S,
    KEEP_SETTLED_S,
    TOTAL,
    UNENCODABLE,
    Claim,
    Rollup,
    RunLink,
    Standing,
    Vote,
    run_from,
    run_text,
    vote_from,
    vote_text,
)

if TYPE_CHECKING:
    from redis import Redis

_T = TypeVar("_T")
_BETWEEN: Final = "\x1f"
#: Connections of a process; its threads take turns, as Python lets one of them run at a time.
_AT_ONCE: Final = 8
_PAGE: Final = 500


class RedisLedger:
    """Keep everything in one Redis database; in a cluster, on one node of it.

    :param url: ``redis://``, ``rediss://`` or ``unix://``.
    :param wait_s: how long a call may wait for the server, in seconds.
    :raises ConfigurationError: where the package ``redis`` is missing, or the URL cannot be read.
    """

    def __init__(self, url: str, *, wait_s: float = 0.05) -> None:
        try:
            import redis
        except ImportError as error:
            raise ConfigurationError(
                "a ledger in Redis needs the package redis: pip install 'taskpilot-instrument[redis]'"
            ) from error
        name = redact(url)
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._moved = redis.exceptions.MovedError
        self._pool = redis.ConnectionPool
        self._client = redis.Redis
        self._gate = Gate(name, _AT_ONCE)
        try:
            self._first = redis.Redis.from_url(
                url, socket_timeout=wait_s, socket_connect_timeout=wait_s, decode_responses=True, retry=None,
                encoding_errors=UNENCODABLE,
                protocol=2,  # needs no handshake, whose answer would have to be waited for too
                max_connections=2 * _AT_ONCE,
            )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"ledger={name!r} is no Redis URL: {error}") from error
        self._redis = self._first
        self._entered = 0
        register = self._first.register_script
        self._reserve, self._settle = register(scripts.RESERVE), register(scripts.SETTLE)
        self._stand, self._vote = register(scripts.STAND), register(scripts.VOTE)
        self._add = register(scripts.ADD)
        _forks.pause(self)

    def before_fork(self) -> None:
        """Wait until nobody is inside the client: its locks would stay locked in the child."""
        self._entered = self._gate.enter_all()

    def go_on(self) -> None:
        """Go on."""
        for _ in range(self._entered):
            self._gate.leave()

    def after_fork(self) -> None:
        """Go on with a gate that nobody is in; the client sees for itself that it is in another process."""
        self._gate = Gate(self._gate.name, _AT_ONCE)

    def _ask(self, work: "Callable[[Redis], _T]") -> _T:
        """Ask the server; everything that is asked of it comes through here."""
        with self._gate.turn():
            try:
                try:
                    return work(self._redis)
                except self._moved as moved:
                    self._redis = self._node(moved.host, moved.port)
                    return work(self._redis)
            except self._errors as error:
                self._redis = self._first
                raise LedgerError(f"the ledger {self._gate.name} cannot be reached: {error}") from error

    def _node(self, host: str, port: int) -> "Redis":
        """Return a client of the node that a cluster keeps our one slot on."""
        pool = self._first.connection_pool
        at = {**pool.connection_kwargs, "host": host or pool.connection_kwargs.get("host"), "port": port}
        return self._client(
            connection_pool=self._pool(
                connection_class=pool.connection_class, max_connections=pool.max_connections, **at
            )
        )

    # --- money ------------------------------------------------------------------------------------

    def reserve(self, reservation: str, claims: Sequence[Claim], lease_s: float, now_s: float) -> Standing | None:
        """Hold all claims or none of them."""
        if not claims:
            return None
        keys = [_key("reservation", reservation)]
        values: list[Any] = [reservation, now_s, now_s + lease_s, int(lease_s) + KEEP_SETTLED_S]
        for account, period, amount, limit in claims:
            keys += _account_keys(account, period)
            values += [amount, -amount, "" if limit is None else limit, _ttl(period)]
        refused = self._ask(lambda redis: self._reserve(keys, values, redis))
        if refused is None:
            return None
        place, spent, reserved = refused
        return Standing(claims[place].account, claims[place].period, int(spent), int(reserved))

    def settle(self, reservation: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Free a reservation and add what was spent, once."""
        keys = [_key("reservation", reservation)]
        values: list[Any] = [reservation, now_s, KEEP_SETTLED_S]
        for account, period, amount, _ in charges:
            keys += (*_account_keys(account, period), _key("accounts", period))
            values += [amount, account, _ttl(period)]
        answer = self._ask(lambda redis: self._settle(keys, values, redis))
        return _standings([charge[:2] for charge in charges], answer)

    def standings(self, accounts: Iterable[tuple[str, str]], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand."""
        found: list[Standing] = []
        for asked in _parts(list(accounts)):
            keys = [key for account, period in asked for key in _account_keys(account, period)]
            found += _standings(asked, self._ask(partial(self._stand, keys, [now_s])))
        return tuple(found)

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return the accounts with this prefix that were charged in a period."""
        found: set[str] = set()
        cursor: int | None = None
        while cursor != 0:
            page: Any = self._ask(methodcaller("sscan", _key("accounts", period), cursor or 0, count=_PAGE))
            cursor, names = page
            found.update(names)
        return tuple(sorted(account for account in found if account.startswith(prefix)))

    # --- feedback, runs, history ------------------------------------------------------------------

    def put_vote(self, vote: Vote) -> Vote | None:
        """Keep a vote; return the one that it replaces."""
        keys: list[Any] = [_key("vote", vote.id), _key("votes")]
        values: list[Any] = [vote.id, vote.at_s, vote_text(vote), KEEP_S]
        text, at_s = self._ask(lambda redis: self._vote(keys, values, redis))
        return None if text is None else vote_from(text, float(at_s))

    def votes(self, since_s: float, until_s: float) -> tuple[Vote, ...]:
        """Return the votes given in a stretch of time."""
        ids: Any = self._ask(lambda redis: redis.zrangebyscore(_key("votes"), since_s, f"({until_s!r}"))
        answers = self._each(ids, lambda pipe, name: pipe.hmget(_key("vote", name), "vote", "at_s"))
        return tuple([vote_from(text, float(at_s)) for text, at_s in answers if text is not None])

    def put_runs(self, runs: Sequence[RunLink]) -> None:
        """Keep links of finished runs."""

        def put(pipe: Any, run: RunLink) -> None:
            text = run_text(run)
            pipe.set(_key("run", run.request_id), text, ex=KEEP_RUN_S)
            if run.trace_id is not None:
                pipe.set(_key("trace", run.trace_id), text, ex=KEEP_RUN_S)

        for _ in self._each(runs, put):
            pass

    def find_run(self, *, request_id: str | None = None, trace_id: str | None = None) -> RunLink | None:
        """Return the latest run with this id."""
        key = _key("run", request_id) if request_id is not None else _key("trace", trace_id or "")
        text: Any = self._ask(lambda redis: redis.get(key))
        return None if text is None else run_from(text)

    def add_rollups(self, batch: str, rollups: Sequence[Rollup]) -> None:
        """Add figures to their hours, once."""
        if not rollups:
            return
        hours = sorted({rollup.hour for rollup in rollups})
        keys: list[Any] = [_key("added", batch), _key("hours"), *(_key("rollup", str(hour)) for hour in hours)]
        values: list[Any] = [KEEP_SETTLED_S, KEEP_S, hours[-1] - KEEP_S, *hours]
        for hour, key, figures in rollups:
            for name, figure in figures.items():
                values += [hours.index(hour) + 3, f"{key}{_BETWEEN}{name}", figure]
        self._ask(lambda redis: self._add(keys, values, redis))

    def rollups(self, since_s: float, until_s: float) -> tuple[Rollup, ...]:
        """Return the figures of every hour that begins in a stretch of time."""
        hours: Any = self._ask(lambda redis: redis.zrangebyscore(_key("hours"), since_s, f"({until_s!r}"))
        answers = self._each(hours, lambda pipe, hour: pipe.hgetall(_key("rollup", hour)))
        found: list[Rollup] = []
        for hour, fields in zip(hours, answers, strict=True):
            by_key: dict[str, dict[str, int]] = {}
            for field, figure in fields.items():
                key, _, name = field.rpartition(_BETWEEN)
                by_key.setdefault(key, {})[name] = int(figure)
            found += [Rollup(int(hour), key, by_key[key]) for key in sorted(by_key)]
        return tuple(found)

    def _each(self, things: Sequence[_T], ask: Callable[[Any, _T], object]) -> Iterator[Any]:
        """Ask something of each, many at a time, without keeping others from their turn for long."""

        def work(some: Sequence[_T], redis: "Redis") -> list[Any]:
            pipe = redis.pipeline(transaction=False)
            for thing in some:
                ask(pipe, thing)
            return list(pipe.execute())

        for part in _parts(things):
            yield from self._ask(partial(work, part))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._first.close()


def _key(*parts: str) -> str:
    return scripts.PREFIX + ":".join(parts)


def _account_keys(account: str, period: str) -> tuple[str, str]:
    named = f"{account}{_BETWEEN}{period}"
    return _key("account", named), _key("leases", named)


def _ttl(period: str) -> int | str:
    return "" if period == TOTAL else KEEP_PERIOD_S


def _parts(things: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (things[start : start + _PAGE] for start in range(0, len(things), _PAGE))


def _standings(accounts: Sequence[tuple[str, str]], answer: Sequence[str]) -> tuple[Standing, ...]:
    pairs = zip(answer[::2], answer[1::2], strict=True)
    return tuple(
        [
            Standing(*account, int(spent), int(reserved))
            for account, (spent, reserved) in zip(accounts, pairs, strict=True)
        ]
    )
