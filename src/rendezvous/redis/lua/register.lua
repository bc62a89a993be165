-- Registers a UUID. The same registration asked again gets the same answer.
-- KEYS: the entry
-- ARGV: 1 registration, 2 its node, 3 epoch of that node, 4 bridge address, 5 secret, 6 role,
--       7 time to live in ms;
--       then what is known to be gone: 8 a registration and 9 the epoch of its node,
--       10… registrations that are gone
local offer, node, epoch, address, secret, role = unpack(redis.call(
  'HMGET', KEYS[1], 'offer', 'node', 'epoch', 'address', 'secret', 'role'))

local free = not offer or offer == ARGV[1] or (offer == ARGV[8] and epoch == ARGV[9])
for i = 10, #ARGV do
  free = free or offer == ARGV[i]
end
if not free then
  return {'held', offer, node, epoch, address, secret, role}
end
redis.call('HSET', KEYS[1], 'offer', ARGV[1], 'node', ARGV[2], 'epoch', ARGV[3],
  'address', ARGV[4], 'secret', ARGV[5], 'role', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
return {'registered'}
