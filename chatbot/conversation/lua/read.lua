-- ARGV: publish, mode (head | all), epoch ('' for none), offset (-1 for none).
-- Returns ok, head, recovered, events (id, JSON, id, JSON ...), live (reply id, version, text).
local trouble = open_head(true)
if trouble then
  return { trouble }
end
if ARGV[2] == 'head' then
  return { 'ok', head_flat() }
end
local epoch, offset = ARGV[3], tonumber(ARGV[4])
local known = (epoch == h.epoch and offset <= num('offset'))
  or (epoch == h.prev_epoch and offset <= num('prev_offset'))
local recovered = offset >= 0 and known
local events = {}
local first = int(recovered and offset + 1 or 1) .. '-0'
for _, entry in ipairs(redis.call('XRANGE', LOG, first, '+')) do
  events[#events + 1] = entry[1]
  events[#events + 1] = entry[2][2]
end
local live = {}
if h.reply ~= '' and h.version ~= '' then
  live = { h.reply, h.version, live_text() }
end
return { 'ok', head_flat(), recovered and 1 or 0, events, live }
