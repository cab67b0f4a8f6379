package suspension

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var testKey = Key{Account: "acme", URLKey: "0123456789abcdef0123456789abcdef"}

// testRules are quick to fulfil: 4 failures over 3 s within 16 s (buckets of a
// second).
func testRules() Rules {
	return Rules{Window: 16 * time.Second, MinFailures: 4, MinSpan: 3 * time.Second, Duration: 10 * time.Second, MaxDuration: time.Minute}
}

// journal hands out results with growing sequences at the current time.
type journal struct{ seq uint64 }

func (j *journal) add(r Result) Observation {
	j.seq++
	if r.At.IsZero() {
		r.At = time.Now()
	}
	return Observation{Key: testKey, URLHost: "hooks.example.com", Seq: j.seq, Result: r}
}

func (j *journal) failure() Observation { return j.add(Result{Reason: "status_5xx", Status: 500}) }
func (j *journal) timeout() Observation { return j.add(Result{Reason: "timeout"}) }
func (j *journal) success() Observation { return j.add(Result{Delivered: true, Status: 200}) }

func (j *journal) probe(trip string, delivered bool) Observation {
	o := j.failure()
	o.Result.Probe, o.Result.Trip, o.Result.Delivered = true, trip, delivered
	return o
}

// driver runs a machine as the monitor runs the store: results as they come,
// a look at the candidates each second.
type driver struct {
	journal
	m      *machine
	events []string
}

func newDriver(r Rules) *driver {
	return &driver{m: newMachine(testKey, "hooks.example.com", r)}
}

func (d *driver) note(steps ...Transition) {
	for _, s := range steps {
		d.events = append(d.events, string(s.Event))
	}
}

func (d *driver) observe(batch ...Observation) bool {
	steps, candidate := d.m.observeAll(time.Now(), batch)
	d.note(steps...)
	return candidate
}

func (d *driver) trip() bool {
	step, ok := d.m.trip(time.Now())
	if ok {
		d.note(step)
	}
	return ok
}

func (d *driver) want(t *testing.T, events ...string) {
	t.Helper()
	if diff := cmp.Diff(events, d.events); diff != "" {
		t.Fatalf("transitions (-want +got):\n%s", diff)
	}
}

// failUntilTripped fails once a second.
func (d *driver) failUntilTripped(t *testing.T) *Flag {
	t.Helper()
	for range 100 {
		d.observe(d.failure())
		if d.trip() {
			return d.m.suspension()
		}
		time.Sleep(time.Second)
	}
	t.Fatal("never suspended")
	return nil
}

func TestSuspensionFromFirstFailureToResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		first := time.Now()
		d.observe(d.failure())
		d.want(t)
		d.observe(d.timeout())
		d.want(t, "at_risk")
		d.observe(d.failure(), d.failure(), d.failure())
		if d.trip() {
			t.Fatal("suspended without the span")
		}
		time.Sleep(3 * time.Second)
		if !d.observe(d.failure()) || !d.trip() {
			t.Fatal("six failures over 3 s do not suspend")
		}
		d.want(t, "at_risk", "suspended")
		now := time.Now()
		f := d.m.suspension()
		want := &Flag{
			Account: testKey.Account, URLKey: testKey.URLKey, URLHost: "hooks.example.com",
			State: Suspended, Trip: fmt.Sprintf("%d-6", first.UnixMilli()), Since: now.UTC(), Until: f.Until, Trips: 1,
			Reason:   ReasonAlwaysFailing,
			Evidence: Evidence{Failures: 6, FirstAt: first.UTC(), LastAt: now.UTC(), Statuses: []string{"timeout", "500"}},
		}
		if diff := cmp.Diff(want, f); diff != "" {
			t.Errorf("flag (-want +got):\n%s", diff)
		}
		if d.trip() {
			t.Error("suspended twice")
		}

		time.Sleep(time.Until(f.Until) - 1)
		if d.m.suspension().ProbeDue(time.Now(), time.Minute) {
			t.Error("a probe is due before Until")
		}
		time.Sleep(time.Nanosecond)
		if !d.m.suspension().ProbeDue(time.Now(), time.Minute) {
			t.Error("no probe is due at Until")
		}
		probe := Probe{StartedAt: time.Now().UTC(), By: "dispatcher-1"}
		step, ok := d.m.startProbe(time.Now(), f.Trip, probe)
		if !ok || step.Flag.State != Probing || !cmp.Equal(step.Flag.Probe, &probe) {
			t.Fatalf("start of the probe: got %+v, %v", step, ok)
		}
		d.note(step)
		if _, ok := d.m.startProbe(time.Now(), f.Trip, probe); ok {
			t.Error("a second dispatcher's probe is a second transition")
		}

		time.Sleep(time.Second)
		d.observe(d.probe(f.Trip, false))
		again := d.m.suspension()
		d.want(t, "at_risk", "suspended", "probing", "suspended")
		if again.Trip == f.Trip || again.Trips != 2 || !again.Since.Equal(f.Since) || again.Probe != nil || again.State != Suspended {
			t.Errorf("after a failed probe: %+v", again)
		}
		if got := time.Until(again.Until); got < 18*time.Second || got > 22*time.Second {
			t.Errorf("second stretch lasts %v, want 20s +-10%%", got)
		}
		if again.Evidence.Failures != 7 || !again.Evidence.LastAt.Equal(time.Now()) {
			t.Errorf("evidence after a failed probe: %+v", again.Evidence)
		}

		time.Sleep(time.Until(again.Until))
		d.observe(d.probe(again.Trip, true))
		d.want(t, "at_risk", "suspended", "probing", "suspended", "resumed")
		if d.m.suspension() != nil {
			t.Error("a flag is left after resume")
		}
	})
}

func TestOneSuccessEmptiesTheWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		for range 3 {
			d.observe(d.failure())
			time.Sleep(time.Second)
		}
		d.observe(d.success())
		for range 3 {
			if d.observe(d.failure()) || d.trip() {
				t.Fatal("failures from before the success count")
			}
			time.Sleep(time.Second)
		}
		d.want(t, "at_risk", "at_risk")
		if !d.observe(d.failure()) {
			t.Error("the fourth failure after the success does not count")
		}
	})
}

func TestSuccessWithinTheBatchCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		var batch []Observation
		for i := range 10 {
			if i == 7 {
				batch = append(batch, d.success())
			}
			batch = append(batch, d.failure())
			time.Sleep(time.Second)
		}
		if d.observe(batch...) || d.trip() {
			t.Error("a batch with a success in it suspends")
		}
		d.want(t, "at_risk") // by the three failures after it
	})
}

func TestRiskIsToldOnceUntilTheWindowWasEmpty(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		d.observe(d.failure(), d.failure())
		d.want(t, "at_risk")
		time.Sleep(10 * time.Second)
		d.observe(d.failure())
		time.Sleep(10 * time.Second) // the first two are out of the window, the third is not
		d.observe(d.failure())
		d.want(t, "at_risk")
		time.Sleep(16*time.Second + time.Millisecond)
		d.observe(d.failure(), d.failure())
		d.want(t, "at_risk", "at_risk")
	})
}

func TestFailuresBeyondTheWindowDoNotCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		for range 50 {
			if d.observe(d.failure()) {
				t.Fatal("a failure each 6 s is never 4 in 16 s")
			}
			time.Sleep(6 * time.Second)
		}
		late := d.failure()
		late.Result.At = time.Now().Add(-17 * time.Second)
		for range 10 {
			late.Seq++
			if d.observe(late) {
				t.Fatal("failures reported late count")
			}
		}
	})
}

func TestFailuresDuringASuspensionAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		f := d.failUntilTripped(t)
		var inFlight []Observation
		for range 10 {
			d.observe(d.failure()) // was in flight when the flag was set
			inFlight = append(inFlight, d.failure())
			time.Sleep(time.Second)
		}
		d.observe(d.success()) // was in flight too: only a probe ends it
		if got := d.m.suspension(); got == nil || got.Trip != f.Trip {
			t.Fatalf("flag after results without probe: %+v", got)
		}
		d.observe(d.probe(f.Trip, true))
		time.Sleep(time.Second)
		if d.observe(inFlight...) || d.trip() {
			t.Error("failures from before the resume count after it")
		}
	})
}

func TestGraceAfterResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		f := d.failUntilTripped(t)
		d.observe(d.probe(f.Trip, true))
		resumed := time.Now()
		d.observe(d.failure(), d.failure(), d.failure(), d.failure(), d.failure()) // ended at the moment of the resume
		if d.trip() {
			t.Fatal("suspended at once after the resume")
		}
		time.Sleep(time.Millisecond)
		for !d.trip() {
			d.observe(d.failure())
			time.Sleep(500 * time.Millisecond)
		}
		if got := time.Since(resumed); got < 3*time.Second || got > 5*time.Second {
			t.Errorf("suspended again after %v, want a little over MinSpan (3s)", got)
		}
	})
}

func TestTripsShrinkWithGoodSpells(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		spell time.Duration // without trouble, after four trips of 10, 20, 40, 60 s
		want  int
	}{
		"at once":           {0, 5},
		"just under a step": {55 * time.Second, 5},
		"one step":          {60 * time.Second, 4},
		"three steps":       {180 * time.Second, 2},
		"all":               {240 * time.Second, 1},
		"long ago":          {24 * time.Hour, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d := newDriver(testRules())
				f := d.failUntilTripped(t)
				for range 3 {
					d.observe(d.probe(f.Trip, false))
					f = d.m.suspension()
				}
				if f.Trips != 4 {
					t.Fatalf("after three failed probes: %d trips, want 4", f.Trips)
				}
				d.observe(d.probe(f.Trip, true))
				time.Sleep(test.spell + time.Millisecond)
				if f = d.failUntilTripped(t); f.Trips != test.want {
					t.Errorf("trips: got %d, want %d", f.Trips, test.want)
				}
			})
		})
	}
}

func TestProbeResultsOfOtherTripsAreIgnored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		f := d.failUntilTripped(t)
		failed := d.probe(f.Trip, false)
		d.observe(failed)
		second := d.m.suspension()
		d.events = nil

		d.observe(failed)                // redelivered
		d.observe(d.probe(f.Trip, true)) // a late one of the first trip
		d.observe(d.probe("", true))     // of none
		if diff := cmp.Diff(second, d.m.suspension()); diff != "" {
			t.Errorf("flag changed (-want +got):\n%s", diff)
		}
		good := d.probe(second.Trip, true)
		d.observe(good)
		d.want(t, "resumed")
		d.observe(good, d.probe(second.Trip, false))
		d.want(t, "resumed")
		if d.m.suspension() != nil {
			t.Error("an old failed probe suspends again")
		}
	})
}

func TestByHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(testRules())
		seq := uint64(0)
		suspend := func() bool {
			seq++
			step, ok := d.m.suspendByHand(time.Now(), Command{Key: testKey, URLHost: "hooks.example.com", Seq: seq, At: time.Now()})
			if ok {
				d.note(step)
			}
			return ok
		}
		resume := func(seq uint64) bool {
			step, ok := d.m.resume(time.Now(), Command{Key: testKey, Seq: seq, At: time.Now()})
			if ok {
				d.note(step)
			}
			return ok
		}
		if !suspend() || suspend() {
			t.Fatal("suspending by hand is one transition, not two")
		}
		f := d.m.suspension()
		if !f.ByHand || f.Reason != ReasonByHand || !f.Until.IsZero() || f.ProbeDue(time.Now().Add(1000*time.Hour), time.Minute) {
			t.Errorf("flag by hand: %+v", f)
		}
		if _, ok := d.m.startProbe(time.Now(), f.Trip, Probe{}); ok {
			t.Error("a probe of a suspension by hand")
		}
		d.observe(d.probe(f.Trip, true))
		if d.m.suspension() == nil {
			t.Error("a probe ended a suspension by hand")
		}
		time.Sleep(time.Hour)
		seq++
		if !resume(seq) || d.m.suspension() != nil {
			t.Fatal("not resumed by hand")
		}
		if resume(seq) {
			t.Error("the same resume again is a transition")
		}
		if seq--; suspend() {
			t.Error("a redelivered suspend from before the resume suspends again")
		}
		d.want(t, "suspended", "resumed")

		d.failUntilTripped(t)
		if !suspend() || !d.m.suspension().ByHand || d.m.suspension().Trips != 1 {
			t.Errorf("by hand over an automatic one: %+v", d.m.suspension())
		}
		seq++
		resume(seq)
		for range 3 {
			d.observe(d.failure())
			time.Sleep(time.Second)
		}
		seq++
		if resume(seq) {
			t.Error("resuming an active URL is a transition")
		}
		if d.observe(d.failure()) {
			t.Error("a resume left failures in the window")
		}
		if f := d.failUntilTripped(t); f.Trips != 1 {
			t.Errorf("trips after a resume by hand: got %d, want 1", f.Trips)
		}
	})
}

// A day in the life of one URL, drawn at random, against a model that keeps
// every result.
func TestMachineKeepsTheRule(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rules := drawRules(t)
		l := rules.limits()
		m := newMachine(testKey, "hooks.example.com", rules)
		type entry struct{ seq, at int64 }
		var (
			failed  []entry // since the last success or resume
			now     = int64(1_700_000_000_000)
			seq     uint64
			state   = Active
			names   = map[string]bool{}
			warned  bool
			batches [][]Observation
		)
		legal := func(steps []Transition) {
			for _, s := range steps {
				name := string(s.Event) + " " + s.Flag.Trip
				if names[name] {
					t.Fatalf("step %q twice", name)
				}
				names[name] = true
				switch s.Event {
				case EventAtRisk:
					if state != Active || warned {
						t.Fatalf("warned in state %s, warned before: %v", state, warned)
					}
					warned = true
				case EventSuspended:
					state = Suspended
					if d := s.Flag.Until.UnixMilli() - now; d > l.Longest || float64(d) < 0.9*float64(l.Duration)-1 {
						t.Fatalf("a suspension of %d ms", d)
					}
				case EventProbing:
					if state != Suspended {
						t.Fatalf("probing from state %s", state)
					}
					state = Probing
				case EventResumed:
					if state == Active {
						t.Fatal("resumed while active")
					}
					state, failed = Active, nil
				}
			}
		}
		// exact reports whether the rule holds for the last window milliseconds.
		exact := func(window int64) bool {
			var in []entry
			for _, e := range failed {
				if e.at >= now-window {
					in = append(in, e)
				}
			}
			return int64(len(in)) >= l.Failures && in[len(in)-1].at-in[0].at >= l.Span
		}
		observe := func(o Observation) {
			seq++
			o.Key, o.Seq, o.Result.At = testKey, seq, time.UnixMilli(now)
			batches = append(batches, []Observation{o})
			steps, candidate := m.observeAll(time.UnixMilli(now), batches[len(batches)-1])
			if !o.Result.Delivered && !o.Result.Probe && state == Active {
				failed = append(failed, entry{int64(seq), now})
			}
			if o.Result.Delivered && !o.Result.Probe {
				failed, warned = nil, false
			}
			legal(steps)
			if candidate && !exact(l.Window) {
				t.Fatal("a candidate that does not fulfil the rule")
			}
			if (m.suspension() == nil) != (state == Active) {
				t.Fatalf("flag %+v in state %s", m.suspension(), state)
			}
		}
		probe := func(delivered bool) {
			if f := m.suspension(); f != nil {
				observe(Observation{Result: Result{Probe: true, Trip: f.Trip, Delivered: delivered, Reason: "timeout"}})
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				now += rapid.OneOf(rapid.Int64Range(0, l.Window/10), rapid.Int64Range(0, 2*l.Window)).Draw(t, "ms")
				if len(failed) > 0 && failed[len(failed)-1].at < now-l.Window {
					warned = false
				}
			},
			"failure": func(t *rapid.T) {
				for range rapid.IntRange(1, 4).Draw(t, "n") {
					now++ // a resume hides failures of its own millisecond
					// The window may be empty only because its partial bucket went.
					if first := now - l.Window + l.Width; !slices.ContainsFunc(failed, func(e entry) bool { return e.at >= first }) {
						warned = false
					}
					observe(Observation{Result: Result{Reason: "timeout"}})
				}
			},
			"success": func(*rapid.T) { observe(Observation{Result: Result{Delivered: true}}) },
			"trip": func(*rapid.T) {
				fulfilled, surely := exact(l.Window), exact(l.Window-l.Width)
				if state != Active {
					fulfilled, surely = false, false
				}
				step, ok := m.trip(time.UnixMilli(now))
				if ok && !fulfilled {
					t.Fatal("suspended without the rule")
				}
				if !ok && surely {
					t.Fatal("not suspended though the rule is fulfilled")
				}
				if ok {
					legal([]Transition{step})
					failed, warned = nil, false
				}
			},
			"probe starts": func(*rapid.T) {
				if f := m.suspension(); f != nil {
					if step, ok := m.startProbe(time.UnixMilli(now), f.Trip, Probe{StartedAt: time.UnixMilli(now), By: "d"}); ok {
						legal([]Transition{step})
					}
				}
			},
			"probe fails":    func(*rapid.T) { probe(false) },
			"probe succeeds": func(*rapid.T) { probe(true) },
			"redelivery": func(t *rapid.T) {
				if len(batches) == 0 {
					t.Skip("nothing to repeat")
				}
				again := rapid.SampledFrom(batches).Draw(t, "batch")
				before := m.suspension()
				steps, _ := m.observeAll(time.UnixMilli(now), again)
				if len(steps) != 0 || !cmp.Equal(before, m.suspension()) {
					t.Fatalf("a batch seen before makes steps: %+v", steps)
				}
				// A success of a URL without a window left no trace: it may empty
				// the window again. That is on the careful side.
				if again[0].Result.Delivered && !again[0].Result.Probe && m.win != nil && m.win.First == 0 {
					failed, warned = nil, false
				}
			},
		})
	})
}

// newMachine returns the machine of an active URL without a past. The rules must be valid.
func newMachine(key Key, host string, rules Rules) *machine {
	return &machine{key: key, host: host, limits: rules.limits()}
}
