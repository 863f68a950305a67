-- ARGV: publish, conversation id, random part of the epoch, site, visitor, kind, pinned version,
-- when the record says that one of this id was erased (ms, 0 for never). Returns the head.
local trouble = open_head(true)
if trouble == 'check' then
  return { 'check' }
end
if not trouble then
  return { 'ok', head_flat() }
end
local at = int(math.max(now_ms(), gone_at() + 1, tonumber(ARGV[8]) + 1))
redis.call('HSET', HEAD, 'id', ARGV[2], 'epoch', next_epoch(0, ARGV[3]), 'offset', '0', 'status', 'bot',
  'site', ARGV[4], 'visitor', ARGV[5], 'agent', '', 'kind', ARGV[6], 'pinned', ARGV[7],
  'created', at, 'updated', at, 'run', run_id(), 'recorded', '0', 'asked', '0', 'answered', '0',
  'reply', '', 'fence', '0', 'expires', '1')
redis.call('EXPIRE', HEAD, EMPTY_TTL)
return { 'ok', head_flat() }
