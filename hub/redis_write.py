"""Writing what operations decided: all that an entry rests on is still so, or it is left out.

Two scripts of the same text. Where memory is full, Redis refuses the one and does the other, which is for
entries that need no more of it than there was: heartbeats, orders, switches, whatever is dropped.
"""

from __future__ import annotations

from hub.redis_script import make_script

_WRITE = """
local hub, epoch, repairs = ARGV[1], ARGV[3], ARGV[4]
local entries = cjson.decode(ARGV[2])
local kept = redis.call('HMGET', state, 'epoch', 'lost')
local is_ours = kept[1] == epoch and (not kept[2] or repairs == '1')

local function holds(entry)
  if not is_ours then return false end
  if entry.list and redis.call('HGET', state, 'list') ~= entry.list then return false end
  if entry.access and redis.call('HGET', state, 'access') ~= entry.access then return false end
  for _, node in ipairs(entry.nodes) do
    local record = redis.call('HGET', P .. 'nodes', node.id) or ''
    if record ~= node.was then return false end
    if record ~= '' and presence(node.id) ~= node.presence then return false end
  end
  for _, kept in ipairs(entry.kept) do
    if (redis.call('HGET', P .. kept.hash, kept.id) or '') ~= kept.was then return false end
  end
  return true
end

local function put_node(node)
  local id = node.id
  if node.drop then
    for _, hash in ipairs({'nodes', 'live'}) do redis.call('HDEL', P .. hash, id) end
    for _, sorted in ipairs({'online', 'absent', 'seen', 'joined'}) do redis.call('ZREM', P .. sorted, id) end
    redis.call('SREM', P .. 'gone', id)
    redis.call('SREM', P .. 'nudge', id, '?' .. id)
    return
  end
  if node.record then
    redis.call('HSET', P .. 'nodes', id, node.record)
    if not redis.call('ZSCORE', P .. 'joined', id) then
      redis.call('ZADD', P .. 'joined', redis.call('HINCRBY', state, 'joins', 1), id)
    end
  end
  if node.live then redis.call('HSET', P .. 'live', id, node.live) end
  if node.seen then redis.call('ZADD', P .. 'seen', node.seen, id) end
  if node.presence == 'online' then
    redis.call('SREM', P .. 'gone', id)
    redis.call('ZREM', P .. 'absent', id)
    if node.heard then redis.call('ZADD', P .. 'online', 'GT', node.heard, id) end
  else
    local heard = redis.call('ZSCORE', P .. 'online', id) or node.heard
    if heard then redis.call('ZADD', P .. 'absent', heard, id) end
    redis.call('ZREM', P .. 'online', id)
    redis.call(node.presence == 'gone' and 'SADD' or 'SREM', P .. 'gone', id)
  end
  if node.nudge ~= nil then redis.call(node.nudge and 'SADD' or 'SREM', P .. 'nudge', id) end
end

local function put(entry, notice)
  if entry.head then
    redis.call('HSET', state, 'head', entry.head, 'list', entry.new_list)
    for name, task in pairs(entry.put_tasks) do redis.call('HSET', P .. 'tasks', name, task) end
    for _, name in ipairs(entry.drop_tasks) do redis.call('HDEL', P .. 'tasks', name) end
    notice.list = true
  end
  for _, node in ipairs(entry.put_nodes) do put_node(node) end
  for _, kept in ipairs(entry.put_kept) do
    if kept.text then
      redis.call('HSET', P .. kept.hash, kept.id, kept.text)
    else
      redis.call('HDEL', P .. kept.hash, kept.id)
    end
    if kept.revoked ~= nil then redis.call(kept.revoked and 'SADD' or 'SREM', P .. 'revoked', kept.id) end
  end
  if entry.new_access then
    redis.call('HSET', state, 'access', entry.new_access)
    notice.access = true
  end
  for _, event in ipairs(entry.events) do
    add_event(event.text, event.ms)
    notice.audit = true
  end
  if entry.wake then notice.wake[#notice.wake + 1] = entry.wake end
end

local done, notice = {}, {by = hub, wake = {}}
for place, entry in ipairs(entries) do
  done[place] = 0
  if holds(entry) then
    put(entry, notice)
    done[place] = 1
  end
end
if notice.list or notice.access or notice.audit or #notice.wake > 0 then tell(notice) end
return done
"""

WRITE = make_script(_WRITE)
"""hub, [entry], epoch, 1 to write into a state that hubs refuse → [1 where the entry was written, 0 where
what it rests on is no longer so]."""

WRITE_ANYWAY = make_script(_WRITE, "allow-oom")
"""The same, also where memory is full."""
