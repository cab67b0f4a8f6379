package suspension

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrLost says that Redis has forgotten the flags (it was flushed, or started
// empty): call Restore with the known ones, then repeat what failed.
var ErrLost = errors.New("redis holds no suspensions any more: restore them")

// Keys. All start with gancho:, so that one rule of an access list covers them.
const (
	// windowPrefix + "{<account>:<url_key>}": the JSON of a window. Only for
	// URLs that failed (or were resumed) lately; expires. Rebuilt from the
	// attempts to come.
	windowPrefix = "gancho:window:"
	// flagPrefix + "{<account>:<url_key>}": the JSON of a record. Never expires.
	// Rebuilt from the bucket SUSPENSIONS by Restore.
	flagPrefix = "gancho:suspension:"
	// epochKey is there as long as the flags are. Rebuilt by Restore, and by
	// nothing else: that it is missing tells that all else is missing.
	epochKey = "gancho:epoch"
	// activePrefix + Unix minute: HyperLogLog of the URLs with attempts in that
	// minute; at most 12 KB each, 17 of them. Expires. Rebuilt from the attempts
	// to come.
	activePrefix = "gancho:active:"
	// pendingKey is a ZSET of the URLs that fulfil the rule and are not
	// suspended yet, by the time from which they were watched. Rebuilt from
	// their next failures.
	pendingKey = "gancho:trips:pending"
	// recentKey is a ZSET of the URLs that fulfilled the rule within massWindow,
	// suspended or not, by the last time they did. Members that grow old go;
	// it never holds more URLs than fail. Rebuilt from their next failures.
	recentKey = "gancho:trips:recent"
)

// The guard against mass suspension.
const (
	massWindow = 15 * time.Minute
	massURLs   = 20
	massShare  = 20 // one in so many, 5 %
)

const (
	// pipelined is the most commands sent in one go: so many scripts stay well
	// within opTimeout.
	pipelined = 256
	// sweep is the most pending URLs looked at in one call.
	sweep = 256
	// activeKeep is how long a minute's HyperLogLog is kept.
	activeKeep = massWindow + 2*time.Minute
)

var (
	//go:embed script/prelude.lua
	preludeLua string
	//go:embed script/observe.lua
	observeLua string
	//go:embed script/trip.lua
	tripLua string
	//go:embed script/suspend.lua
	suspendLua string
	//go:embed script/resume.lua
	resumeLua string
	//go:embed script/probe.lua
	probeLua string
	//go:embed script/restore.lua
	restoreLua string
)

// A Store keeps windows and flags in Redis. Every step of a URL is made by one
// script that reads and writes that URL's keys only, so any number of stores
// can work at once and each step happens once. Safe for concurrent use.
type Store struct {
	client redis.UniversalClient
	rules  Rules
	limits string // limits as JSON

	observeScript, tripScript, suspendScript, resumeScript, probeScript, restoreScript *redis.Script
}

// NewStore returns a store with rules that Validate accepts. The client stays
// the caller's to close.
func NewStore(client redis.UniversalClient, rules Rules) (*Store, error) {
	if err := rules.Validate(); err != nil {
		return nil, err
	}
	limits, err := json.Marshal(rules.limits())
	if err != nil {
		return nil, fmt.Errorf("encode suspension rules: %w", err)
	}
	script := func(body string) *redis.Script { return redis.NewScript(preludeLua + body) }
	return &Store{
		client:        client,
		rules:         rules,
		limits:        string(limits),
		observeScript: script(observeLua),
		tripScript:    script(tripLua),
		suspendScript: script(suspendLua),
		resumeScript:  script(resumeLua),
		probeScript:   script(probeLua),
		restoreScript: script(restoreLua),
	}, nil
}

// A call is one run of a script on one URL.
type call struct {
	key    Key
	host   string
	script *redis.Script
	args   []any
	cmd    *redis.Cmd
}

// call prepares a script; its first three arguments are the same in all.
func (s *Store) call(script *redis.Script, now int64, key Key, args ...any) *call {
	return &call{key: key, script: script, args: append([]any{s.limits, now, permille(key, now)}, args...)}
}

func (c *call) queue(ctx context.Context, pipe redis.Pipeliner) {
	tag := "{" + c.key.Account + ":" + c.key.URLKey + "}"
	c.cmd = c.script.EvalSha(ctx, pipe, []string{windowPrefix + tag, flagPrefix + tag}, c.args...)
}

func windowKey(k Key) string { return windowPrefix + "{" + k.Account + ":" + k.URLKey + "}" }
func flagKey(k Key) string   { return flagPrefix + "{" + k.Account + ":" + k.URLKey + "}" }

// run sends the calls and whatever extra queues, a pipeline at a time, and
// loads scripts that the server does not know. The extra commands go with the
// first pipeline.
func (s *Store) run(ctx context.Context, calls []*call, extra func(redis.Pipeliner)) error {
	for {
		n := min(len(calls), pipelined)
		if n == 0 && extra == nil {
			return nil
		}
		if err := s.exchange(ctx, calls[:n], extra); err != nil {
			return err
		}
		calls, extra = calls[n:], nil
	}
}

func (s *Store) exchange(ctx context.Context, calls []*call, extra func(redis.Pipeliner)) error {
	pipe := s.client.Pipeline()
	if extra != nil {
		extra(pipe)
	}
	for _, c := range calls {
		c.queue(ctx, pipe)
	}
	cmds, _ := pipe.Exec(ctx) // each command's error is looked at below
	var unknown []*call
	for _, c := range calls {
		if redis.HasErrorPrefix(c.cmd.Err(), "NOSCRIPT") {
			unknown = append(unknown, c)
		}
	}
	for _, cmd := range cmds {
		err := cmd.Err()
		if err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return fmt.Errorf("redis %s: %w", cmd.Name(), err)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	pipe = s.client.Pipeline()
	loaded := make(map[*redis.Script]bool)
	for _, c := range unknown {
		if !loaded[c.script] {
			// Not in the pipeline: Load takes the hash from the answer.
			if err := c.script.Load(ctx, s.client).Err(); err != nil {
				return fmt.Errorf("load redis script: %w", err)
			}
			loaded[c.script] = true
		}
		c.queue(ctx, pipe)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("run redis scripts: %w", err)
	}
	return nil
}

// Observe takes in a batch of results and returns a decision for each URL that
// made a step, that has a flag, or whose probe is in the batch. Call it also
// with nothing, at least once a second: URLs that fulfil the rule are suspended
// by the first call after they were watched for Rules.Settle.
//
// A batch that was seen before changes nothing, so after any error the same
// batch can be given again. After ErrLost, Restore first.
func (s *Store) Observe(ctx context.Context, batch []Observation) ([]Decision, error) {
	return s.observe(ctx, time.Now(), batch)
}

func (s *Store) observe(ctx context.Context, at time.Time, batch []Observation) ([]Decision, error) {
	now := at.UnixMilli()
	keys, deltas := fold(batch)

	// A URL that only succeeds and has no window needs no script. The exception
	// are successes so late that failures before them may still come.
	late := s.rules.limits().Late
	var calls []*call
	var healthy []Key
	for _, key := range keys {
		d := deltas[key]
		if d.healthy() && now-d.OKAt <= late {
			healthy = append(healthy, key)
			continue
		}
		c, err := s.fold(now, key, d)
		if err != nil {
			return nil, err
		}
		calls = append(calls, c)
	}

	var due *redis.StringSliceCmd
	windows := make([]*redis.IntCmd, len(healthy))
	err := s.run(ctx, calls, func(pipe redis.Pipeliner) {
		due = pipe.ZRangeArgs(ctx, redis.ZRangeArgs{
			Key: pendingKey, ByScore: true, Start: "-inf", Stop: now - s.rules.Settle().Milliseconds(), Count: sweep,
		})
		if len(keys) > 0 {
			members := make([]any, len(keys))
			for i, key := range keys {
				members[i] = key.String()
			}
			minute := activePrefix + strconv.FormatInt(now/60_000, 10)
			pipe.PFAdd(ctx, minute, members...)
			pipe.Expire(ctx, minute, activeKeep)
		}
		for i, key := range healthy {
			windows[i] = pipe.Exists(ctx, windowKey(key))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("observe results: %w", err)
	}
	var recovering []*call
	for i, key := range healthy {
		if windows[i].Val() == 0 {
			continue
		}
		c, err := s.fold(now, key, deltas[key])
		if err != nil {
			return nil, err
		}
		recovering = append(recovering, c)
	}
	if err := s.run(ctx, recovering, nil); err != nil {
		return nil, fmt.Errorf("observe successes: %w", err)
	}
	// Asked last: if Redis forgot the flags at any time up to here, what was
	// found out about them is worth nothing, and the batch comes again.
	if lost, err := s.Lost(ctx); err != nil {
		return nil, err
	} else if lost {
		return nil, ErrLost
	}

	decided := decisions{}
	var candidates []redis.Z
	var recovered []any
	for _, c := range append(calls, recovering...) {
		candidate, resumed, err := decided.observed(c, at, deltas[c.key])
		if err != nil {
			return nil, err
		}
		if candidate {
			candidates = append(candidates, redis.Z{Score: float64(now), Member: member(c.key, c.host)})
		}
		if resumed {
			recovered = append(recovered, member(c.key, c.host))
		}
	}
	if err := s.sweep(ctx, at, candidates, recovered, due.Val(), decided); err != nil {
		return nil, err
	}
	return decided.list(), nil
}

func (s *Store) fold(now int64, key Key, d *delta) (*call, error) {
	body, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode results of %s: %w", key, err)
	}
	c := s.call(s.observeScript, now, key, body, d.host)
	c.host = d.host
	return c, nil
}

// sweep notes new candidates and suspends those that were watched for long
// enough, unless the guard holds them all.
func (s *Store) sweep(ctx context.Context, at time.Time, candidates []redis.Z, recovered []any, due []string, decided decisions) error {
	if len(candidates) == 0 && len(recovered) == 0 && len(due) == 0 {
		return nil
	}
	now := at.UnixMilli()
	var mass massReading
	err := s.run(ctx, nil, func(pipe redis.Pipeliner) {
		if len(candidates) > 0 {
			pipe.ZAddNX(ctx, pendingKey, candidates...)
			pipe.ZAdd(ctx, recentKey, candidates...)
		}
		if len(recovered) > 0 {
			pipe.ZRem(ctx, recentKey, recovered...)
		}
		if len(due) > 0 {
			pipe.ZRemRangeByScore(ctx, recentKey, "-inf", strconv.FormatInt(now-massWindow.Milliseconds(), 10))
			mass = s.readMass(ctx, pipe, now)
		}
	})
	if err != nil {
		return fmt.Errorf("note suspension candidates: %w", err)
	}
	if len(due) == 0 {
		return nil
	}

	hold := "0"
	if mass.value().Holding {
		hold = "1"
	}
	calls := make([]*call, 0, len(due))
	for _, m := range due {
		key, host, ok := parseMember(m)
		if !ok {
			return fmt.Errorf("redis key %s: member %q is not <account>:<url_key>:<host>: remove it", pendingKey, m)
		}
		c := s.call(s.tripScript, now, key, host, hold)
		c.host = host
		calls = append(calls, c)
	}
	if err := s.run(ctx, calls, nil); err != nil {
		return fmt.Errorf("suspend candidates: %w", err)
	}

	var still []redis.Z
	var done, calm []any
	for _, c := range calls {
		reply, err := c.cmd.StringSlice()
		if err != nil {
			return fmt.Errorf("suspend %s: %w", c.key, err)
		}
		m := member(c.key, c.host)
		switch reply[0] {
		case "held":
			still = append(still, redis.Z{Score: float64(now), Member: m})
		case "calm":
			done, calm = append(done, m), append(calm, m)
		case "tripped":
			if err := decided.step(c.key, at, EventSuspended, reply[1]); err != nil {
				return err
			}
			if err := decided.now(c.key, reply[1]); err != nil {
				return err
			}
			done = append(done, m)
		default: // flagged: by another store, or by hand
			done = append(done, m)
		}
	}
	err = s.run(ctx, nil, func(pipe redis.Pipeliner) {
		if len(still) > 0 {
			pipe.ZAdd(ctx, pendingKey, still...)
			pipe.ZAdd(ctx, recentKey, still...)
		}
		if len(done) > 0 {
			pipe.ZRem(ctx, pendingKey, done...)
		}
		if len(calm) > 0 {
			pipe.ZRem(ctx, recentKey, calm...)
		}
	})
	if err != nil && len(decided) == 0 {
		return fmt.Errorf("clear suspension candidates: %w", err)
	}
	// With steps made the caller must learn of them; what was not cleared is
	// looked at again by the next call.
	return nil
}

// member is a URL in the ZSETs of candidates. It carries the host because a
// window does not.
func member(k Key, host string) string { return k.Account + ":" + k.URLKey + ":" + host }

func parseMember(m string) (Key, string, bool) {
	account, rest, ok1 := strings.Cut(m, ":")
	urlKey, host, ok2 := strings.Cut(rest, ":")
	return Key{Account: account, URLKey: urlKey}, host, ok1 && ok2
}

// decisions collects what is found out about each URL.
type decisions map[Key]*Decision

func (ds decisions) of(key Key) *Decision {
	if ds[key] == nil {
		ds[key] = &Decision{Key: key}
	}
	return ds[key]
}

func (ds decisions) list() []Decision {
	out := make([]Decision, 0, len(ds))
	for _, d := range ds {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Decision) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return out
}

func decodeRecord(key Key, body string) (record, error) {
	var r record
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		return record{}, fmt.Errorf("redis key %s: not a suspension: %w", flagKey(key), err)
	}
	return r, nil
}

func (ds decisions) step(key Key, at time.Time, event Event, body string) error {
	r, err := decodeRecord(key, body)
	if err != nil {
		return err
	}
	d := ds.of(key)
	d.Transitions = append(d.Transitions, Transition{Event: event, At: fromMilli(at.UnixMilli()), Flag: r.flag(key)})
	return nil
}

// now notes the flag that the store holds; an empty body means none.
func (ds decisions) now(key Key, body string) error {
	d := ds.of(key)
	d.Flag = nil
	if body == "" {
		return nil
	}
	r, err := decodeRecord(key, body)
	if err != nil {
		return err
	}
	d.Flag = new(r.flag(key))
	return nil
}

// observed reads the answer of the script observe.
func (ds decisions) observed(c *call, at time.Time, d *delta) (candidate, resumed bool, err error) {
	reply, err := c.cmd.Slice()
	if err != nil {
		return false, false, fmt.Errorf("observe %s: %w", c.key, err)
	}
	candidate = reply[0] == int64(1)
	current, _ := reply[1].(string)
	if current == "" && len(reply) == 2 && len(d.Probes) == 0 {
		return candidate, false, nil
	}
	for i := 2; i+1 < len(reply); i += 2 {
		event, _ := reply[i].(string)
		body, _ := reply[i+1].(string)
		if err := ds.step(c.key, at, Event(event), body); err != nil {
			return false, false, err
		}
		resumed = resumed || Event(event) == EventResumed
	}
	return candidate, resumed, ds.now(c.key, current)
}

// one runs a script that answers {flag, event?, flag of the event?}.
func (s *Store) one(ctx context.Context, at time.Time, c *call) (Decision, error) {
	if err := s.run(ctx, []*call{c}, nil); err != nil {
		return Decision{}, err
	}
	reply, err := c.cmd.StringSlice()
	if err != nil {
		return Decision{}, err
	}
	ds := decisions{}
	if len(reply) == 3 {
		if err := ds.step(c.key, at, Event(reply[1]), reply[2]); err != nil {
			return Decision{}, err
		}
	}
	if err := ds.now(c.key, reply[0]); err != nil {
		return Decision{}, err
	}
	return *ds[c.key], nil
}

// SuspendByHand suspends a URL until Resume; it replaces a suspension of the
// other kind. Doing it twice is doing it once.
func (s *Store) SuspendByHand(ctx context.Context, c Command) (Decision, error) {
	return s.suspendByHand(ctx, time.Now(), c)
}

func (s *Store) suspendByHand(ctx context.Context, at time.Time, c Command) (Decision, error) {
	call := s.call(s.suspendScript, at.UnixMilli(), c.Key, c.Seq, toMilli(c.At), c.URLHost)
	d, err := s.one(ctx, at, call)
	if err != nil {
		return Decision{}, fmt.Errorf("suspend %s by hand: %w", c.Key, err)
	}
	return d, nil
}

// Resume ends a URL's suspension of either kind and forgets its failures. An
// active URL stays active.
func (s *Store) Resume(ctx context.Context, c Command) (Decision, error) {
	return s.resume(ctx, time.Now(), c)
}

func (s *Store) resume(ctx context.Context, at time.Time, c Command) (Decision, error) {
	d, err := s.one(ctx, at, s.call(s.resumeScript, at.UnixMilli(), c.Key, c.Seq, toMilli(c.At)))
	if err != nil {
		return Decision{}, fmt.Errorf("resume %s: %w", c.Key, err)
	}
	return d, nil
}

// StartProbe notes that a dispatcher began the probe of a trip. A flag that
// has moved on since is left as it is.
func (s *Store) StartProbe(ctx context.Context, key Key, trip string, p Probe) (Decision, error) {
	return s.startProbe(ctx, time.Now(), key, trip, p)
}

func (s *Store) startProbe(ctx context.Context, at time.Time, key Key, trip string, p Probe) (Decision, error) {
	d, err := s.one(ctx, at, s.call(s.probeScript, at.UnixMilli(), key, trip, toMilli(p.StartedAt), p.By))
	if err != nil {
		return Decision{}, fmt.Errorf("note probe of %s: %w", key, err)
	}
	return d, nil
}

// Get returns the flag of a URL, nil if it is active.
func (s *Store) Get(ctx context.Context, key Key) (*Flag, error) {
	body, err := s.client.Get(ctx, flagKey(key)).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil //nolint:nilnil // no flag is the usual answer, not a fault
	}
	if err != nil {
		return nil, fmt.Errorf("get suspension of %s: %w", key, err)
	}
	r, err := decodeRecord(key, body)
	if err != nil {
		return nil, err
	}
	return new(r.flag(key)), nil
}

// All returns every flag, in no order. It walks the whole key space: for
// starting up and for reconciling now and then.
func (s *Store) All(ctx context.Context) ([]Flag, error) {
	var flags []Flag
	seen := make(map[string]bool) // a walk may meet a key twice
	for cursor := uint64(0); ; {
		names, next, err := s.client.Scan(ctx, cursor, flagPrefix+"*", 1000).Result()
		if err != nil {
			return nil, fmt.Errorf("list suspensions: %w", err)
		}
		bodies := make(map[string]*redis.StringCmd)
		err = s.run(ctx, nil, func(pipe redis.Pipeliner) {
			for _, name := range names {
				if !seen[name] {
					seen[name] = true
					bodies[name] = pipe.Get(ctx, name)
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list suspensions: %w", err)
		}
		for name, cmd := range bodies {
			if errors.Is(cmd.Err(), redis.Nil) {
				continue // resumed in between
			}
			tag := strings.TrimSuffix(strings.TrimPrefix(name, flagPrefix+"{"), "}")
			account, urlKey, _ := strings.Cut(tag, ":")
			key := Key{Account: account, URLKey: urlKey}
			r, err := decodeRecord(key, cmd.Val())
			if err != nil {
				return nil, err
			}
			flags = append(flags, r.flag(key))
		}
		if cursor = next; cursor == 0 {
			return flags, nil
		}
	}
}

// Restore puts flags back that Redis does not have and returns how many those
// were. It never replaces a newer flag, nor brings back one that was resumed
// (within the last Rules.Window; later the caller's copy has long followed), so
// it may be called at any time. It ends the state that Lost reports.
func (s *Store) Restore(ctx context.Context, flags []Flag) (int, error) {
	return s.restore(ctx, time.Now(), flags)
}

func (s *Store) restore(ctx context.Context, at time.Time, flags []Flag) (int, error) {
	calls := make([]*call, 0, len(flags))
	for _, f := range flags {
		body, err := json.Marshal(f.record())
		if err != nil {
			return 0, fmt.Errorf("encode suspension of %s: %w", f.Key(), err)
		}
		calls = append(calls, s.call(s.restoreScript, at.UnixMilli(), f.Key(), body))
	}
	if err := s.run(ctx, calls, nil); err != nil {
		return 0, fmt.Errorf("restore suspensions: %w", err)
	}
	restored := 0
	for _, c := range calls {
		if n, err := c.cmd.Int(); err != nil {
			return restored, fmt.Errorf("restore suspension of %s: %w", c.key, err)
		} else if n == 1 {
			restored++
		}
	}
	if err := s.client.Set(ctx, epochKey, at.UTC().Format(time.RFC3339), 0).Err(); err != nil {
		return restored, fmt.Errorf("restore suspensions: %w", err)
	}
	return restored, nil
}

// Lost reports whether Redis has forgotten the flags, or never had any.
func (s *Store) Lost(ctx context.Context) (bool, error) {
	n, err := s.client.Exists(ctx, epochKey).Result()
	if err != nil {
		return false, fmt.Errorf("look for lost suspensions: %w", err)
	}
	return n == 0, nil
}

// Mass is what the guard against mass suspension sees.
type Mass struct {
	// Candidates is the number of URLs that fulfilled the rule in the last 15
	// minutes and did not work again since, suspended or not.
	Candidates int
	// Active is about how many URLs had attempts in the last 15 minutes.
	Active int
	// Holding says that nothing is suspended automatically: at least 20
	// candidates, and more than 5 % of those active. The fault is probably ours.
	Holding bool
}

type massReading struct{ candidates, active *redis.IntCmd }

func (m massReading) value() Mass {
	c, a := m.candidates.Val(), m.active.Val()
	return Mass{Candidates: int(c), Active: int(a), Holding: c >= massURLs && c*massShare > a}
}

func (s *Store) readMass(ctx context.Context, pipe redis.Pipeliner, now int64) massReading {
	minutes := make([]string, 0, massWindow/time.Minute+1)
	for m := (now - massWindow.Milliseconds()) / 60_000; m <= now/60_000; m++ {
		minutes = append(minutes, activePrefix+strconv.FormatInt(m, 10))
	}
	return massReading{
		candidates: pipe.ZCount(ctx, recentKey, strconv.FormatInt(now-massWindow.Milliseconds(), 10), "+inf"),
		active:     pipe.PFCount(ctx, minutes...),
	}
}

// Mass reads the guard's numbers, for metrics.
func (s *Store) Mass(ctx context.Context) (Mass, error) {
	return s.mass(ctx, time.Now())
}

func (s *Store) mass(ctx context.Context, at time.Time) (Mass, error) {
	var m massReading
	err := s.run(ctx, nil, func(pipe redis.Pipeliner) { m = s.readMass(ctx, pipe, at.UnixMilli()) })
	if err != nil {
		return Mass{}, fmt.Errorf("read suspension guard: %w", err)
	}
	return m.value(), nil
}
