package suspension

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrLost says that Redis has forgotten the flags (it was flushed, or started
// empty): call Restore with the known ones, then repeat the failed call.
var ErrLost = errors.New("redis holds no suspensions any more: restore them")

// ErrStale says that Redis has lost its last writes, as after a power cut or a
// failover: compare each suspension with its copy, by Reconcile.
var ErrStale = errors.New("redis has lost its last writes: compare the suspensions with their copies")

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
	// nothing else: when it is missing, all else is. Its value is a time, RFC
	// 3339 in UTC, which Beat moves forward: one that went back shows that Redis
	// has lost its later writes.
	epochKey = "gancho:epoch"
	// activePrefix + Unix minute: HyperLogLog of the URLs with attempts in that
	// minute; at most 12 KB each, 17 of them. Expires. Rebuilt from the attempts
	// to come.
	activePrefix = "gancho:active:{urls}:"
	// pendingKey is a ZSET of the URLs that fulfil the rule and are not
	// suspended yet, by the time from which they were watched. Rebuilt from
	// their next failures.
	pendingKey = "gancho:trips:pending"
	// recentKey is a ZSET of the URLs that fulfilled the rule within massWindow,
	// suspended or not, by the last time they did. Members that grow old go;
	// it never holds more URLs than fail. Rebuilt from their next failures.
	recentKey = "gancho:trips:recent"
)

const (
	// sweep is the most pending URLs looked at in one call.
	sweep = 256
)

// beatLua moves the time in KEYS[1] forward to ARGV[1], never back, and returns
// the time before; ” when the key is missing.
const beatLua = `
local before = redis.call('GET', KEYS[1])
if not before then return '' end
if before < ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
return before`

// A Store keeps windows and flags in Redis. Every step of a URL is decided by
// its machine and written by one script, if that URL's two keys are as they
// were read. So any number of stores can work at once and each step happens
// once. Safe for concurrent use.
type Store struct {
	// Revision returns the revision of the URL's last entry in the bucket
	// SUSPENSIONS, deletions included, and false when it is not known. A step
	// that is decided carries it, and Reconcile compares it. Nil: never known.
	// Set it before the first call.
	Revision func(Key) (uint64, bool)

	client    redis.UniversalClient
	rules     Rules
	limits    limits
	set, beat *redis.Script
	guard     guard

	mu   sync.Mutex
	mark string // the last time that Beat wrote
}

// NewStore returns a store with rules that Validate accepts. The client stays
// the caller's to close.
func NewStore(client redis.UniversalClient, rules Rules) (*Store, error) {
	if err := rules.Validate(); err != nil {
		return nil, err
	}
	return &Store{
		client: client, rules: rules, limits: rules.limits(), set: redis.NewScript(setLua),
		beat: redis.NewScript(beatLua),
	}, nil
}

// base of a turn that is decided now; see machine.base.
func (s *Store) base(key Key) uint64 {
	if s.Revision == nil {
		return 0
	}
	if revision, known := s.Revision(key); known {
		return revision + 1
	}
	return 0
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
	take := func(key Key) *turn {
		d := deltas[key]
		t := &turn{key: key, host: d.host, base: s.base(key)}
		t.decide = func(m *machine) { t.steps, t.candidate = m.observe(now, d) }
		return t
	}

	// A URL that only succeeds and has no window needs no turn. The exception
	// are successes so late that failures before them may still come.
	var turns []*turn
	var healthy []Key
	for _, key := range keys {
		if d := deltas[key]; d.healthy() && now-d.OKAt <= s.limits.Late {
			healthy = append(healthy, key)
		} else {
			turns = append(turns, take(key))
		}
	}
	var due *redis.StringSliceCmd
	windows := make([]*redis.IntCmd, len(healthy))
	err := s.run(ctx, turns, func(pipe redis.Pipeliner) {
		due = pipe.ZRangeArgs(ctx, redis.ZRangeArgs{
			Key: pendingKey, ByScore: true, Start: "-inf", Stop: now - s.limits.Settle, Count: sweep,
		})
		s.guard.count(ctx, pipe, now, keys)
		for i, key := range healthy {
			windows[i] = pipe.Exists(ctx, windowKey(key))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("observe results: %w", err)
	}
	var recovering []*turn
	for i, key := range healthy {
		if windows[i].Val() > 0 {
			recovering = append(recovering, take(key))
		}
	}
	if err := s.run(ctx, recovering, nil); err != nil {
		return nil, fmt.Errorf("observe successes: %w", err)
	}
	// Asked last: if Redis forgot the flags at any time up to here, the
	// findings about them are worth nothing, and the batch comes again.
	if lost, err := s.Lost(ctx); err != nil {
		return nil, err
	} else if lost {
		return nil, ErrLost
	}

	decided := decisions{}
	var candidates []redis.Z
	var recovered []any
	for _, t := range append(turns, recovering...) {
		if t.m.flag != nil || len(t.steps) > 0 || len(deltas[t.key].Probes) > 0 {
			decided.add(t)
		}
		if t.candidate {
			candidates = append(candidates, redis.Z{Score: float64(now), Member: member(t.key, t.host)})
		}
		if slices.ContainsFunc(t.steps, func(s Transition) bool { return s.Event == EventResumed }) {
			recovered = append(recovered, member(t.key, t.host))
		}
	}
	if err := s.sweep(ctx, at, candidates, recovered, due.Val(), decided); err != nil {
		return nil, err
	}
	return decided.list(), nil
}

// sweep notes new candidates and suspends those that were watched for long
// enough, unless the guard holds them all.
func (s *Store) sweep(
	ctx context.Context, at time.Time, candidates []redis.Z, recovered []any, due []string, decided decisions,
) error {
	now := at.UnixMilli()
	if len(candidates) > 0 || len(recovered) > 0 {
		err := s.run(ctx, nil, func(pipe redis.Pipeliner) {
			if len(candidates) > 0 {
				pipe.ZAddNX(ctx, pendingKey, candidates...)
				pipe.ZAdd(ctx, recentKey, candidates...)
			}
			if len(recovered) > 0 {
				pipe.ZRem(ctx, recentKey, recovered...)
			}
		})
		if err != nil {
			return fmt.Errorf("note suspension candidates: %w", err)
		}
	}
	if len(due) == 0 {
		return nil
	}
	mass, err := s.mass(ctx, at)
	if err != nil {
		return err
	}
	turns := make([]*turn, 0, len(due))
	for _, name := range due {
		key, host, ok := parseMember(name)
		if !ok {
			return fmt.Errorf("redis key %s: member %q is not <account>:<url_key>:<host>: remove it", pendingKey, name)
		}
		t := &turn{key: key, host: host, base: s.base(key)}
		t.decide = func(m *machine) {
			t.steps, t.candidate = nil, m.due(at)
			if !t.candidate || mass.Holding {
				return
			}
			if step, ok := m.trip(at); ok {
				t.steps = []Transition{step}
			}
		}
		turns = append(turns, t)
	}
	if err := s.run(ctx, turns, nil); err != nil {
		return fmt.Errorf("suspend candidates: %w", err)
	}
	var still []redis.Z
	var done, calm []any
	for _, t := range turns {
		m := member(t.key, t.host)
		switch {
		case t.candidate && len(t.steps) == 0: // held
			still = append(still, redis.Z{Score: float64(now), Member: m})
			continue
		case len(t.steps) > 0:
			decided.add(t)
		case t.m.flag == nil:
			calm = append(calm, m)
		}
		done = append(done, m)
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
	// With steps made the caller must learn of them; the next call looks again
	// at the candidates that were not cleared.
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

// decisions collects the decisions of one call.
type decisions map[Key]*Decision

func (ds decisions) add(t *turn) {
	d := ds[t.key]
	if d == nil {
		d = &Decision{Key: t.key}
		ds[t.key] = d
	}
	d.Flag = t.m.suspension()
	d.Transitions = append(d.Transitions, t.steps...)
}

func (ds decisions) list() []Decision {
	out := make([]Decision, 0, len(ds))
	for _, d := range ds {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Decision) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return out
}

// one makes one turn with one step at most.
func (s *Store) one(
	ctx context.Context, key Key, base uint64, decide func(*machine) (Transition, bool),
) (Decision, error) {
	t := &turn{key: key, base: base}
	t.decide = func(m *machine) {
		t.steps = nil
		if step, ok := decide(m); ok {
			t.steps = []Transition{step}
		}
	}
	err := s.run(ctx, []*turn{t}, nil)
	if err != nil {
		return Decision{}, err
	}
	return t.decision(), nil
}

// SuspendByHand suspends a URL until Resume; it replaces a suspension of the
// other kind. Doing it twice is doing it once.
func (s *Store) SuspendByHand(ctx context.Context, c Command) (Decision, error) {
	return s.suspendByHand(ctx, time.Now(), c)
}

func (s *Store) suspendByHand(ctx context.Context, at time.Time, c Command) (Decision, error) {
	d, err := s.one(ctx, c.Key, c.Revision+1, func(m *machine) (Transition, bool) { return m.suspendByHand(at, c) })
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
	d, err := s.one(ctx, c.Key, c.Revision+1, func(m *machine) (Transition, bool) { return m.resume(at, c) })
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
	d, err := s.one(ctx, key, s.base(key), func(m *machine) (Transition, bool) { return m.startProbe(at, trip, p) })
	if err != nil {
		return Decision{}, fmt.Errorf("note probe of %s: %w", key, err)
	}
	return d, nil
}

// Reconcile makes a URL's flag in Redis agree with its copy in the bucket
// SUSPENSIONS where that is newer, and returns the flag after it: the bucket
// should hold the same. copied is nil when the bucket's last entry, whose
// revision is given, is a deletion, or when there is none (revision 0).
//
// The newer one wins. Two flags are ordered by Flag.supersedes. A deletion is
// newer than a flag that was decided without knowing it. A flag that is missing
// in Redis was resumed only if the URL's window says so; otherwise Redis has
// lost it.
func (s *Store) Reconcile(ctx context.Context, key Key, copied *Flag, revision uint64) (*Flag, error) {
	return s.reconcile(ctx, time.Now(), key, copied, revision)
}

func (s *Store) reconcile(ctx context.Context, at time.Time, key Key, copied *Flag, revision uint64) (*Flag, error) {
	t := &turn{key: key, base: revision + 1}
	t.decide = func(m *machine) { m.reconcile(at, copied) }
	if err := s.run(ctx, []*turn{t}, nil); err != nil {
		return nil, fmt.Errorf("compare suspension of %s: %w", key, err)
	}
	return t.m.suspension(), nil
}

// Get returns the flag of a URL, nil if it is active.
func (s *Store) Get(ctx context.Context, key Key) (*Flag, error) {
	d, err := s.one(ctx, key, 0, func(*machine) (Transition, bool) { return Transition{}, false })
	if err != nil {
		return nil, fmt.Errorf("get suspension of %s: %w", key, err)
	}
	return d.Flag, nil
}

// All returns every flag, in no order. It walks the whole key space: for
// starting up and for reconciling now and then.
func (s *Store) All(ctx context.Context) ([]Flag, error) {
	var flags []Flag
	seen := make(map[string]bool) // a walk may meet a key twice
	err := s.eachNode(ctx, func(ctx context.Context, node *redis.Client) error {
		for cursor := uint64(0); ; {
			names, next, err := node.Scan(ctx, cursor, flagPrefix+"*", 1000).Result()
			if err != nil {
				return err
			}
			found, err := s.flags(ctx, names, seen)
			if err != nil {
				return err
			}
			flags = append(flags, found...)
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list suspensions: %w", err)
	}
	return flags, nil
}

// eachNode calls f for each server that holds keys, one after the other.
func (s *Store) eachNode(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	var mu sync.Mutex
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			return f(ctx, node)
		})
	case *redis.Client:
		return f(ctx, c)
	default:
		return fmt.Errorf("suspensions cannot be listed by a client of type %T", c)
	}
}

// flags reads the flags with these names that were not seen yet.
func (s *Store) flags(ctx context.Context, names []string, seen map[string]bool) ([]Flag, error) {
	var turns []*turn
	for _, name := range names {
		tag := strings.TrimSuffix(strings.TrimPrefix(name, flagPrefix+"{"), "}")
		account, urlKey, _ := strings.Cut(tag, ":")
		if !seen[name] {
			seen[name] = true
			turns = append(turns, &turn{key: Key{Account: account, URLKey: urlKey}, decide: func(*machine) {}})
		}
	}
	if err := s.run(ctx, turns, nil); err != nil {
		return nil, err
	}
	var flags []Flag
	for _, t := range turns {
		if f := t.m.suspension(); f != nil { // else it was resumed in between
			flags = append(flags, *f)
		}
	}
	return flags, nil
}

// Restore puts flags back that Redis does not have and returns how many those
// were. It never replaces a newer flag, nor brings back one that was resumed
// (within the last Rules.Window; later the caller's copy has long followed), so
// it may be called at any time. It ends the state that Lost reports.
func (s *Store) Restore(ctx context.Context, flags []Flag) (int, error) {
	return s.restore(ctx, time.Now(), flags)
}

func (s *Store) restore(ctx context.Context, at time.Time, flags []Flag) (int, error) {
	turns := make([]*turn, 0, len(flags))
	restored := make([]bool, len(flags))
	for i, f := range flags {
		turns = append(turns, &turn{
			key: f.Key(), base: s.base(f.Key()), decide: func(m *machine) { restored[i] = m.restore(at, f) },
		})
	}
	if err := s.run(ctx, turns, nil); err != nil {
		return 0, fmt.Errorf("restore suspensions: %w", err)
	}
	if err := s.client.Set(ctx, epochKey, mark(at), 0).Err(); err != nil {
		return 0, fmt.Errorf("restore suspensions: %w", err)
	}
	n := 0
	for _, yes := range restored {
		if yes {
			n++
		}
	}
	return n, nil
}

// Lost reports whether Redis has forgotten the flags, or never had any.
func (s *Store) Lost(ctx context.Context) (bool, error) {
	n, err := s.client.Exists(ctx, epochKey).Result()
	if err != nil {
		return false, fmt.Errorf("look for lost suspensions: %w", err)
	}
	return n == 0, nil
}

// Beat leaves a mark in Redis and looks at the one before. ErrLost says that
// Redis has forgotten everything, ErrStale that it has forgotten the
// writes since some earlier mark; the next Beat starts from there. Call it
// about once a second.
func (s *Store) Beat(ctx context.Context) error { return s.beatAt(ctx, time.Now()) }

func (s *Store) beatAt(ctx context.Context, at time.Time) error {
	now := mark(at)
	before, err := s.beat.Run(ctx, s.client, []string{epochKey}, now).Text()
	if err != nil {
		return fmt.Errorf("look for lost suspensions: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.mark
	s.mark = now
	switch {
	case before == "":
		s.mark = ""
		return ErrLost
	case before < last:
		return ErrStale
	}
	s.mark = max(now, before)
	return nil
}

// mark is a time as the epoch key holds it: texts that sort as the times do.
func mark(at time.Time) string { return at.UTC().Format("2006-01-02T15:04:05.000Z") }
