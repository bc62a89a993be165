-- Describes a node for those who want to know all of them.
-- KEYS: the nodes
-- ARGV: 1 the node, 2 its facts, 3 time to live in ms of them all
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 0
