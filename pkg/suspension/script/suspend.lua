-- Machine.SuspendByHand. ARGV[4] is the command's sequence, ARGV[5] its time,
-- ARGV[6] the host. Returns {flag, event?, flag of the event?}.
local w = note(tonumber(ARGV[4]))
local stored = redis.call('GET', KEYS[2])
if not w then return {stored or ''} end
local f = {host = ARGV[6], trips = 0, failures = 0}
if stored then f = cjson.decode(stored) end
if f.by_hand then
  save(w)
  return {stored}
end
local given = min(tonumber(ARGV[5]), now)
f.state, f.reason, f.by_hand = 'suspended', 'by_hand', true
f.trip = 'hand-' .. int(given) .. '-' .. int(tonumber(ARGV[4]))
f.since = max(given, (w.r or 0) + 1)
f['until'], f.probe_at, f.probe_by = nil, nil, nil
local v = set_flag(f)
clear(w)
save(w)
return {v, 'suspended', v}
