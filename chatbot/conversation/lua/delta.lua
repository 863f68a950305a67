-- ARGV: publish, reply id, fence, from_char, length of the text in code points, text.
if open_head(false) or not holds(ARGV[2], ARGV[3]) then
  return { 'lost' }
end
renew_lease()
if h.version == '' then
  return { 'unannounced' }
end
local from = tonumber(ARGV[4])
if from ~= num('chars') then
  local last = redis.call('XREVRANGE', LIVE, '+', '-', 'COUNT', 1)[1]
  if last and last[2][2] == ARGV[4] and last[2][4] == ARGV[6] then
    return { 'written' } -- sent again after its answer was lost
  end
  return { 'conflict', h.chars }
end
redis.call('XADD', LIVE, '*', 'f', ARGV[4], 't', ARGV[6])
set('chars', int(from + tonumber(ARGV[5])))
save()
return { 'written' }
