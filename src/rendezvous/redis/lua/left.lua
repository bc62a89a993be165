-- Returns how long the lease of a node still lasts in ms, 0 if there is none.
-- KEYS: the lease
-- ARGV: 1 how long it lasts when it has just been refreshed, in ms
local left = redis.pcall('PTTL', KEYS[1])
if type(left) ~= 'number' then
  -- The user of an older set-up may not be permitted to ask for that.
  return redis.call('EXISTS', KEYS[1]) * tonumber(ARGV[1])
end
return math.max(left, 0)
