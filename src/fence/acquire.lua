
-- Take the lock, and accept the token that is proposed if it is greater than every one before.
--   KEYS[1]   the lock
--   KEYS[2]   its fence
--   ARGV[1]   the key of this attempt
--   ARGV[2]   the time to live of the lock, in milliseconds
--   ARGV[3]   the proposed token
--   ARGV[4]   the time to live of the fence, in milliseconds
--   returns   {1 if granted or ours already, 1 if the token was accepted, the greatest token seen}
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
    return {0, 0, greatest}
end
-- A client's clock that is far ahead must not put the fence where nobody else's can follow; one that counts on may.
local farthest = math.max(tonumber(clock(60)), tonumber(floor) + 1e6)
local accepted = greater(ARGV[3], floor) and tonumber(ARGV[3]) <= farthest
-- The fence first: an error on the way then leaves no lock behind.
if accepted then
    redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
else
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
-- What is ours already is kept for no shorter time: another session may have extended it. Its user may lack the right to PTTL.
local left = owner and tonumber(redis.pcall('PTTL', KEYS[1]))
if not left or left < tonumber(ARGV[2]) then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {1, accepted and 1 or 0, accepted and ARGV[3] or greatest}
