-- Machine.Resume. ARGV[4] is the command's sequence, ARGV[5] its time.
-- Returns {flag, event?, flag of the event?}.
local w = note(tonumber(ARGV[4]))
local stored = redis.call('GET', KEYS[2])
if not w then return {stored or ''} end
w.r = max(w.r or 0, min(tonumber(ARGV[5]), now))
w.c, w.d = nil, nil
clear(w)
local out = {''}
if stored then
  w.r = max(w.r, cjson.decode(stored).since)
  redis.call('DEL', KEYS[2])
  out = {'', 'resumed', stored}
end
save(w)
return out
