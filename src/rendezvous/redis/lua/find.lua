-- Says who has a UUID.
-- KEYS: the entry
local offer, node, epoch, address, secret, role = unpack(redis.call(
  'HMGET', KEYS[1], 'offer', 'node', 'epoch', 'address', 'secret', 'role'))
if not offer then
  return {'free'}
end
return {'held', offer, node, epoch, address, secret, role}
