-- ARGV: publish, reply id, fence. The attempt does not count: nothing went wrong.
if open_head(false) or not holds(ARGV[2], ARGV[3]) then
  return { 'lost' }
end
requeue()
set('attempt', int(math.max(0, num('attempt') - 1)))
write_head()
return { 'written' }
