-- ARGV: publish, reply id, fence, version, reason.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
local lease = ARGV[2] .. ':' .. ARGV[3]
if not holds(ARGV[2], ARGV[3]) then
  return { h.ended == lease and 'written' or 'lost' }
end
if h.version == '' then
  set('version', ARGV[4])
end
fail_reply(ARGV[5])
set('ended', lease)
save()
return { 'written' }
