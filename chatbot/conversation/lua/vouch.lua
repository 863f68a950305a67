-- ARGV: publish, random part of the epoch, events that the record has. The log is not behind the record after the
-- store came back: go on with it under a new epoch. Readers who had no more than what is here keep
-- their place (prev_epoch); others must reload, since the end of the log may be gone.
local trouble = open_head(true)
if trouble ~= 'check' or num('offset') < tonumber(ARGV[3]) then
  return { 'changed' }
end
set('prev_epoch', h.epoch)
set('prev_offset', h.offset)
set('epoch', next_epoch(epoch_number(h.epoch), ARGV[2]))
set('run', run_id())
write_head()
notify()
return { 'ok' }
