"""The ledger in Redis, shared by a fleet.

What has to happen in one step is one script. Sums are Redis's own integers: a script sees numbers as floats, which is
exact up to nine thousand dollars and right to a billionth of a cent beyond, and only ever compares them. All keys share
one hash tag, so that a cluster keeps them together.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskpilot_instrument.errors import ConfigurationError, LedgerError
from taskpilot_instrument.redaction import redact
from taskpilot_instrument.sinks._ledger_records import Claim, Rollup, RunLink, Standing, Vote
from taskpilot_instrument.sinks._ledger_sqlite import run_link

if TYPE_CHECKING:
    from redis import Redis

_T = TypeVar("_T")
_TAG: Final = "{taskpilot}"
_BETWEEN: Final = "\x1f"
_KEEP_S: Final = 400 * 86_400
_KEEP_SETTLED_S: Final = 2 * 86_400

_HELD: Final = """
local function held(key, now)
    local sum = 0
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
        local amount, till = string.match(all[i + 1], '^(%-?%d+):(.+)$')
        if tonumber(till) <= now then
            redis.call('HDEL', key, all[i])
        else
            sum = sum + tonumber(amount)
        end
    end
    return string.format('%.0f', sum)
end
"""
#: KEYS: the reservation's, then of each claim: spent, held, accounts of its period.
#: ARGV: reservation, now, end of the lease, seconds to keep; then of each claim: amount, limit or '', account.
_RESERVE: Final = (
    _HELD
    + """
local now = tonumber(ARGV[2])
for i = 0, (#KEYS - 1) / 3 - 1 do
    local limit = ARGV[6 + 3 * i]
    if limit ~= '' then
        local spent = redis.call('GET', KEYS[2 + 3 * i]) or '0'
        local reserved = held(KEYS[3 + 3 * i], now)
        if tonumber(spent) + tonumber(reserved) + tonumber(ARGV[5 + 3 * i]) > tonumber(limit) then
            return {i, spent, reserved}
        end
    end
end
for i = 0, (#KEYS - 1) / 3 - 1 do
    redis.call('HSET', KEYS[3 + 3 * i], ARGV[1], ARGV[5 + 3 * i] .. ':' .. ARGV[3])
    redis.call('EXPIRE', KEYS[3 + 3 * i], ARGV[4])
    redis.call('SADD', KEYS[1], KEYS[3 + 3 * i])
    redis.call('SADD', KEYS[4 + 3 * i], ARGV[7 + 3 * i])
    redis.call('EXPIRE', KEYS[4 + 3 * i], ARGV[4])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return false
"""
)
#: KEYS: the reservation's, its settlement's, then of each charge: spent, held, accounts of its period.
#: ARGV: reservation, now, seconds to keep settlements, seconds to keep; then of each charge: amount, account, whether
#: its period ends.
_SETTLE: Final = (
    _HELD
    + """
for _, key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    redis.call('HDEL', key, ARGV[1])
end
redis.call('DEL', KEYS[1])
local fresh = redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[3])
local standings = {}
for i = 0, (#KEYS - 2) / 3 - 1 do
    if fresh then
        redis.call('INCRBY', KEYS[3 + 3 * i], ARGV[5 + 3 * i])
        redis.call('SADD', KEYS[5 + 3 * i], ARGV[6 + 3 * i])
        if ARGV[7 + 3 * i] == '1' then
            redis.call('EXPIRE', KEYS[3 + 3 * i], ARGV[4])
            redis.call('EXPIRE', KEYS[5 + 3 * i], ARGV[4])
        end
    end
    standings[#standings + 1] = redis.call('GET', KEYS[3 + 3 * i]) or '0'
    standings[#standings + 1] = held(KEYS[4 + 3 * i], tonumber(ARGV[2]))
end
return standings
"""
)
#: KEYS: spent and held of each account; ARGV: now.
_STAND: Final = (
    _HELD
    + """
local standings = {}
for i = 1, #KEYS, 2 do
    standings[#standings + 1] = redis.call('GET', KEYS[i]) or '0'
    standings[#standings + 1] = held(KEYS[i + 1], tonumber(ARGV[1]))
end
return standings
"""
)
#: KEYS: the vote, the votes by time; ARGV: id, time, vote, seconds to keep.
_VOTE: Final = """
local before = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', tonumber(ARGV[2]) - tonumber(ARGV[4]))
return before
"""


class RedisLedger:
    """Keep everything in one Redis database.

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
        self._name = redact(url)
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        try:
            self._redis: Redis = redis.Redis.from_url(
                url, socket_timeout=wait_s, socket_connect_timeout=wait_s, decode_responses=True, retry=None
            )
        except ValueError as error:
            raise ConfigurationError(f"ledger={self._name!r} is no Redis URL: {error}") from error
        script = self._redis.register_script
        self._reserve, self._settle, self._stand, self._vote = map(script, (_RESERVE, _SETTLE, _STAND, _VOTE))

    def _do(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except self._errors as error:
            raise LedgerError(f"the ledger {self._name} cannot be reached: {error}") from error

    # --- money ------------------------------------------------------------------------------------

    def reserve(self, reservation: str, claims: Sequence[Claim], lease_s: float, now_s: float) -> Standing | None:
        """Hold all claims or none of them."""
        keys = [_key("reservation", reservation)]
        values: list[Any] = [reservation, repr(now_s), repr(now_s + lease_s), _KEEP_SETTLED_S]
        for claim in claims:
            keys += _account_keys(claim.account, claim.period)
            values += [claim.amount, "" if claim.limit is None else claim.limit, claim.account]
        refused = self._do(lambda: self._reserve(keys, values))
        if refused is None:
            return None
        place, spent, reserved = refused
        return Standing(claims[place].account, claims[place].period, int(spent), int(reserved))

    def settle(self, reservation: str, charges: Sequence[Claim], now_s: float) -> tuple[Standing, ...]:
        """Free a reservation and add what was spent, once."""
        keys = [_key("reservation", reservation), _key("settled", reservation)]
        values: list[Any] = [reservation, repr(now_s), _KEEP_SETTLED_S, _KEEP_S]
        for charge in charges:
            keys += _account_keys(charge.account, charge.period)
            values += [charge.amount, charge.account, "0" if charge.period == "total" else "1"]
        answer = self._do(lambda: self._settle(keys, values))
        return _standings([(charge.account, charge.period) for charge in charges], answer)

    def standings(self, accounts: Iterable[tuple[str, str]], now_s: float) -> tuple[Standing, ...]:
        """Return how accounts stand."""
        asked = list(accounts)
        keys = [key for account, period in asked for key in _account_keys(account, period)[:2]]
        return _standings(asked, self._do(lambda: self._stand(keys, [repr(now_s)]))) if asked else ()

    def accounts(self, prefix: str, period: str) -> tuple[str, ...]:
        """Return the accounts with this prefix that were touched in a period."""
        found: Any = self._do(lambda: self._redis.smembers(_key("accounts", period)))
        return tuple(sorted(account for account in found if account.startswith(prefix)))

    # --- feedback, runs, history ------------------------------------------------------------------

    def put_vote(self, vote: Vote) -> Vote | None:
        """Keep a vote; return the one that it replaces."""
        keys = [_key("vote", vote.id), _key("votes")]
        before = self._do(lambda: self._vote(keys, [vote.id, repr(vote.at_s), json.dumps(vote), _KEEP_S]))
        return None if before is None else Vote(*json.loads(before))

    def votes(self, since_s: float, until_s: float) -> tuple[Vote, ...]:
        """Return the votes given in a stretch of time."""

        def work() -> list[Any]:
            ids: Any = self._redis.zrangebyscore(_key("votes"), repr(since_s), f"({until_s!r}")
            found: Any = self._redis.mget([_key("vote", each) for each in ids]) if ids else []
            return list(found)

        return tuple(Vote(*json.loads(text)) for text in self._do(work) if text is not None)

    def put_runs(self, runs: Sequence[RunLink]) -> None:
        """Keep links of finished runs."""

        def work() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for run in runs:
                pipe.set(_key("run", run.request_id), json.dumps(run), ex=_KEEP_S)
                if run.trace_id is not None:
                    pipe.set(_key("trace", run.trace_id), run.request_id, ex=_KEEP_S)
            pipe.execute()

        self._do(work)

    def find_run(self, *, request_id: str | None = None, trace_id: str | None = None) -> RunLink | None:
        """Return the latest run with this id."""

        def work() -> Any:
            wanted: Any = request_id
            if wanted is None and trace_id is not None:
                wanted = self._redis.get(_key("trace", trace_id))
            return self._redis.get(_key("run", wanted)) if wanted is not None else None

        found = self._do(work)
        return None if found is None else run_link(json.loads(found))

    def add_rollups(self, rollups: Sequence[Rollup]) -> None:
        """Add figures to their hours."""

        def work() -> None:
            pipe = self._redis.pipeline(transaction=True)
            for hour, key, figures in rollups:
                for name, figure in figures.items():
                    pipe.hincrby(_key("rollup", str(hour)), f"{key}{_BETWEEN}{name}", figure)
                pipe.expire(_key("rollup", str(hour)), _KEEP_S)
                pipe.zadd(_key("hours"), {str(hour): hour})
            pipe.execute()

        self._do(work)

    def rollups(self, since_s: float, until_s: float) -> tuple[Rollup, ...]:
        """Return the figures of every hour that begins in a stretch of time."""

        def work() -> list[Rollup]:
            found: list[Rollup] = []
            hours: Any = self._redis.zrangebyscore(_key("hours"), repr(since_s), f"({until_s!r}")
            for hour in hours:
                by_key: dict[str, dict[str, int]] = {}
                fields: Any = self._redis.hgetall(_key("rollup", hour))
                for field, figure in fields.items():
                    key, _, name = field.rpartition(_BETWEEN)
                    by_key.setdefault(key, {})[name] = int(figure)
                found += [Rollup(int(hour), key, by_key[key]) for key in sorted(by_key)]
            return found

        return tuple(self._do(work))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _key(*parts: str) -> str:
    return ":".join((_TAG, *parts))


def _account_keys(account: str, period: str) -> list[str]:
    named = f"{account}{_BETWEEN}{period}"
    return [_key("spent", named), _key("held", named), _key("accounts", period)]


def _standings(accounts: Sequence[tuple[str, str]], answer: Sequence[str]) -> tuple[Standing, ...]:
    pairs = zip(answer[::2], answer[1::2], strict=True)
    return tuple(
        Standing(*account, int(spent), int(reserved))
        for account, (spent, reserved) in zip(accounts, pairs, strict=True)
    )
