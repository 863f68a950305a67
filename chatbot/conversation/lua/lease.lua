-- ARGV: publish, job entry id, reply id, most attempts, worker. Returns ok, fence, attempt, text so
-- far, upto, milliseconds waited, trace; or stale (the job is of no use any more); or ended (it failed).
local trouble = open_head(true)
if trouble then
  return { trouble }
end
if h.job ~= ARGV[2] or h.reply ~= ARGV[3] then
  drop_job(ARGV[2])
  return { 'stale' }
end
set('fence', int(num('fence') + 1)) -- whoever wrote before may not write any more
if num('attempt') >= tonumber(ARGV[4]) then
  fail_reply('attempts')
  save()
  return { 'ended' }
end
set('attempt', int(num('attempt') + 1))
set('worker', ARGV[5])
if num('chars') == 0 then
  set('upto', h.offset)
end
write_head()
return { 'ok', h.fence, h.attempt, live_text(), h.upto, int(now_ms() - num('queued')),
  h.trace or '' }
