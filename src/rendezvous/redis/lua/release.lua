-- Frees an entry that an offer made, or takes back its claim on the entry of another one.
-- KEYS: the entry
-- ARGV: 1 offer, 2 whether as 'owner', as 'claimer' or as 'either',
--       3 time to live in ms of an entry that waits
local offer, claimer = unpack(redis.call('HMGET', KEYS[1], 'offer', 'claimer'))
if offer == ARGV[1] then
  if ARGV[2] ~= 'claimer' then
    redis.call('DEL', KEYS[1])
  end
elseif claimer == ARGV[1] and ARGV[2] ~= 'owner' then
  redis.call('HDEL', KEYS[1], 'claimer', 'claimer_node')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 0
