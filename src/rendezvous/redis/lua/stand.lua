-- Says that a tunnel stands, unless the key is that of another tunnel. An offer that waits there was
-- put up while this entry was missing: it has to give way.
-- KEYS: the entry
-- ARGV: 1 the offer that waited, 2 its node, 3 epoch of that node, 4 bridge address, 5 secret,
--       6 the offer that claimed it, or '' if another node knows that one,
--       7 time to live in ms of an entry that stands
local offer, claimer = unpack(redis.call('HMGET', KEYS[1], 'offer', 'claimer'))
local is_ours = offer == ARGV[1] or offer == ARGV[6]
local waits = offer and not is_ours and
  (not claimer or claimer == ARGV[1] or claimer == ARGV[6])
if waits then
  redis.call('DEL', KEYS[1])
end
if not offer or is_ours or waits then
  if ARGV[6] ~= '' then
    claimer = ARGV[6]
  elseif offer ~= ARGV[1] or not claimer then
    -- Nobody in particular: whoever is no claimer is turned away.
    claimer = '-'
  end
  redis.call('HSET', KEYS[1], 'offer', ARGV[1], 'node', ARGV[2], 'epoch', ARGV[3],
    'address', ARGV[4], 'secret', ARGV[5], 'claimer', claimer)
  if claimer == ARGV[6] or claimer == '-' then
    redis.call('HSET', KEYS[1], 'claimer_node', ARGV[2])
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[7])
end
return 0
