-- Refreshes the lease of a node, and says whether it was still there.
-- KEYS: the lease
-- ARGV: 1 facts of the node, 2 time to live in ms
local was = redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return was
