-- ARGV: publish, speaker (visitor | agent), id, the event's data (JSON text without its last brace), spoken at (ms).
-- Returns ok, offset, duplicate; or conflict, status.
--
-- Words that come late, after others that were said later, have their place before those ('late' is
-- that offset) and neither ask nor answer. `said` and `said_at` of the head are the agent's last
-- words and when they were spoken; `asked_at` when the last question was.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
local speaker, id, spoken = ARGV[2], ARGV[3], tonumber(ARGV[5])
local seen = redis.call('HGET', IDS, 'visitor:' .. id) or redis.call('HGET', IDS, 'agent:' .. id)
if seen then
  return { 'ok', seen, 1 }
end
if h.status ~= 'human' then
  return { 'conflict', h.status }
end
redis.call('HDEL', TALK, id)
local before = ''
if speaker == 'visitor' and spoken < num('said_at') then
  before = h.said
elseif speaker == 'agent' and num('asked') > num('answered') and spoken < num('asked_at') then
  before = h.asked
end
local author = speaker == 'agent' and h.agent or h.visitor
local late = before ~= '' and ',"late":' .. before or ''
local offset = append_event('message.created', ARGV[4] .. ',"author":' .. quote(author) .. late .. '}')
redis.call('HSET', IDS, speaker .. ':' .. id, int(offset))
if before == '' and speaker == 'visitor' then
  set('asked', int(offset))
  set('asked_at', int(spoken))
elseif before == '' then
  mark_answered(offset)
  set('said', int(offset))
  set('said_at', int(spoken))
end
save()
return { 'ok', int(offset), 0 }
