-- ARGV: publish, reply id, fence, version.
if open_head(false) or not holds(ARGV[2], ARGV[3]) then
  return { 'lost' }
end
renew_lease()
if h.version == ARGV[4] then
  return { 'written' }
end
if h.version ~= '' then
  return { 'conflict', h.version }
end
set('version', ARGV[4])
set('started', int(now_ms()))
save()
return { 'written' }
