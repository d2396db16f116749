"""The scripts of the Redis ledger: what has to happen in one step, runs inside Redis.

An account in one period is a hash of what is ``spent`` and ``reserved``, and a sorted set of reservations by the end of
their leases. Sums are Redis's own 64-bit integers. To Lua they would be floats, which end being exact at nine
thousand dollars: scripts hand them on as text, and compare them in two parts.
"""

from typing import Final

from taskpilot_instrument.sinks._ledger_records import MOST_PICO

#: All keys have the same tag, so that a cluster keeps them on one node.
PREFIX: Final = "{taskpilot}:"

_COMMON: Final = f"""
local function add(account, field, amount)
    local answer = redis.pcall('HINCRBY', account, field, amount)
    if type(answer) == 'table' then  -- past the largest integer
        redis.call('HSET', account, field, '{MOST_PICO}')
    end
end

local function free_expired(account, leases, now)
    for _, lease in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do
        redis.call('ZREM', leases, lease)
        add(account, 'reserved', string.match(lease, '^[^:]+'))
    end
end

local function keep(ttl, ...)
    if ttl ~= '' then
        for _, key in ipairs({{...}}) do
            redis.call('EXPIRE', key, ttl)
        end
    end
end
"""
#: KEYS: the reservation, then of each claim its account and leases.
#: ARGV: reservation, now, end of the lease, seconds to keep the reservation; then of each claim its amount, that amount
#: taken off, its limit or nothing, seconds to keep its period or nothing for ever.
RESERVE: Final = (
    _COMMON
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then  -- asked again: the first answer was lost
    return false
end

local function is_less(limit, ...)
    local high, low = 0, 0  -- of the limit less the others; in thousand-millionths, so that both are exact
    for i, text in ipairs({limit, ...}) do
        local sign = i == 1 and 1 or -1
        if string.sub(text, 1, 1) == '-' then
            sign, text = -sign, string.sub(text, 2)
        end
        high = high + sign * (tonumber(string.sub(text, 1, -10)) or 0)
        low = low + sign * tonumber(string.sub(text, -9))
    end
    return high + math.floor(low / 1e9) < 0
end

for i = 0, (#KEYS - 1) / 2 - 1 do
    local account, limit = KEYS[2 + 2 * i], ARGV[7 + 4 * i]
    free_expired(account, KEYS[3 + 2 * i], ARGV[2])
    if limit ~= '' then
        local known = redis.call('HMGET', account, 'spent', 'reserved')
        local spent, reserved = known[1] or '0', known[2] or '0'
        if is_less(limit, spent, reserved, ARGV[5 + 4 * i]) then
            return {i, spent, reserved}
        end
    end
end
for i = 0, (#KEYS - 1) / 2 - 1 do
    local account, leases, off = KEYS[2 + 2 * i], KEYS[3 + 2 * i], ARGV[6 + 4 * i]
    add(account, 'reserved', ARGV[5 + 4 * i])
    redis.call('ZADD', leases, ARGV[3], off .. ':' .. ARGV[1])
    redis.call('HSET', KEYS[1], account, leases .. '\\n' .. off)
    keep(ARGV[8 + 4 * i], account, leases)
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return false
"""
)
#: KEYS: the reservation, then of each charge its account, leases and the accounts of its period.
#: ARGV: reservation, now, seconds to remember the settlement; then of each charge its amount, account, seconds to keep.
SETTLE: Final = (
    _COMMON
    + """
if redis.call('HEXISTS', KEYS[1], 'settled') == 0 then
    local held = redis.call('HGETALL', KEYS[1])
    for i = 1, #held, 2 do
        local leases, off = string.match(held[i + 1], '^(.*)\\n([^\\n]*)$')
        if redis.call('ZREM', leases, off .. ':' .. ARGV[1]) == 1 then
            add(held[i], 'reserved', off)
        end
    end
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'settled', '1')
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    for i = 0, (#KEYS - 1) / 3 - 1 do
        local account, leases, all = KEYS[2 + 3 * i], KEYS[3 + 3 * i], KEYS[4 + 3 * i]
        add(account, 'spent', ARGV[4 + 3 * i])
        redis.call('SADD', all, ARGV[5 + 3 * i])
        keep(ARGV[6 + 3 * i], account, leases, all)
    end
end
local standings = {}
for i = 0, (#KEYS - 1) / 3 - 1 do
    free_expired(KEYS[2 + 3 * i], KEYS[3 + 3 * i], ARGV[2])
    local known = redis.call('HMGET', KEYS[2 + 3 * i], 'spent', 'reserved')
    standings[#standings + 1] = known[1] or '0'
    standings[#standings + 1] = known[2] or '0'
end
return standings
"""
)
#: KEYS: account and leases of each; ARGV: now.
STAND: Final = (
    _COMMON
    + """
local standings = {}
for i = 1, #KEYS, 2 do
    free_expired(KEYS[i], KEYS[i + 1], ARGV[1])
    local known = redis.call('HMGET', KEYS[i], 'spent', 'reserved')
    standings[#standings + 1] = known[1] or '0'
    standings[#standings + 1] = known[2] or '0'
end
return standings
"""
)
#: KEYS: the batch, the hours, then of each hour its figures.
#: ARGV: seconds to remember the batch, seconds to keep hours, the end of those that are too old, then each hour; then
#: of each figure the place of its hour among the keys, its field, and what to add.
ADD: Final = (
    _COMMON
    + """
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then
    return
end
for i = 3, #KEYS do
    redis.call('ZADD', KEYS[2], ARGV[i + 1], ARGV[i + 1])
end
for i = #KEYS + 2, #ARGV, 3 do
    add(KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2])
end
for i = 3, #KEYS do
    redis.call('EXPIRE', KEYS[i], ARGV[2])
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[3])
"""
)
#: KEYS: the vote, the votes by time; ARGV: id, time, vote, seconds to keep.
VOTE: Final = """
local before = redis.call('HMGET', KEYS[1], 'vote', 'at_s')
if before[1] ~= ARGV[3] then
    redis.call('HSET', KEYS[1], 'vote', ARGV[3], 'at_s', ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[4])
    redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', tonumber(ARGV[2]) - tonumber(ARGV[4]))
end
return before
"""
