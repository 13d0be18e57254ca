-- Adds entries to streams and moves the cursor of a node's log, all or nothing but for what the answer says.
-- KEYS: the cursor, then the streams.
-- ARGV: the cursor as it must be, the cursor after the entries, entries that a stream keeps, seconds that it keeps them (0: no
-- bound), the node; then seven for each entry: the number of its stream, its offset, id, time and source, and the name and the
-- value of its last field.
-- Answers {'done'}; {'at', cursor} when the cursor is another (nothing was done); or {'error', offset, text} when the entry of
-- that offset was refused: those before it are in, and the cursor says so.
local at = redis.call('GET', KEYS[1])
if at ~= ARGV[1] then return {'at', at or ''} end
-- Fails before anything is done when nothing may be written.
redis.call('SET', KEYS[1], at)
local entries_max, age_s, node = ARGV[3], tonumber(ARGV[4]), ARGV[5]
for i = 6, #ARGV, 7 do
  local key = KEYS[1 + tonumber(ARGV[i])]
  local added = redis.pcall('XADD', key, 'MAXLEN', '~', entries_max, '*', 'id', ARGV[i + 2], 'time', ARGV[i + 3],
    'source', ARGV[i + 4], 'node', node, 'offset', ARGV[i + 1], ARGV[i + 5], ARGV[i + 6])
  if type(added) == 'table' and added.err then
    redis.call('SET', KEYS[1], ARGV[i + 1])
    return {'error', ARGV[i + 1], key .. ': ' .. added.err}
  end
end
redis.call('SET', KEYS[1], ARGV[2])
if age_s > 0 then
  local now = redis.call('TIME')
  for k = 2, #KEYS do
    redis.pcall('XTRIM', KEYS[k], 'MINID', '~', string.format('%.0f', (tonumber(now[1]) - age_s) * 1000))
    redis.pcall('EXPIRE', KEYS[k], age_s)
  end
end
return {'done'}
