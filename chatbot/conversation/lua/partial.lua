-- ARGV: publish, id, JSON of the partial, said at (ms), milliseconds that it is kept, most of a call.
-- Returns kept | stale | final | full; or conflict, status. A field of TALK is
-- `<when it came> <when it was said> <JSON>`.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
local id, at, keep = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('HGET', IDS, 'visitor:' .. id) or redis.call('HGET', IDS, 'agent:' .. id) then
  return { 'final' }
end
if h.status ~= 'human' then
  return { 'conflict', h.status }
end
local now, count, known = now_ms(), 0, nil
local flat = redis.call('HGETALL', TALK)
for i = 1, #flat, 2 do
  local came, said = string.match(flat[i + 1], '^(%d+) (%d+) ')
  if now - tonumber(came) > keep then
    redis.call('HDEL', TALK, flat[i]) -- its final never came
  elseif flat[i] == id then
    known = tonumber(said)
  else
    count = count + 1
  end
end
if known and known > at then
  return { 'stale' }
end
if count >= tonumber(ARGV[6]) then
  return { 'full' }
end
redis.call('HSET', TALK, id, int(now) .. ' ' .. int(at) .. ' ' .. ARGV[3])
redis.call('PEXPIRE', TALK, int(keep))
notify()
return { 'kept' }
