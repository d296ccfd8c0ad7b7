
-- Accept a second proposal for a lock that is still held.
--   KEYS      the resources, then their fences, in the same order
--   ARGV[1]   the key of this attempt
--   ARGV[2]   the token
--   ARGV[3]   the time to live of the fences, in milliseconds
--   returns   {1 if the lock is ours, 1 if the token was accepted, the greatest token seen}
local half = #KEYS / 2
local floor, greatest = fences(half + 1, #KEYS)
if not floor then
    return redis.error_reply('ERR a fence holds something that is no token')
end
for i = 1, half do
    if redis.call('GET', KEYS[i]) ~= ARGV[1] then
        return {0, 0, greatest}
    end
end
if not greater(ARGV[2], floor) then
    return {1, 0, greatest}
end
for i = half + 1, #KEYS do
    redis.call('SET', KEYS[i], ARGV[2], 'PX', ARGV[3])
end
return {1, 1, ARGV[2]}
