-- ARGV: publish, expected status, expected agent, new status, reason, actor, agent, next reply id.
-- The caller checked the move against the expected state (../rules.py); compare and set.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
if h.status ~= ARGV[2] or h.agent ~= ARGV[3] then
  return { 'changed' }
end
if ARGV[4] ~= 'bot' then
  end_reply('handoff')
end
change_status(ARGV[4], ARGV[5], ARGV[6], ARGV[7])
enqueue_if_due(ARGV[8])
save()
return { 'ok', head_flat() }
