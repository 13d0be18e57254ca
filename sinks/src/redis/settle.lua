-- Settles claims. KEYS: the ids. ARGV: the node, and for how many milliseconds the ids are known as stored; 0 when they were not
-- stored, which gives the node's own claims up.
local mine, window_ms = 'c' .. ARGV[1], tonumber(ARGV[2])
for i = 1, #KEYS do
  if window_ms > 0 then
    redis.call('SET', KEYS[i], 's', 'PX', window_ms)
  elseif redis.call('GET', KEYS[i]) == mine then
    redis.call('DEL', KEYS[i])
  end
end
return 'OK'
