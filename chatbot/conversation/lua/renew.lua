-- ARGV: publish, reply id, fence.
if open_head(false) or not holds(ARGV[2], ARGV[3]) then
  return { 'lost' }
end
renew_lease()
return { 'written' }
