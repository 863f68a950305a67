-- ARGV: publish, event type, role (visitor | agent | note | rating | staff), idempotency field, data JSON, author, next reply id,
-- the question that a draft answers or '', trace. Returns ok, offset, duplicate; or conflict; or moved (that question is not open any more).
local trouble = open_head(true)
if trouble then
  return { trouble }
end
local role, field = ARGV[3], ARGV[4]
local seen = redis.call('HGET', IDS, field)
if seen then
  return { 'ok', seen, 1 }
end
if role == 'agent' and (h.status ~= 'human' or h.agent ~= ARGV[6]) then
  return { 'conflict', h.status, h.agent }
end
if ARGV[8] ~= '' and (h.asked ~= ARGV[8] or num('asked') <= num('answered')) then
  return { 'moved' }
end
if role == 'visitor' and h.status == 'closed' then
  change_status('bot', 'visitor_wrote', 'visitor', '')
end
local offset = append_event(ARGV[2], ARGV[5])
redis.call('HSET', IDS, field, int(offset))
if role == 'visitor' then
  set('asked', int(offset))
  set('trace', ARGV[9])
  enqueue_if_due(ARGV[7])
elseif role == 'agent' then
  mark_answered(offset)
end
save()
return { 'ok', int(offset), 0 }
