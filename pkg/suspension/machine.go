package suspension

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A machine is the state of one URL and makes its steps: no clock, no sockets, no chance. The Store runs it on the
// state that Redis holds. Not safe for concurrent use.
//
// Times are given by the caller and must not go backwards.
type machine struct {
	key     Key
	host    string
	limits  limits
	win     *window // nil: none
	expires int64   // when win is forgotten
	flag    *record // nil: active; a step replaces it and never changes it
	// base is one more than the revision of the URL's last entry in the bucket SUSPENSIONS, 0 when it is not known.
	base uint64

	// saved says that win is to be stored, for ttl milliseconds.
	saved bool
	ttl   int64
	read  *record // flag before the steps
}

// window is the memory of one URL that fails or failed lately; it is
// the JSON of the key gancho:window. Times are Unix milliseconds.
type window struct {
	// Seq and OK are the highest journal sequences of a failure and a success.
	Seq int64 `json:"s,omitempty"`
	OK  int64 `json:"o,omitempty"`
	// First is the time of the oldest failure, Last that of the newest, as an
	// offset from First.
	First int64 `json:"t,omitempty"`
	Last  int64 `json:"l,omitempty"`
	// Buckets are pairs: offset of the bucket's first failure, and its count.
	Buckets []int64 `json:"b,omitempty"`
	// Warned is 1 once at_risk was published for this window.
	Warned   int64    `json:"w,omitempty"`
	Statuses []string `json:"e,omitempty"`
	// Resumed is when the last suspension ended: failures up to then are past.
	// Level and Spell are its trips and its length: Level shrinks by one for
	// each Spell since.
	Resumed int64 `json:"r,omitempty"`
	Level   int64 `json:"c,omitempty"`
	Spell   int64 `json:"d,omitempty"`
	// Hand is the sequence of the last command by hand.
	Hand int64 `json:"h,omitempty"`
	// Refused is the streak that the newest failures are, nil when they are none. It outlives the rest.
	Refused *streak `json:"u,omitempty"`
}

// streak is a number of failures in a row that refused our credentials.
type streak struct {
	N        int64    `json:"n"`
	First    int64    `json:"t"`
	Last     int64    `json:"l"`
	Statuses []string `json:"e"`
}

// record is a Flag as the store keeps it, times in Unix milliseconds; it is
// the JSON of the key gancho:suspension.
type record struct {
	State    State    `json:"state"`
	Trip     string   `json:"trip"`
	Since    int64    `json:"since"`
	Until    int64    `json:"until,omitempty"`
	Trips    int64    `json:"trips"`
	ByHand   bool     `json:"by_hand,omitempty"`
	Reason   string   `json:"reason"`
	Host     string   `json:"host"`
	Failures int64    `json:"failures"`
	First    int64    `json:"first,omitempty"`
	Last     int64    `json:"last,omitempty"`
	Statuses []string `json:"statuses,omitempty"`
	ProbeAt  int64    `json:"probe_at,omitempty"`
	ProbeBy  string   `json:"probe_by,omitempty"`
	// Base is one more than the revision of the URL's last entry in the bucket SUSPENSIONS when this was decided; 0
	// in records of versions that did not know it.
	Base uint64 `json:"base,omitempty"`
}

func (r record) flag(key Key) Flag {
	f := Flag{
		Account: key.Account,
		URLKey:  key.URLKey,
		URLHost: r.Host,
		State:   r.State,
		Trip:    r.Trip,
		Since:   fromMilli(r.Since),
		Until:   fromMilli(r.Until),
		Trips:   int(r.Trips),
		ByHand:  r.ByHand,
		Reason:  r.Reason,
		Evidence: Evidence{
			Failures: int(r.Failures),
			FirstAt:  fromMilli(r.First),
			LastAt:   fromMilli(r.Last),
			Statuses: append([]string{}, r.Statuses...),
		},
	}
	if r.ProbeAt != 0 {
		f.Probe = &Probe{StartedAt: fromMilli(r.ProbeAt), By: r.ProbeBy}
	}
	return f
}

func (f Flag) record() record {
	r := record{
		State:    f.State,
		Trip:     f.Trip,
		Since:    toMilli(f.Since),
		Until:    toMilli(f.Until),
		Trips:    int64(f.Trips),
		ByHand:   f.ByHand,
		Reason:   f.Reason,
		Host:     f.URLHost,
		Failures: int64(f.Evidence.Failures),
		First:    toMilli(f.Evidence.FirstAt),
		Last:     toMilli(f.Evidence.LastAt),
		Statuses: f.Evidence.Statuses,
	}
	if f.Probe != nil {
		r.ProbeAt, r.ProbeBy = toMilli(f.Probe.StartedAt), f.Probe.By
	}
	return r
}

func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func toMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// A delta sums up a batch's results for one URL.
type delta struct {
	host string
	// OK is the highest sequence of a success, OKAt its time. Failures before
	// it are left out.
	OK   int64
	OKAt int64
	// Probes and Failures are in the order of their sequences.
	Probes   []probed
	Failures []failed
	// Statuses are the last different outcomes of Failures.
	Statuses []string
}

type failed struct {
	Seq, At int64
	Status  string
}

type probed struct {
	Seq       int64
	At        int64
	Delivered bool
	Trip      string
	Status    string
}

// healthy reports whether the batch holds nothing but successes.
func (d *delta) healthy() bool { return len(d.Probes) == 0 && len(d.Failures) == 0 }

// fold sums a batch up per URL. The keys come in the order of their first
// observation.
func fold(batch []Observation) ([]Key, map[Key]*delta) {
	deltas := make(map[Key]*delta)
	var keys []Key
	failures := make(map[Key][]Observation)
	for _, o := range batch {
		d := deltas[o.Key]
		if d == nil {
			d = &delta{host: o.URLHost}
			deltas[o.Key] = d
			keys = append(keys, o.Key)
		}
		seq, at := int64(o.Seq), toMilli(o.Result.At) //nolint:gosec // a stream sequence stays far below 2^63
		switch {
		case o.Result.Probe:
			d.Probes = append(d.Probes, probed{
				Seq: seq, At: at, Delivered: o.Result.Delivered, Trip: o.Result.Trip, Status: o.Result.label(),
			})
		case o.Result.Delivered:
			if seq > d.OK {
				d.OK, d.OKAt = seq, at
			}
		default:
			failures[o.Key] = append(failures[o.Key], o)
		}
	}
	for key, all := range failures {
		d := deltas[key]
		slices.SortFunc(all, func(a, b Observation) int { return cmp.Compare(a.Seq, b.Seq) })
		for _, o := range all {
			if int64(o.Seq) <= d.OK { //nolint:gosec // as above
				continue // the success came later
			}
			d.Failures = append(d.Failures, failed{int64(o.Seq), toMilli(o.Result.At), o.Result.label()}) //nolint:gosec // as above
			d.Statuses = keepStatuses(d.Statuses, o.Result.label())
		}
	}
	for _, d := range deltas {
		slices.SortFunc(d.Probes, func(a, b probed) int { return cmp.Compare(a.Seq, b.Seq) })
	}
	return keys, deltas
}

// keepStatuses appends the outcomes to kept: different ones only, the newest
// last, at most statusesKept.
func keepStatuses(kept []string, outcomes ...string) []string {
	kept = slices.Clone(kept)
	for _, s := range outcomes {
		kept = append(slices.DeleteFunc(kept, func(k string) bool { return k == s }), s)
	}
	return kept[max(0, len(kept)-statusesKept):]
}

// bucket is a bucket of a window with absolute times.
type bucket struct{ first, count int64 }

func (w *window) buckets() []bucket {
	bs := make([]bucket, 0, len(w.Buckets)/2)
	for i := 0; i+1 < len(w.Buckets); i += 2 {
		bs = append(bs, bucket{w.First + w.Buckets[i], w.Buckets[i+1]})
	}
	return bs
}

// set replaces the buckets, in the order of their times; last is the time of
// the newest failure. Without buckets the window is empty and the next warning
// may come.
func (w *window) set(bs []bucket, last int64) {
	w.First, w.Last, w.Buckets = 0, 0, nil
	if len(bs) == 0 {
		w.Warned, w.Statuses = 0, nil
		return
	}
	w.First, w.Last = bs[0].first, last-bs[0].first
	for _, b := range bs {
		w.Buckets = append(w.Buckets, b.first-w.First, b.count)
	}
}

// prune forgets the buckets that began before the window did.
func (w *window) prune(l limits, now int64) {
	last := w.First + w.Last
	w.set(slices.DeleteFunc(w.buckets(), func(b bucket) bool { return b.first < now-l.Window }), last)
}

// add counts one failure at a time within the window.
func (w *window) add(l limits, at int64) {
	bs, last := w.buckets(), max(at, w.First+w.Last)
	i, found := slices.BinarySearchFunc(bs, at/l.Width, func(b bucket, n int64) int {
		return cmp.Compare(b.first/l.Width, n)
	})
	if found {
		bs[i].count++
		bs[i].first = min(bs[i].first, at)
	} else {
		bs = slices.Insert(bs, i, bucket{at, 1})
	}
	w.set(bs, last)
}

// refuse takes a failure into the streak, or ends it, and reports whether the streak is long enough for a warning from
// this failure on.
func (w *window) refuse(at int64, status string) bool {
	if !refusal(status) {
		w.Refused = nil
		return false
	}
	if w.Refused == nil {
		w.Refused = &streak{First: at}
	}
	s := w.Refused
	s.N, s.Last, s.Statuses = s.N+1, at, keepStatuses(s.Statuses, status)
	return s.N == refusals
}

// refusal reports whether an outcome says that the receiver refuses our credentials.
func refusal(status string) bool { return status == "401" || status == "403" }

// warning is the record of a warning that this streak gives; the failure with that sequence made it long enough.
func (s *streak) warning(host string, seq int64) record {
	return record{
		State: Active, Trip: "refused-" + tripID(s.First, seq), Since: s.First, Reason: ReasonCredentialsRefused, Host: host,
		Failures: s.N, First: s.First, Last: s.Last, Statuses: s.Statuses,
	}
}

func (w *window) failures() int64 {
	var n int64
	for i := 1; i < len(w.Buckets); i += 2 {
		n += w.Buckets[i]
	}
	return n
}

// fulfils reports whether a pruned window asks for a suspension.
func (w *window) fulfils(l limits) bool {
	return w.failures() >= l.Failures && w.Last >= l.Span
}

// forecast is when a window that was just pruned will fulfil the rule and its URL be suspended, should the failures go
// on at the rate of those in it.
func (w *window) forecast(l limits) int64 {
	n := w.failures()
	at := max(w.First+w.Last, w.First+l.Span)
	if missing := l.Failures - n; missing > 0 && n > 1 {
		at = max(at, w.First+w.Last+missing*w.Last/(n-1))
	}
	return at + l.Settle
}

// evidence is the record of a trip, or of a warning, that this window gives.
func (w *window) evidence(host string, state State) record {
	return record{
		State:    state,
		Trip:     tripID(w.First, w.Seq),
		Since:    w.First,
		Reason:   ReasonAlwaysFailing,
		Host:     host,
		Failures: w.failures(),
		First:    w.First,
		Last:     w.First + w.Last,
		Statuses: w.Statuses,
	}
}

// tripID names a stretch of a suspension by the journal record that caused it
// and a time from journal records.
func tripID(at, seq int64) string { return fmt.Sprintf("%d-%d", at, seq) }

// load returns the window, or nil if there is none any more.
func (m *machine) load(now int64) *window {
	if m.win != nil && now >= m.expires {
		m.win = nil
	}
	return m.win
}

// save keeps the window for as long as any of it matters.
func (m *machine) save(w *window, now int64) {
	ttl := m.limits.Window
	if w.Refused != nil {
		ttl = max(ttl, streakKept.Milliseconds())
	}
	if left := w.Resumed + w.Level*w.Spell - now; w.Level > 0 && left > 0 {
		ttl = max(ttl, left)
	} else {
		w.Level, w.Spell = 0, 0
	}
	m.win, m.expires = w, now+ttl
	m.saved, m.ttl = true, ttl
}

func (m *machine) step(event Event, now int64, r record) Transition {
	return Transition{Event: event, At: fromMilli(now), Flag: r.flag(m.key)}
}

// suspension returns a copy of the URL's flag, nil while it is active.
func (m *machine) suspension() *Flag {
	if m.flag == nil {
		return nil
	}
	return new(m.flag.flag(m.key))
}

// observeAll takes in results of this URL (the Key is not looked at). candidate
// says that the URL fulfils the rule: Trip may be called.
func (m *machine) observeAll(now time.Time, batch []Observation) (steps []Transition, candidate bool) {
	batch = slices.Clone(batch)
	for i := range batch {
		batch[i].Key = m.key
	}
	_, deltas := fold(batch)
	d := deltas[m.key]
	if d == nil {
		return nil, false
	}
	return m.observe(now.UnixMilli(), d)
}

func (m *machine) observe(now int64, d *delta) (steps []Transition, candidate bool) {
	w := m.load(now)
	exists := w != nil
	if !exists {
		w = new(window)
	}
	touched := false

	ok, okAt := d.OK, d.OKAt
	for _, p := range d.Probes {
		switch {
		case m.flag != nil && !m.flag.ByHand && m.flag.Trip == p.Trip && p.Delivered:
			f := *m.flag
			steps = append(steps, m.step(EventResumed, now, f))
			m.flag = nil
			w.set(nil, 0)
			w.Refused = nil
			w.Seq, w.OK = max(w.Seq, p.Seq), max(w.OK, p.Seq)
			w.Resumed = max(min(p.At, now), f.Since)
			w.Level, w.Spell = min(f.Trips, m.limits.Levels), m.limits.length(f.Trips)
			exists, touched = true, true
		case m.flag != nil && !m.flag.ByHand && m.flag.Trip == p.Trip:
			f := *m.flag
			at := min(p.At, now)
			f.State, f.Trip, f.ProbeAt, f.ProbeBy = Suspended, tripID(at, p.Seq), 0, ""
			f.Trips++
			f.Until = now + m.limits.jittered(f.Trips, permille(m.key, now))
			f.Failures++
			f.Last = at
			f.Statuses = keepStatuses(f.Statuses, p.Status)
			f.Base = max(f.Base, m.base)
			m.flag = &f
			if w.Refused != nil && !refusal(p.Status) {
				w.Refused, touched = nil, true
			}
			steps = append(steps, m.step(EventSuspended, now, f))
		case p.Delivered && p.Seq > ok:
			// The suspension it belonged to is gone; it is a success all the same.
			ok, okAt = p.Seq, p.At
		}
	}

	if ok > w.OK && (exists || now-okAt > m.limits.Late) {
		w.set(nil, 0)
		w.OK, w.Refused = ok, nil
		touched = true
	}

	if m.flag == nil && len(d.Failures) > 0 {
		touched = true
		w.prune(m.limits, now)
		counted := false
		var refused *record
		for _, f := range d.Failures {
			at := min(f.At, now)
			if f.Seq <= w.Seq || f.Seq <= w.OK {
				continue
			}
			w.Seq = f.Seq
			if at <= w.Resumed {
				continue
			}
			if w.refuse(at, f.Status) {
				refused = new(w.Refused.warning(m.host, f.Seq))
			}
			if at < now-m.limits.Window {
				continue
			}
			w.add(m.limits, at)
			counted = true
		}
		if counted {
			w.Statuses = keepStatuses(w.Statuses, d.Statuses...)
		}
		atRisk := w.failures() >= m.limits.AtRisk
		if warning := refused; warning != nil || atRisk && w.Warned == 0 {
			if warning == nil {
				warning = new(w.evidence(m.host, Active))
			}
			if atRisk {
				w.Warned, warning.Until = 1, w.forecast(m.limits)
			}
			steps = append(steps, m.step(EventAtRisk, now, *warning))
		}
		candidate = w.fulfils(m.limits)
	}
	if touched {
		m.save(w, now)
	}
	return steps, candidate
}

// due reports whether an active URL fulfils the rule.
func (m *machine) due(at time.Time) bool {
	now := at.UnixMilli()
	if m.flag != nil || m.load(now) == nil {
		return false
	}
	w := new(*m.win)
	w.prune(m.limits, now)
	return w.fulfils(m.limits)
}

// trip suspends the URL if it still fulfils the rule.
func (m *machine) trip(at time.Time) (Transition, bool) {
	now := at.UnixMilli()
	if !m.due(at) {
		return Transition{}, false
	}
	w := new(*m.win)
	w.prune(m.limits, now)
	f := w.evidence(m.host, Suspended)
	f.Since, f.Base = max(now, w.Resumed+1), m.base
	f.Trips = 1
	if w.Level > 0 {
		f.Trips += max(0, w.Level-(now-w.Resumed)/w.Spell)
	}
	f.Until = now + m.limits.jittered(f.Trips, permille(m.key, now))
	m.flag = &f
	w.set(nil, 0)
	w.Level, w.Spell = 0, 0
	m.save(w, now)
	return m.step(EventSuspended, now, f), true
}

// startProbe notes that a dispatcher began the probe of a trip.
func (m *machine) startProbe(now time.Time, trip string, p Probe) (Transition, bool) {
	if m.flag == nil || m.flag.ByHand || m.flag.Trip != trip {
		return Transition{}, false
	}
	f := *m.flag
	f.State, f.ProbeAt, f.ProbeBy = Probing, toMilli(p.StartedAt), p.By
	first := m.flag.State == Suspended
	m.flag = &f
	return m.step(EventProbing, now.UnixMilli(), f), first
}

// suspendByHand suspends the URL until it is resumed by hand.
func (m *machine) suspendByHand(at time.Time, c Command) (Transition, bool) {
	now := at.UnixMilli()
	w, stale := m.command(now, c)
	if stale {
		return Transition{}, false
	}
	if m.flag != nil && m.flag.ByHand {
		m.save(w, now)
		return Transition{}, false
	}
	given := min(toMilli(c.At), now)
	f, since := record{Host: c.URLHost}, max(given, w.Resumed+1)
	if m.flag != nil {
		f = *m.flag
		since = max(since, f.Since+1) // later than the one that it replaces
	}
	f.State, f.Reason, f.ByHand = Suspended, ReasonByHand, true
	f.Trip = fmt.Sprintf("hand-%d-%d", given, c.Seq)
	f.Since, f.Until, f.ProbeAt, f.ProbeBy, f.Base = since, 0, 0, "", m.base
	m.flag = &f
	w.set(nil, 0)
	m.save(w, now)
	return m.step(EventSuspended, now, f), true
}

// resume ends any suspension, and forgets the URL's past in any case.
func (m *machine) resume(at time.Time, c Command) (Transition, bool) {
	now := at.UnixMilli()
	w, stale := m.command(now, c)
	if stale {
		return Transition{}, false
	}
	w.Resumed = max(w.Resumed, min(toMilli(c.At), now), toMilli(c.Since))
	w.Level, w.Spell, w.Refused = 0, 0, nil
	w.set(nil, 0)
	var step Transition
	ended := m.flag != nil
	if ended {
		w.Resumed = max(w.Resumed, m.flag.Since)
		step = m.step(EventResumed, now, *m.flag)
		m.flag = nil
	}
	m.save(w, now)
	return step, ended
}

// restore puts a flag back, unless the known one is as new or newer. The bucket holds it below the machine's base.
func (m *machine) restore(at time.Time, f Flag) bool {
	if w := m.load(at.UnixMilli()); w != nil && w.Resumed >= toMilli(f.Since) {
		return false
	}
	if m.flag != nil && !f.supersedes(m.flag.flag(m.key)) {
		return false
	}
	r := f.record()
	r.Base = m.base
	m.flag = &r
	return true
}

// A verdict says which of two records of a URL is the newer one: that in Redis or that in the bucket SUSPENSIONS.
type verdict int

const (
	// alike: both say the same, but perhaps for a claim on the probe.
	alike verdict = iota
	// redisNewer: the bucket must follow.
	redisNewer
	// bucketNewer: Redis had lost a step and has it again.
	bucketNewer
)

// reconcile makes the flag follow the newer of the two records. copied is the bucket's, nil when its entry is a
// deletion or there is none; the machine's base is that entry's revision plus one.
func (m *machine) reconcile(at time.Time, copied *Flag) verdict {
	held := m.suspension()
	switch {
	case held == nil && copied == nil:
		return alike
	case held == nil:
		if m.restore(at, *copied) {
			return bucketNewer
		}
		return redisNewer // it was resumed since, which the window knows
	case copied == nil:
		if m.flag.Base == 0 || m.flag.Base >= m.base {
			return redisNewer
		}
		m.end(at.UnixMilli())
		return bucketNewer
	case held.Trip == copied.Trip && held.ByHand == copied.ByHand:
		return alike
	case m.restore(at, *copied):
		return bucketNewer
	}
	return redisNewer
}

// end removes the flag, as a resume that was decided elsewhere did.
func (m *machine) end(now int64) {
	w := m.load(now)
	if w == nil {
		w = new(window)
	}
	w.Resumed = max(w.Resumed, m.flag.Since)
	w.set(nil, 0)
	w.Refused, m.flag = nil, nil
	m.save(w, now)
}

// command loads the window and notes the command's sequence in it, or reports
// that it was seen before.
func (m *machine) command(now int64, c Command) (w *window, stale bool) {
	w = m.load(now)
	if w == nil {
		w = new(window)
	}
	seq := int64(c.Seq) //nolint:gosec // a stream sequence stays far below 2^63
	if seq > 0 && seq <= w.Hand {
		return nil, true
	}
	w.Hand = max(w.Hand, seq)
	return w, false
}
