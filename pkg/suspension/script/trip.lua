-- Machine.Trip. ARGV[4] is the host, ARGV[5] '1' to only look.
-- Returns {verdict} or {'tripped', flag}; the verdict is 'flagged' (it has a
-- flag already), 'calm' (the rule is not fulfilled any more) or 'held'.
if redis.call('EXISTS', KEYS[2]) == 1 then return {'flagged'} end
local w, exists = load()
if not exists then return {'calm'} end
prune(w)
if not fulfils(w) then return {'calm'} end
if ARGV[5] == '1' then return {'held'} end
local f = evidence(w, ARGV[4], 'suspended')
local back = w.r or 0
f.since = max(now, back + 1)
f.trips = 1
if (w.c or 0) > 0 then f.trips = 1 + max(0, w.c - div(now - back, w.d)) end
f['until'] = now + jittered(f.trips)
local v = set_flag(f)
clear(w)
w.c, w.d = nil, nil
save(w)
return {'tripped', v}
