
-- Accept a second proposal for a lock that is still held.
--   KEYS[1]   the lock
--   KEYS[2]   its fence
--   ARGV[1]   the key of this attempt
--   ARGV[2]   the token
--   ARGV[3]   the time to live of the fence, in milliseconds
--   returns   {1 if the lock is ours, 1 if the token was accepted, the greatest token seen}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return {0, 0, greatest}
end
if not greater(ARGV[2], floor) then
    return {1, 0, greatest}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return {1, 1, ARGV[2]}
