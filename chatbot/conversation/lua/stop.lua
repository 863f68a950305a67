-- ARGV: publish, reply id, next reply id. Returns ok, whether the reply was running.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
if h.reply == '' or h.reply ~= ARGV[2] then
  return { 'ok', 0 }
end
end_reply('stopped')
enqueue_if_due(ARGV[3])
save()
return { 'ok', 1 }
