-- ARGV: publish, job entry id, reply id. Gives back a job that was delivered but not leased.
if open_head(false) or h.job ~= ARGV[2] or h.reply ~= ARGV[3] then
  drop_job(ARGV[2])
  return { 'stale' }
end
requeue()
write_head()
return { 'ok' }
