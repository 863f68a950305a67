-- KEYS: job streams, one per lane (one key per call on a cluster). ARGV: publish, idle (ms).
-- Delivers at most one job: an abandoned one first, else a new one. Returns found, index of its
-- key, entry id, conversation id, reply id.
local function found(index, entry)
  return { 'found', index, entry[1], entry[2][2], entry[2][4] } -- fields: c, cid, r, reply id
end

for index, key in ipairs(KEYS) do
  local claimed = redis.pcall('XAUTOCLAIM', key, 'workers', 'worker', ARGV[2], '0-0', 'COUNT', 1)
  if claimed.err then -- no such group: the store is new or was flushed
    redis.call('XGROUP', 'CREATE', key, 'workers', '0', 'MKSTREAM')
  elseif claimed[2][1] then
    return found(index, claimed[2][1])
  end
  local fresh = redis.call('XREADGROUP', 'GROUP', 'workers', 'worker', 'COUNT', 1, 'STREAMS', key, '>')
  if fresh then
    return found(index, fresh[1][2][1])
  end
end
return { 'none' }
