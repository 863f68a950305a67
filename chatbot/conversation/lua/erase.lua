-- ARGV: publish, conversation id, erased at (ms), last activity up to which it may go (ms; '' for
-- any). Deletes the log for good: nothing that began at that moment or before comes back under
-- this id. Returns ok, whether there was a log; or busy (something was said since).
local missing = open_head(false)
local at = tonumber(ARGV[3])
if not missing and num('created') > at then
  return { 'ok', 0 } -- another conversation that began since
end
if not missing and ARGV[4] ~= '' and num('updated') > tonumber(ARGV[4]) then
  return { 'busy' }
end
if at > gone_at() then
  redis.call('SET', GONE, ARGV[3], 'EX', GONE_TTL)
end
if not missing then
  drop_job(h.job)
end
redis.call('DEL', HEAD, LOG, LIVE, IDS, TALK, DRAFTS)
redis.call('ZREM', OPEN, ARGV[2])
redis.call('ZREM', DIRTY, ARGV[2])
redis.call(PUBLISH, NOTIFY, ARGV[2])
return { 'ok', missing and 0 or 1 }
