-- Writes the state of a URL unless it has changed since it was read. KEYS: its
-- window and its suspension. ARGV: both as they were read ('' for none); the
-- new window and how long it lasts in ms ('': it stays as it is); the new
-- suspension ('': it ends, '=': it stays as it is).
-- Returns nothing, or both as they are when they are not as they were read.
local w, f = redis.call('GET', KEYS[1]) or '', redis.call('GET', KEYS[2]) or ''
if w ~= ARGV[1] or f ~= ARGV[2] then return {w, f} end
if ARGV[4] ~= '' then redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4]) end
if ARGV[5] == '' then
  redis.call('DEL', KEYS[2])
elseif ARGV[5] ~= '=' then
  redis.call('SET', KEYS[2], ARGV[5])
end
return {}
