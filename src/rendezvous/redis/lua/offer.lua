-- Decides about an offer. The same offer asked again gets the same answer.
-- KEYS: the entry
-- ARGV: 1 offer, 2 its node, 3 epoch of that node, 4 bridge address, 5 secret,
--       6 and 7 time to live in ms of an entry that waits and of one that stands,
--       8 its place in a trace, or '';
--       then what is known to be gone: 9 an offer and 10 the epoch of its node,
--       11… offers that are gone as owner and as claimer
local offer, node, epoch, address, secret, trace, claimer, claimer_node = unpack(redis.call(
  'HMGET', KEYS[1], 'offer', 'node', 'epoch', 'address', 'secret', 'trace', 'claimer',
  'claimer_node'))

local free = not offer or (offer == ARGV[9] and epoch == ARGV[10])
local claimed = claimer and claimer ~= ARGV[1]
for i = 11, #ARGV do
  free = free or offer == ARGV[i]
  claimed = claimed and claimer ~= ARGV[i]
end
if free then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'offer', ARGV[1], 'node', ARGV[2], 'epoch', ARGV[3],
    'address', ARGV[4], 'secret', ARGV[5], 'trace', ARGV[8])
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  return {'wait'}
end

if offer == ARGV[1] then
  -- Whoever found this node dead under its old epoch must not free the entry any more.
  redis.call('HSET', KEYS[1], 'epoch', ARGV[3])
  if not claimer then
    redis.call('PEXPIRE', KEYS[1], ARGV[6])
  end
  return {'wait'}
end

if claimed then
  return {'taken', offer, node, epoch, address or '', claimer, claimer_node or ''}
end
redis.call('HSET', KEYS[1], 'claimer', ARGV[1], 'claimer_node', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
return {'claimed', offer, node, epoch, address, secret, trace or ''}
