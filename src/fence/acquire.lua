
-- Take the lock, and accept the token that is proposed if it is greater than every one before.
--   KEYS      the resources, then their fences, in the same order
--   ARGV[1]   the key of this attempt
--   ARGV[2]   the time to live of the lock, in milliseconds
--   ARGV[3]   the proposed token
--   ARGV[4]   the time to live of the fences, in milliseconds
--   returns   {1 if granted or ours already, 1 if the token was accepted, the greatest token seen}
local half = #KEYS / 2
local floor, greatest = fences(half + 1, #KEYS)
if not floor then
    return redis.error_reply('ERR a fence holds something that is no token')
end
for i = 1, half do
    local owner = redis.call('GET', KEYS[i])
    if owner and owner ~= ARGV[1] then
        return {0, 0, greatest}
    end
end
-- A client's clock that is far ahead must not put the fence where nobody else's can follow; one that counts on may.
local farthest = math.max(tonumber(clock(60)), tonumber(floor) + 1e6)
local accepted = greater(ARGV[3], floor) and tonumber(ARGV[3]) <= farthest
-- The fences first: an error on the way then leaves no lock behind.
for i = half + 1, #KEYS do
    if accepted then
        redis.call('SET', KEYS[i], ARGV[3], 'PX', ARGV[4])
    else
        redis.call('PEXPIRE', KEYS[i], ARGV[4])
    end
end
for i = 1, half do
    redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
end
return {1, accepted and 1 or 0, accepted and ARGV[3] or greatest}
