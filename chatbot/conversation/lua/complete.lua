-- ARGV: publish, reply id, fence, text, finish reason, version, rest of the event (JSON text),
-- next reply id.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
local lease = ARGV[2] .. ':' .. ARGV[3]
if not holds(ARGV[2], ARGV[3]) then
  return { h.ended == lease and 'written' or 'lost' }
end
if h.version ~= ARGV[6] or live_text() ~= ARGV[4] then
  return { 'conflict', h.chars or '0', h.version }
end
append_completed(ARGV[4], ARGV[5], ARGV[7])
mark_answered(num('upto'))
clear_reply()
set('ended', lease)
enqueue_if_due(ARGV[8])
save()
return { 'written' }
