-- ARGV: publish, last activity up to which it counts as idle (ms). Closes the conversation if
-- nothing was said since and no reply is owed. Returns ok, whether it was closed.
local trouble = open_head(true)
if trouble then
  return { trouble }
end
if h.status == 'closed' or h.reply ~= '' or num('updated') > tonumber(ARGV[2]) then
  return { 'ok', 0 }
end
change_status('closed', 'idle', 'system', '')
save()
return { 'ok', 1 }
