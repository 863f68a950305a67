-- ARGV: publish, job entry id, reply id, most milliseconds. Nobody took the job, or who took it
-- was silent, for so long: the reply fails and people are asked. Returns ok, whether it did.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
if h.job ~= ARGV[2] or h.reply ~= ARGV[3] then
  drop_job(ARGV[2])
  return { 'ok', 0 }
end
local most = tonumber(ARGV[4])
local pending = redis.pcall('XPENDING', JOBS, GROUP, h.job, h.job, 1)
local taken = not pending.err and pending[1]
if taken and taken[3] < most then
  return { 'ok', 0 } -- its worker wrote or renewed its lease since
end
if now_ms() - tonumber(string.match(h.job, '^(%d+)-')) < most then
  return { 'ok', 0 }
end
set('fence', int(num('fence') + 1))
if h.upto == '0' then
  set('upto', h.asked)
end
fail_reply('busy')
save()
return { 'ok', 1 }
