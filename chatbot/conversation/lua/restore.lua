-- ARGV: publish, conversation id, the record's epoch, site, visitor, status, agent, created,
-- updated, asked, answered, next reply id, number of events, random part of the epoch, seconds that
-- a closed conversation stays, the events' JSON ..., then idempotency field, offset ... Writes the
-- log anew from the record, unless another process was faster or it was erased meanwhile.
local trouble = open_head(true)
local count = tonumber(ARGV[13])
if not trouble or (trouble == 'check' and num('offset') >= count) then
  return { 'changed' }
end
if gone_at() >= tonumber(ARGV[8]) then
  return { 'gone' }
end
drop_job(h.job)
redis.call('DEL', HEAD, LOG, LIVE, IDS)
for i = 1, count do
  redis.call('XADD', LOG, int(i) .. '-0', 'e', ARGV[15 + i])
end
for i = 16 + count, #ARGV, 2 do
  redis.call('HSET', IDS, ARGV[i], ARGV[i + 1])
end
local fence = h.fence or '0'
local epoch = next_epoch(math.max(epoch_number(h.epoch), epoch_number(ARGV[3])), ARGV[14])
h = {}
set('id', ARGV[2])
set('epoch', epoch)
set('offset', int(count))
set('status', ARGV[6])
set('site', ARGV[4])
set('visitor', ARGV[5])
set('agent', ARGV[7])
set('kind', 'chat')
set('pinned', '')
set('created', ARGV[8])
set('updated', ARGV[9])
set('run', run_id())
set('recorded', int(count))
set('asked', ARGV[10])
set('answered', ARGV[11])
set('reply', '')
set('fence', fence)
set('expires', '')
enqueue_if_due(ARGV[12])
if h.status == 'closed' then
  set('expires', '1')
end
write_head()
list_as_open()
redis.call('ZREM', DIRTY, h.id)
if h.status == 'closed' then
  expire_all(ARGV[15])
end
notify()
return { 'ok' }
