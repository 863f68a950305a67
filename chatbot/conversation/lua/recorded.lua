-- ARGV: publish, conversation id, epoch, offset, seconds that a closed conversation stays.
if open_head(false) then
  redis.call('ZREM', DIRTY, ARGV[2])
  return { 'ok' }
end
local offset = tonumber(ARGV[4])
local of_this_log = ARGV[3] == h.epoch or (ARGV[3] == h.prev_epoch and offset <= num('prev_offset'))
if not of_this_log or offset <= num('recorded') then
  return { 'ok' }
end
set('recorded', ARGV[4])
if offset >= num('offset') then
  redis.call('ZREM', DIRTY, h.id)
  if h.status == 'closed' then
    set('expires', '1')
    expire_all(ARGV[5])
  end
end
write_head()
return { 'ok' }
