-- Machine.StartProbe. ARGV[4] is the trip, ARGV[5] the probe's start, ARGV[6]
-- its maker. Returns {flag, event?, flag of the event?}.
local stored = redis.call('GET', KEYS[2])
if not stored then return {''} end
local f = cjson.decode(stored)
if f.by_hand or f.trip ~= ARGV[4] then return {stored} end
local first = f.state == 'suspended'
f.state, f.probe_at, f.probe_by = 'probing', tonumber(ARGV[5]), ARGV[6]
local v = set_flag(f)
if first then return {v, 'probing', v} end
return {v}
