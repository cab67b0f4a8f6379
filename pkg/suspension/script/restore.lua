-- Puts a flag back. ARGV[4] is the flag. Returns 1 if it was set, 0 if what the
-- store knows is as new or newer.
local f = cjson.decode(ARGV[4])
local w = load()
if (w.r or 0) >= f.since then return 0 end
local held = get(KEYS[2])
if held and (held.since > f.since or (held.since == f.since and held.trips >= f.trips)) then return 0 end
redis.call('SET', KEYS[2], ARGV[4])
return 1
