-- Says of each id what is known of it, and claims for a node those of which nothing is.
-- KEYS: the ids. ARGV: the node, and for how many milliseconds it claims them (0: it only asks).
-- Answers one digit an id: 0 it is this node's to store, 1 another node is about to store it, 2 it is stored.
local known = redis.call('MGET', unpack(KEYS))
local mine, claim_ms, answer = 'c' .. ARGV[1], tonumber(ARGV[2]), {}
for i = 1, #KEYS do
  local value = known[i]
  if value == 's' then
    answer[i] = '2'
  elseif value and value ~= mine then
    answer[i] = '1'
  else
    answer[i] = '0'
    if claim_ms > 0 then redis.call('SET', KEYS[i], mine, 'PX', claim_ms) end
  end
end
return table.concat(answer)
