"""What the hub has Redis do, each in one script and so in one piece; and where everything lies.

All keys begin with one prefix, whose part in braces puts them into one slot of a Redis Cluster:

    state           hash: schema; head of the task list and its version; version of keys and revocations;
                    number of the last notice and of the last node that joined; the logical clock; the epoch,
                    how it began, and why hubs refuse it, if they do (`redis_succession.py`)
    tasks           hash: name → task
    nodes, live     hashes: id → what is known of a node, what it last reported
    joined          sorted set: id by the order in which nodes first came
    online          sorted set: id by the logical clock when the node was heard; its members are Online
    absent          sorted set: id by the logical clock when the node was last heard; all that are not Online
    gone            set: nodes that deregistered
    seen            sorted set: id by the time when the node was heard, for people
    nudge           set: nodes whose held request is to end once; `?` before the id: for a question
    tokens, keys, marks     hashes: id or name → value; `revoked`, a set: ids of tokens
    events          stream
    asked:<node>    hash, for seconds: questions for logs (`logdesk_redis.py`)

**The logical clock** is that of `observed.py`, for all hubs together: a sweep, which every hub does every
few seconds, adds what has passed by Redis' own clock, never less than nothing and never more than
MOST_PASSED. More than that means that hubs or Redis were away, or that a clock was set: then nobody is called
Offline for a whole span, counted from `grace`.

**A write** holds several changes, each with what it rests on: versions and texts as they were read. One that
rests on what is no longer so is left out, and whoever decided it looks again. What is told to other hubs is
one notice for all of them, numbered without a gap, so that a hub sees when it missed one.

What may be refused (a command that the login lacks, memory) is done before anything is written: Redis does a
script in one piece, and takes back nothing of one that fails.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from hub.observed import MOST_PASSED

_BASE = """
local P = string.sub(KEYS[1], 1, -6)
local state = KEYS[1]

-- The logical clock and the time; `at` stands for Redis' own in tests.
local function read_clock(at)
  local wall = tonumber(at)
  if not wall then
    local now = redis.call('TIME')
    wall = now[1] + now[2] / 1000000
  end
  local kept = redis.call('HMGET', state, 'clock', 'ticked')
  local passed = wall - (tonumber(kept[2]) or wall)
  local is_gap = math.abs(passed) > MOST_PASSED
  passed = math.max(0, math.min(passed, MOST_PASSED))
  return (tonumber(kept[1]) or 0) + passed, wall, is_gap
end

local function text(number) return string.format('%.6f', number) end

local function presence(id)
  if redis.call('SISMEMBER', P .. 'gone', id) == 1 then return 'gone' end
  if redis.call('ZSCORE', P .. 'online', id) then return 'online' end
  return 'offline'
end

local function add_event(event, milliseconds)
  local last = redis.call('HGET', state, 'event') or 0
  local place = math.max(milliseconds, tonumber(last), 1)
  local id = redis.call('XADD', P .. 'events', string.format('%.0f-*', place), 'e', event)
  redis.call('HSET', state, 'event', string.match(id, '^%d+'))
end

-- What is gone of a state that is there: where memory is short, Redis may drop whole keys.
local function missing()
  local none = redis.call('HLEN', P .. 'nodes') == 0
  if none ~= (redis.call('HLEN', P .. 'live') == 0) or none ~= (redis.call('ZCARD', P .. 'joined') == 0) then
    return 'nodes'
  end
  local access = tonumber(string.match(redis.call('HGET', state, 'access') or '', '^%d+'))
  if access and access > 0 and redis.call('EXISTS', P .. 'keys') == 0 then return 'signing keys' end
  return ''
end

local function tell(notice)
  notice.n = redis.call('HINCRBY', state, 'notices', 1)
  redis.call('PUBLISH', P .. 'notices', cjson.encode(notice))
end
""".replace("MOST_PASSED", str(MOST_PASSED))

_READ = """
local at, known_list, known_access = ARGV[1], ARGV[2], ARGV[3]
local wanted = cjson.decode(ARGV[4])
local clock, wall, is_gap = read_clock(at)
local since = is_gap and clock or tonumber(redis.call('HGET', state, 'grace') or 0)
local kept = redis.call('HMGET', state, 'list', 'head', 'access', 'notices', 'epoch', 'lost')
local head, tasks, keys, revoked = false, false, false, false
if kept[1] ~= known_list then head, tasks = kept[2], redis.call('HVALS', P .. 'tasks') end
if kept[3] ~= known_access then
  keys, revoked = redis.call('HVALS', P .. 'keys'), redis.call('SMEMBERS', P .. 'revoked')
end
local nodes = {}
for _, id in ipairs(wanted.nodes) do
  local record = redis.call('HGET', P .. 'nodes', id)
  if record then
    nodes[#nodes + 1] = {
      id, record, redis.call('HGET', P .. 'live', id), presence(id),
      redis.call('ZSCORE', P .. 'online', id) or redis.call('ZSCORE', P .. 'absent', id) or text(clock),
      redis.call('ZSCORE', P .. 'seen', id) or '0',
      redis.call('SISMEMBER', P .. 'nudge', id)
    }
  end
end
local function find(hash)
  local found = {}
  for _, id in ipairs(wanted[hash]) do
    local kept = redis.call('HGET', P .. hash, id)
    if kept then found[#found + 1] = {id, kept} end
  end
  return found
end
return {
  text(clock), text(wall), text(since), kept[4], kept[1], head, tasks, kept[3], keys, revoked,
  nodes, find('tokens'), find('marks'),
  kept[5] or '', kept[6] or '', missing(), redis.call('HLEN', P .. 'tasks')
}
"""

_TOUCH = """
local at = ARGV[1]
local clock, wall = read_clock(at)

local touches = {}

-- Whether the node was Offline until now.
function touches.hear(id)
  if redis.call('HEXISTS', P .. 'nodes', id) == 0 then return 0 end
  local before = presence(id)
  if before == 'gone' then return 0 end
  redis.call('ZADD', P .. 'online', 'GT', text(clock), id)
  redis.call('ZADD', P .. 'seen', text(wall), id)
  if before == 'offline' then redis.call('ZREM', P .. 'absent', id) end
  return before == 'offline' and 1 or 0
end

-- Whether its held request is to end, and has not ended for this.
function touches.nudge(id) return math.min(1, redis.call('SREM', P .. 'nudge', id, '?' .. id)) end

-- The questions for its logs that it was not asked yet: `!hub order`; `.hub order` was asked.
function touches.take(id)
  local key, untold = P .. 'asked:' .. id, {}
  redis.call('SREM', P .. 'nudge', '?' .. id)
  local questions = redis.call('HGETALL', key)
  for place = 1, #questions, 2 do
    local question = questions[place + 1]
    if string.sub(question, 1, 1) == '!' then
      redis.call('HSET', key, questions[place], '.' .. string.sub(question, 2))
      untold[#untold + 1] = string.match(question, ' (.*)$')
    end
  end
  return untold
end

local answers = {}
for place, touch in ipairs(cjson.decode(ARGV[2])) do answers[place] = touches[touch[1]](touch[2]) end
return answers
"""

_SWEEP = """
local at, hub, span, retention, event = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local most, quiet, longest = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
if not redis.call('HGET', state, 'list') then return {{}, {}, 0} end
local clock, wall, is_gap = read_clock(at)
redis.call('HSET', state, 'clock', text(clock), 'ticked', text(wall))
if is_gap then redis.call('HSET', state, 'grace', text(clock)) end
local silent = {}
if clock - redis.call('HGET', state, 'grace') >= span then
  silent = redis.call('ZRANGEBYSCORE', P .. 'online', '-inf', text(clock - span))
end
for _, id in ipairs(silent) do
  redis.call('ZADD', P .. 'absent', redis.call('ZSCORE', P .. 'online', id), id)
  redis.call('ZREM', P .. 'online', id)
end
local kept = redis.call('HMGET', state, 'silent', 'silent_since', 'silent_last')
local count, since, last = tonumber(kept[1] or 0), tonumber(kept[2] or wall), tonumber(kept[3] or wall)
if count == 0 then since = wall end
if #silent > 0 then
  for _, id in ipairs(silent) do redis.call('RPUSH', P .. 'silent', id) end
  count, last = count + #silent, wall
  redis.call('HSET', state, 'silent', count, 'silent_since', text(since), 'silent_last', text(last))
end
-- As `operations.gather_silence` has it: one event about all that fall silent together, and are not back.
local is_quiet = #silent == 0 and not (wall >= last and wall - last < quiet)
local is_told = count > 0 and (is_quiet or not (wall >= since and wall - since < longest))
if is_told then
  local lost, seen = {}, {}
  local names = redis.call('LRANGE', P .. 'silent', 0, -1)
  for _, id in ipairs(names) do
    if not seen[id] and presence(id) == 'offline' and redis.call('HEXISTS', P .. 'nodes', id) == 1 then
      lost[#lost + 1] = id
    end
    seen[id] = true
  end
  count = count - #names + #lost
  redis.call('HDEL', state, 'silent', 'silent_since', 'silent_last')
  redis.call('DEL', P .. 'silent')
  is_told = count > 0
  if is_told then
    local told = cjson.decode(event)
    told.time, told.detail.count, told.detail.nodes = wall, count, {}
    for place = 1, math.min(#lost, most) do told.detail.nodes[place] = lost[place] end
    if count == 1 then told.node = lost[1] end
    add_event(cjson.encode(told), math.floor(wall * 1000))
    tell({by = hub, wake = {}, audit = true})
  end
end
-- Under a hub that keeps no account of it nodes go, and are absent from now on, or come, and are so no more.
local cards = {}
for _, sorted in ipairs({'seen', 'online', 'absent'}) do cards[sorted] = redis.call('ZCARD', P .. sorted) end
if cards.seen ~= cards.online + cards.absent then
  for _, id in ipairs(redis.call('ZRANGE', P .. 'seen', 0, -1)) do
    if redis.call('ZSCORE', P .. 'online', id) then
      redis.call('ZREM', P .. 'absent', id)
    else
      redis.call('ZADD', P .. 'absent', 'NX', text(clock), id)
    end
  end
end
local old = {}
local before = text(clock - retention)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'absent', '-inf', before, 'LIMIT', 0, 500)) do
  if redis.call('ZSCORE', P .. 'online', id) or redis.call('HEXISTS', P .. 'nodes', id) == 0 then
    redis.call('ZREM', P .. 'absent', id)
  else
    old[#old + 1] = id
  end
end
return {silent, old, is_told and 1 or 0}
"""

_ASK = """
local hub, node, id, order, most, seconds = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local key = P .. 'asked:' .. node
if redis.call('HLEN', key) >= most then return 0 end
redis.call('HSET', key, id, '!' .. hub .. ' ' .. order)
redis.call('EXPIRE', key, seconds)
redis.call('SADD', P .. 'nudge', '?' .. node)
tell({by = hub, wake = {node}})
return 1
"""

_ANSWER = """
local node, id, message = ARGV[1], ARGV[2], ARGV[3]
local key = P .. 'asked:' .. node
local question = redis.call('HGET', key, id)
if not question then return 0 end
redis.call('HDEL', key, id)
-- Published and not kept: no file of Redis ever holds a line of a log.
return redis.call('PUBLISH', P .. 'answers:' .. string.match(question, '^.(%S+)'), message)
"""


Flag = Literal["no-writes", "allow-oom"]
"""What a script says of itself, so that a Redis whose memory is full still does it: that it only reads, or
that nodes live by it, or that it makes room."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest by which Redis knows it."""

    text: str
    digest: str


def make_script(body: str, *flags: Flag) -> Script:
    """A script of this body, which has what is above at its disposal."""
    text = f"#!lua{' flags=' if flags else ''}{','.join(flags)}\n{_BASE}{body}"
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


READ = make_script(_READ, "no-writes")
"""at, known list version, known access version, {nodes, tokens, marks} → clock, time, number of the last
notice, and what was asked for; the list and the keys only where their version is another one. And the epoch,
why it is refused, what is missing, how many tasks there are."""

TOUCH = make_script(_TOUCH, "allow-oom")
"""at, [[hear | nudge | take, node]] → [answer]."""

SWEEP = make_script(_SWEEP, "allow-oom")
"""at, hub, span, retention, event to fill in, nodes that it names at most, seconds of quiet before it is told
and until it is told anyway → [who fell silent], [who may be forgotten, some hundreds at most], 1 if the
event was told."""

ASK = make_script(_ASK, "allow-oom")
"""hub, node, id, order, most, seconds that it stands → 1, or 0 if so many wait already."""

ANSWER = make_script(_ANSWER, "allow-oom")
"""node, id, message → hubs that were told."""
