-- What every script begins with: the records of machine.go and their steps.
-- KEYS[1] is the URL's window, KEYS[2] its suspension; ARGV[1] are the limits,
-- ARGV[2] the time and ARGV[3] the jitter in thousandths. Only redis.call,
-- cjson and string are used, so that an embedded server can run it too.
local L = cjson.decode(ARGV[1])
local now = tonumber(ARGV[2])
local permille = tonumber(ARGV[3])

local function int(n) return string.format('%.0f', n) end
local function max(a, b) if a > b then return a end return b end
local function min(a, b) if a < b then return a end return b end
local function div(a, b) return (a - a % b) / b end

local function get(key)
  local v = redis.call('GET', key)
  if v then return cjson.decode(v) end
  return nil
end

-- A window in hand has bs, its buckets with absolute times, and last; in the
-- store it has t, l and b instead.
local function load()
  local w = get(KEYS[1])
  if not w then return {bs = {}, last = 0}, false end
  local b, bs = w.b or {}, {}
  for i = 1, #b, 2 do bs[#bs + 1] = {w.t + b[i], b[i + 1]} end
  w.bs, w.last = bs, (w.t or 0) + (w.l or 0)
  w.t, w.l, w.b = nil, nil, nil
  return w, true
end

local function clear(w)
  w.bs, w.last, w.w, w.e = {}, 0, nil, nil
end

local function prune(w)
  local bs = {}
  for _, b in ipairs(w.bs) do
    if b[1] >= now - L.window then bs[#bs + 1] = b end
  end
  if #bs == 0 then clear(w) else w.bs = bs end
end

local function add(w, at)
  local n, bs = div(at, L.width), w.bs
  w.last = max(w.last, at)
  for i = 1, #bs do
    local m = div(bs[i][1], L.width)
    if m == n then
      bs[i] = {min(bs[i][1], at), bs[i][2] + 1}
      return
    end
    if m > n then
      table.insert(bs, i, {at, 1})
      return
    end
  end
  bs[#bs + 1] = {at, 1}
end

local function failures(w)
  local n = 0
  for _, b in ipairs(w.bs) do n = n + b[2] end
  return n
end

local function span(w)
  if #w.bs == 0 then return 0 end
  return w.last - w.bs[1][1]
end

local function fulfils(w) return failures(w) >= L.failures and span(w) >= L.span end

local function keep(kept, outcomes)
  kept = kept or {}
  for _, s in ipairs(outcomes) do
    local others = {}
    for _, k in ipairs(kept) do
      if k ~= s then others[#others + 1] = k end
    end
    others[#others + 1] = s
    if #others > L.kept then table.remove(others, 1) end
    kept = others
  end
  if #kept == 0 then return nil end
  return kept
end

local function save(w)
  local ttl, o = L.window, {}
  local left = (w.r or 0) + (w.c or 0) * (w.d or 0) - now
  if (w.c or 0) > 0 and left > 0 then
    ttl = max(ttl, left)
    o.c, o.d = w.c, w.d
  end
  o.s, o.o, o.w, o.e, o.r, o.h = w.s, w.o, w.w, w.e, w.r, w.h
  if #w.bs > 0 then
    o.t, o.b = w.bs[1][1], {}
    o.l = w.last - o.t
    for _, b in ipairs(w.bs) do
      o.b[#o.b + 1] = b[1] - o.t
      o.b[#o.b + 1] = b[2]
    end
  end
  redis.call('SET', KEYS[1], cjson.encode(o), 'PX', int(ttl))
end

local function trip_id(at, seq) return int(at) .. '-' .. int(seq) end

local function evidence(w, host, state)
  local first = 0
  if #w.bs > 0 then first = w.bs[1][1] end
  return {
    state = state, trip = trip_id(first, w.s or 0), since = first, trips = 0,
    reason = 'always_failing', host = host, failures = failures(w),
    first = first, last = w.last, statuses = w.e,
  }
end

local function length(trips)
  local d = L.duration
  for _ = 2, min(trips, L.levels) do d = d * 2 end
  return min(d, L.longest)
end

local function jittered(trips)
  return min(div(length(trips) * (1000 + permille), 1000), L.longest)
end

local function set_flag(f)
  local v = cjson.encode(f)
  redis.call('SET', KEYS[2], v)
  return v
end

-- note returns the window with a command's sequence noted, or nil if the
-- command was seen before.
local function note(seq)
  local w = load()
  if seq > 0 and seq <= (w.h or 0) then return nil end
  w.h = max(w.h or 0, seq)
  return w
end
