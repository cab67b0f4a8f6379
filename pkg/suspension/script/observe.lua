-- Machine.observe. ARGV[4] is the delta, ARGV[5] the host.
-- Returns {candidate, flag, event, flag of the event, ...}.
local d = cjson.decode(ARGV[4])
local w, exists = load()
local touched = false
local out = {0, ''}
local function step(event, v)
  out[#out + 1] = event
  out[#out + 1] = v
end

local stored = redis.call('GET', KEYS[2])
local flag = nil
if stored then flag = cjson.decode(stored) end

local ok, ok_at = d.o or 0, d.oa or 0
for _, p in ipairs(d.p or {}) do
  local mine = flag and not flag.by_hand and flag.trip == p.trip
  if mine and p.ok then
    step('resumed', stored)
    redis.call('DEL', KEYS[2])
    clear(w)
    w.s, w.o = max(w.s or 0, p.s), max(w.o or 0, p.s)
    w.r = max(min(p.at, now), flag.since)
    w.c, w.d = min(flag.trips, L.levels), length(flag.trips)
    flag, stored = nil, false
    exists, touched = true, true
  elseif mine then
    local at = min(p.at, now)
    flag.state, flag.trip, flag.probe_at, flag.probe_by = 'suspended', trip_id(at, p.s), nil, nil
    flag.trips = flag.trips + 1
    flag['until'] = now + jittered(flag.trips)
    flag.failures = flag.failures + 1
    flag.last = at
    flag.statuses = keep(flag.statuses, {p.e})
    stored = set_flag(flag)
    step('suspended', stored)
  elseif p.ok and p.s > ok then
    ok, ok_at = p.s, p.at
  end
end

if ok > (w.o or 0) and (exists or now - ok_at > L.late) then
  clear(w)
  w.o = ok
  touched = true
end

local f = d.f or {}
if not flag and #f > 0 then
  touched = true
  prune(w)
  local counted = false
  for i = 1, #f, 2 do
    local seq, at = f[i], min(f[i + 1], now)
    if seq > (w.s or 0) and seq > (w.o or 0) then
      w.s = seq
      if at > (w.r or 0) and at >= now - L.window then
        add(w, at)
        counted = true
      end
    end
  end
  if counted then w.e = keep(w.e, d.e or {}) end
  if not w.w and failures(w) >= L.at_risk then
    w.w = 1
    step('at_risk', cjson.encode(evidence(w, ARGV[5], 'active')))
  end
  if fulfils(w) then out[1] = 1 end
end

if touched then save(w) end
if stored then out[2] = stored end
return out
