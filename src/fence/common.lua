-- Tokens are decimal strings: a Lua number that is written out again loses digits from the fifteenth on.
local function greater(a, b)
    return #a > #b or (#a == #b and a > b)
end

-- This server's clock in microseconds, so many seconds from now.
local time = redis.call('TIME')
local function clock(seconds)
    return string.format('%d%06d', math.max(1, time[1] + seconds), time[2])
end

-- A fence that has expired, was forgotten or never was is made up for by the clock: it can have been no further than that.
local fence = redis.call('GET', KEYS[2])
if fence and not string.find(fence, '^[1-9]%d*$') then
    return redis.error_reply('ERR the fence holds something that is no token')
end
local floor, greatest = fence or clock(-60), fence or clock(0)
