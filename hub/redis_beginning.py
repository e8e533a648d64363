"""How a state in Redis begins: by the first hub that finds nothing, or because somebody wants it to.

What a login may not do is found before anything is written, so no half of a state is ever left; one that an
older GridCore left (a schema, and no list) is completed.
"""

from __future__ import annotations

from hub.redis_script import make_script

SCHEMA_VERSION = 1

_COMMON = """
local all = {
  'tasks', 'nodes', 'live', 'joined', 'online', 'absent', 'gone', 'seen', 'nudge', 'tokens', 'keys', 'marks',
  'revoked', 'events', 'silent'
}
local names = {}
for place, name in ipairs(all) do names[place] = P .. name end

-- The epoch of a state that begins now: later than any that hubs have seen.
local function new_epoch(wall, random)
  local kept = redis.call('HMGET', state, 'epoch', 'after')
  local number = math.floor(wall * 1000)
  for place = 1, 2 do
    number = math.max(number, (tonumber(string.match(kept[place] or '', '^%d+')) or 0) + 1)
  end
  return string.format('%.0f.', number) .. random
end

local function is_whole()
  local kept = redis.call('HMGET', state, 'list', 'head')
  return kept[1] and kept[2]
end

local function put_beginning(schema, head, version, epoch, began, wall)
  redis.call('HSET', state, 'schema', schema, 'head', head, 'list', version, 'access', '0', 'joins', 0,
    'clock', 0, 'ticked', text(wall), 'grace', 0, 'epoch', epoch, 'began', began)
end
"""

_OPEN = """
local at, hub = unpack(ARGV)

-- All that a hub does in a script or beside one, and that a login may lack.
local needed = {
  {'TIME'}, {'PUBLISH', P .. 'notices', ''}, {'PUBLISH', P .. 'answers:' .. hub, ''}, {'DEL', P .. 'silent'},
  {'EXISTS', state}, {'EXPIRE', P .. 'asked:x', '1'}, {'HDEL', state, 'x'}, {'HEXISTS', state, 'x'},
  {'HGET', state, 'x'}, {'HGETALL', state}, {'HINCRBY', state, 'x', '1'}, {'HLEN', P .. 'nodes'},
  {'HMGET', state, 'x'}, {'HSET', state, 'x', 'x'}, {'HVALS', P .. 'tasks'},
  {'LRANGE', P .. 'silent', '0', '1'}, {'RPUSH', P .. 'silent', 'x'}, {'SADD', P .. 'gone', 'x'},
  {'SISMEMBER', P .. 'gone', 'x'}, {'SMEMBERS', P .. 'revoked'}, {'SREM', P .. 'gone', 'x'},
  {'WAIT', '0', '0'}, {'XADD', P .. 'events', '*', 'x', 'x'}, {'XRANGE', P .. 'events', '-', '+'},
  {'XREVRANGE', P .. 'events', '+', '-'},
  {'XTRIM', P .. 'events', 'MINID', '0'}, {'ZADD', P .. 'online', '1', 'x'}, {'ZCARD', P .. 'joined'},
  {'ZRANGE', P .. 'joined', '0', '1'}, {'ZRANGEBYSCORE', P .. 'seen', '0', '1'}, {'ZREM', P .. 'online', 'x'},
  {'ZSCORE', P .. 'online', 'x'}
}
local refused = {}
for _, command in ipairs(needed) do
  if not redis.acl_check_cmd(unpack(command)) then
    local on_key = string.find(command[2] or '', P, 1, true)
    refused[#refused + 1] = command[1] .. (on_key and ' ' .. command[2] or '')
  end
end
if #refused > 0 then return {refused} end

local clock = read_clock(at)
local gone = ''
if is_whole() then
  gone = missing()
elseif redis.call('EXISTS', unpack(names)) > 0 then
  gone = 'the list of tasks'
end
local found = redis.call('HMGET', state, 'schema', 'epoch', 'began', 'lost', 'list', 'access')
for place = 1, 6 do found[place] = found[place] or '' end
return {refused, found, text(clock), gone}
"""

_FOUND = """
local at, hub, schema, head, version, random = unpack(ARGV)
local _, wall = read_clock(at)
local kept = redis.call('HMGET', state, 'epoch', 'lost')
if is_whole() then
  if not kept[1] then redis.call('HSET', state, 'epoch', new_epoch(wall, random)) end
elseif redis.call('EXISTS', unpack(names)) == 0 and not kept[2] then
  put_beginning(schema, head, version, new_epoch(wall, random), 'first', wall)
  tell({by = hub, wake = {}, list = true})
end
return 1
"""

_REFUSE = """
local hub, list, why, epoch = unpack(ARGV)
local kept = redis.call('HMGET', state, 'list', 'lost')
if (kept[1] or '') ~= list or kept[2] then return 0 end
redis.call('HSET', state, 'lost', why, 'after', epoch)
tell({by = hub, wake = {}, list = true})
return 1
"""

_BEGIN = """
local at, how, schema, head, version, random, lost, list, access = unpack(ARGV)
local now = redis.call('HMGET', state, 'list', 'access')
if (now[1] or '') ~= list or (now[2] or '') ~= access then return '' end
local _, wall = read_clock(at)
local epoch = new_epoch(wall, random)
if how == 'empty' then
  local notices = redis.call('HGET', state, 'notices') or 0
  redis.call('DEL', state, unpack(names))
  put_beginning(schema, head, version, epoch, 'purpose', wall)
  redis.call('HSET', state, 'notices', notices)
elseif how == 'kept' then
  local gone = missing()
  if gone == 'nodes' then
    for _, name in ipairs({'nodes', 'live', 'joined', 'online', 'absent', 'gone', 'seen', 'nudge'}) do
      redis.call('DEL', P .. name)
    end
  end
  if redis.call('EXISTS', P .. 'keys') == 0 then  -- and no token is worth anything without
    redis.call('DEL', P .. 'tokens', P .. 'revoked')
    redis.call('HSET', state, 'access', '0')
  end
  local listed = {}
  for _, name in ipairs(cjson.decode(head).order) do listed[name] = true end
  local tasks = redis.call('HGETALL', P .. 'tasks')
  for place = 1, #tasks, 2 do
    if not listed[tasks[place]] then redis.call('HDEL', P .. 'tasks', tasks[place]) end
  end
  if not string.match(access, '^%d+') then redis.call('HSET', state, 'access', '1.' .. random) end
  redis.call('HSET', state, 'head', head, 'list', version)
end
redis.call('HSET', state, 'epoch', epoch, 'began', 'purpose')
if lost ~= '' then redis.call('HSET', state, 'lost', lost) else redis.call('HDEL', state, 'lost', 'after') end
tell({by = '', wake = {}, list = true, access = true})
return epoch
"""

OPEN = make_script(_COMMON + _OPEN, "no-writes")
"""at, hub → [what the login may not do]; and, if that is nothing, [schema, epoch, how it began, why it is
refused, versions of list and keys], clock, what is gone. Also where Redis takes no changes now."""

FOUND = make_script(_COMMON + _FOUND, "allow-oom")
"""at, hub, schema, head and version of an empty list, random text for an epoch → 1: there is a state now, if
none is missed; one of an older GridCore has been given an epoch."""

REFUSE = make_script(_REFUSE, "allow-oom")
"""hub, list version, why, epoch that is known → 1: from now on every hub refuses it; 0 if it is another one
by now."""

BEGIN = make_script(_COMMON + _BEGIN, "allow-oom")
"""at, how, schema, head, version, random text, why hubs still refuse it, or empty, versions of list and keys
that were looked at → the epoch that begins, or nothing, and nothing has changed, if they are others by now.
`how`: `empty` drops all that there is, `kept` keeps what is of use with this list, `as it is` all of it."""
