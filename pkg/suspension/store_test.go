package suspension

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"gancho/pkg/redistest"
)

// onBoth runs a test against the embedded server and the real one.
func onBoth(t *testing.T, test func(t *testing.T, client *redis.Client)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
		t.Cleanup(func() { _ = client.Close() })
		test(t, client)
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		test(t, redistest.Start(t).Client())
	})
}

// world is a store, a journal and a clock that a test turns by hand.
type world struct {
	t     *testing.T
	store *Store
	now   time.Time
	seq   uint64
}

func newWorld(t *testing.T, client redis.UniversalClient, rules Rules) *world {
	t.Helper()
	w := &world{t: t, store: newStore(t, client, rules), now: time.UnixMilli(1_700_000_000_000)}
	w.restore()
	return w
}

func newStore(t testing.TB, client redis.UniversalClient, rules Rules) *Store {
	t.Helper()
	s, err := NewStore(client, rules)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) restore(flags ...Flag) int {
	w.t.Helper()
	n, err := w.store.restore(w.t.Context(), w.now, flags)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func urlKey(n int) Key { return Key{Account: "acme", URLKey: fmt.Sprintf("%032x", n)} }

func (w *world) result(key Key, r Result) Observation {
	w.seq++
	r.At = w.now
	return Observation{Key: key, URLHost: "hooks.example.com:8443", Seq: w.seq, Result: r}
}

func (w *world) failure(key Key) Observation {
	return w.result(key, Result{Reason: "status_5xx", Status: 503})
}

func (w *world) success(key Key) Observation {
	return w.result(key, Result{Delivered: true, Status: 204})
}

func (w *world) probe(f *Flag, delivered bool) Observation {
	return w.result(f.Key(), Result{Probe: true, Trip: f.Trip, Delivered: delivered, Reason: "timeout"})
}

func (w *world) observe(batch ...Observation) []Decision {
	w.t.Helper()
	ds, err := w.store.observe(w.t.Context(), w.now, batch)
	if err != nil {
		w.t.Fatal(err)
	}
	return ds
}

func (w *world) get(key Key) *Flag {
	w.t.Helper()
	f, err := w.store.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func (w *world) massNow() Mass {
	w.t.Helper()
	m, err := w.store.mass(w.t.Context(), w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// events lists the steps of decisions as "event url".
func events(ds []Decision) []string {
	out := []string{}
	for _, d := range ds {
		for _, s := range d.Transitions {
			out = append(out, string(s.Event))
		}
	}
	return out
}

func wantEvents(t *testing.T, ds []Decision, want ...string) {
	t.Helper()
	if diff := gocmp.Diff(append([]string{}, want...), events(ds)); diff != "" {
		t.Fatalf("steps (-want +got):\n%s", diff)
	}
}

// suspend brings the URLs to a suspension by five failures each, which takes
// 4 s, and returns what was decided in the end.
func (w *world) suspend(keys ...Key) []Decision {
	w.t.Helper()
	var batch []Observation
	for i := range 5 {
		if i > 0 {
			w.now = w.now.Add(time.Second)
		}
		for _, key := range keys {
			batch = append(batch, w.failure(key))
		}
	}
	w.observe(batch...)
	w.now = w.now.Add(w.store.rules.Settle())
	return w.observe()
}

func TestStoreFromFirstFailureToResume(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		key := urlKey(1)
		if ds := w.observe(w.success(key)); len(ds) != 0 {
			t.Errorf("a success alone: %+v", ds)
		}
		first := w.now
		wantEvents(t, w.observe(w.failure(key)))
		ds := w.observe(w.failure(key))
		wantEvents(t, ds, "at_risk")
		if f := ds[0].Transitions[0].Flag; ds[0].Flag != nil || f.State != Active || f.Evidence.Failures != 2 || f.URLHost != "hooks.example.com:8443" {
			t.Errorf("warning: %+v", ds[0])
		}
		w.now = w.now.Add(3 * time.Second)
		wantEvents(t, w.observe(w.failure(key), w.failure(key)))
		last := w.now
		w.now = w.now.Add(time.Second - time.Millisecond)
		wantEvents(t, w.observe()) // watched for less than Settle
		w.now = w.now.Add(time.Millisecond)
		ds = w.observe()
		wantEvents(t, ds, "suspended")
		wantEvents(t, w.observe())
		f := w.get(key)
		want := &Flag{
			Account: key.Account, URLKey: key.URLKey, URLHost: "hooks.example.com:8443", State: Suspended,
			Trip: fmt.Sprintf("%d-5", first.UnixMilli()), Since: w.now.UTC(), Until: f.Until, Trips: 1, Reason: ReasonAlwaysFailing,
			Evidence: Evidence{Failures: 4, FirstAt: first.UTC(), LastAt: last.UTC(), Statuses: []string{"503"}},
		}
		if diff := gocmp.Diff(want, f); diff != "" {
			t.Errorf("stored flag (-want +got):\n%s", diff)
		}
		if diff := gocmp.Diff(f, ds[0].Flag); diff != "" {
			t.Errorf("decided flag (-stored +decided):\n%s", diff)
		}
		if diff := gocmp.Diff(Transition{EventSuspended, w.now.UTC(), *f}, ds[0].Transitions[0]); diff != "" {
			t.Errorf("step (-want +got):\n%s", diff)
		}

		// Results that were in flight do nothing, but tell that there is a flag.
		if ds := w.observe(w.failure(key), w.success(urlKey(2))); len(ds) != 1 || ds[0].Flag == nil || len(ds[0].Transitions) != 0 {
			t.Errorf("a failure of a suspended URL: %+v", ds)
		}

		w.now = f.Until
		begun := Probe{StartedAt: w.now.UTC(), By: "dispatcher-1"}
		for i, want := range [][]string{{"probing"}, nil} {
			d, err := w.store.startProbe(t.Context(), w.now, key, f.Trip, begun)
			if err != nil {
				t.Fatal(err)
			}
			wantEvents(t, []Decision{d}, want...)
			if d.Flag.State != Probing || !gocmp.Equal(d.Flag.Probe, &begun) {
				t.Errorf("start %d of the probe: %+v", i, d.Flag)
			}
		}
		wantEvents(t, w.observe(w.probe(f, false)), "suspended")
		again := w.get(key)
		if again.Trips != 2 || again.State != Suspended || again.Probe != nil || again.Trip == f.Trip {
			t.Errorf("after a failed probe: %+v", again)
		}
		ds = w.observe(w.probe(f, true)) // of the first trip
		wantEvents(t, ds)
		if diff := gocmp.Diff(again, ds[0].Flag); diff != "" {
			t.Errorf("an old probe changed the flag:\n%s", diff)
		}
		w.now = again.Until
		good := w.probe(again, true)
		ds = w.observe(good)
		wantEvents(t, ds, "resumed")
		if ds[0].Flag != nil || w.get(key) != nil || ds[0].Transitions[0].Flag.Trip != again.Trip {
			t.Errorf("after a good probe: %+v", ds[0])
		}
		if ds = w.observe(good); len(ds) != 1 || ds[0].Flag != nil || len(ds[0].Transitions) != 0 {
			t.Errorf("the good probe redelivered: %+v", ds)
		}
	})
}

func TestHealthyURLsLeaveNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		var batch []Observation
		for i := range 600 {
			batch = append(batch, w.success(urlKey(i)))
		}
		w.observe(batch...)
		names := client.Keys(t.Context(), "*").Val()
		slices.Sort(names)
		want := []string{accountsPrefix + "5666666", accountsPrefix + "5666666:acme", activePrefix + fmt.Sprint(w.now.Unix()/60), epochKey}
		if diff := gocmp.Diff(want, names); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
		if got := w.massNow().Active; got < 590 || got > 610 {
			t.Errorf("active URLs: got %d, want about 600", got)
		}
		// Monitors that are behind note the success: failures from before may come.
		old := w.success(urlKey(1))
		w.now = w.now.Add(6 * time.Second)
		w.observe(old)
		if client.Exists(t.Context(), windowKey(urlKey(1))).Val() != 1 {
			t.Error("a late success left no trace")
		}
		// Windows go by themselves, flags never.
		w.suspend(urlKey(2))
		if ttl := client.PTTL(t.Context(), windowKey(urlKey(2))).Val(); ttl <= 0 || ttl > testRules().Window {
			t.Errorf("window expires in %v, want within %v", ttl, testRules().Window)
		}
		if ttl := client.PTTL(t.Context(), flagKey(urlKey(2))).Val(); ttl != -1 {
			t.Errorf("flag expires in %v, want never", ttl)
		}
	})
}

func TestSameBatchAgainChangesNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		key := urlKey(1)
		var all []Observation
		for range 3 {
			o := w.failure(key)
			all = append(all, o)
			w.observe(o)
			w.now = w.now.Add(time.Second)
		}
		before := client.Get(t.Context(), windowKey(key)).Val()
		for range 5 {
			w.observe(all...)
			w.observe(all[1])
		}
		if after := client.Get(t.Context(), windowKey(key)).Val(); after != before {
			t.Errorf("window:\nbefore %s\nafter  %s", before, after)
		}
		// A batch that is partly new counts its new part.
		o := w.failure(key)
		w.observe(all[2], o)
		w.now = w.now.Add(time.Second)
		wantEvents(t, w.observe(), "suspended")
	})
}

// Eight monitors get the same and different parts of the journal; each step
// of a URL is made by exactly one.
func TestParallelStoresMakeEachStepOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		const urls, monitors = 15, 8
		stores := make([]*Store, monitors)
		for i := range stores {
			stores[i] = newStore(t, client, testRules())
		}
		steps := map[string]int{}
		var mu sync.Mutex
		all := func(batch func(monitor int) []Observation) {
			var wg sync.WaitGroup
			for i, s := range stores {
				wg.Go(func() {
					ds, err := s.observe(t.Context(), w.now, batch(i))
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					for _, d := range ds {
						for _, step := range d.Transitions {
							steps[string(step.Event)+" "+d.Key.URLKey]++
						}
					}
				})
			}
			wg.Wait()
		}
		for round := range 30 {
			parts := make([][]Observation, monitors)
			for u := range urls {
				for i := range parts {
					parts[i] = append(parts[i], w.failure(urlKey(u)))
				}
			}
			all(func(i int) []Observation {
				if round%2 == 0 {
					return slices.Concat(parts...) // everything is delivered to everyone
				}
				return parts[i]
			})
			w.now = w.now.Add(500 * time.Millisecond)
		}
		var probes []Observation
		for u := range urls {
			f := w.get(urlKey(u))
			if f == nil {
				t.Fatalf("URL %d was not suspended", u)
			}
			probes = append(probes, w.probe(f, true))
		}
		all(func(int) []Observation { return probes })
		want := map[string]int{}
		for u := range urls {
			for _, event := range []Event{EventAtRisk, EventSuspended, EventResumed} {
				want[string(event)+" "+urlKey(u).URLKey] = 1
			}
		}
		if diff := gocmp.Diff(want, steps); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
	})
}

func TestLateSuccessFromAnotherMonitorEmptiesTheWindow(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		key := urlKey(1)
		w.observe(w.failure(key))
		success := w.success(key) // another monitor holds it
		for range 3 {
			w.now = w.now.Add(time.Second)
			w.observe(w.failure(key))
		}
		if n := client.ZCard(t.Context(), pendingKey).Val(); n != 1 {
			t.Fatalf("%d candidates, want 1", n)
		}
		w.observe(success)
		w.now = w.now.Add(2 * time.Second)
		wantEvents(t, w.observe())
		if w.get(key) != nil {
			t.Error("suspended with a success in the window")
		}
	})
}

func TestMassSuspensionIsHeld(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	tests := map[string]struct {
		failing, healthy int
		want             int // suspended
	}{
		"nineteen of nineteen":         {19, 0, 19},
		"twenty of twenty":             {20, 0, 0},
		"twenty-five of fifty":         {25, 25, 0},
		"twenty-five of six hundred":   {25, 575, 25},
		"three hundred of six hundred": {300, 300, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := redistest.Start(t).Client() // the embedded server would take most of a minute
			w := newWorld(t, client, testRules())
			var failing []Key
			suspended := 0
			round := func() {
				var batch []Observation
				for _, key := range failing {
					batch = append(batch, w.failure(key))
				}
				for i := range test.healthy {
					batch = append(batch, w.success(spread(10_000+i)))
				}
				for _, e := range events(w.observe(batch...)) {
					if e == string(EventSuspended) {
						suspended++
					}
				}
				w.now = w.now.Add(500 * time.Millisecond)
			}
			for i := range test.failing {
				failing = append(failing, spread(i))
			}
			for range 30 {
				round()
			}
			if suspended != test.want {
				t.Errorf("suspended: got %d, want %d", suspended, test.want)
			}
			m := w.massNow()
			if m.Holding != (test.want == 0) || m.Candidates != test.failing {
				t.Errorf("guard: %+v", m)
			}
			if test.want > 0 {
				return
			}
			// Our side recovers: all but five succeed. The guard lets go, and
			// those five are suspended.
			var batch []Observation
			for _, key := range failing[5:] {
				batch = append(batch, w.success(key))
			}
			w.observe(batch...)
			failing = failing[:5]
			for range 20 {
				round()
			}
			if m := w.massNow(); suspended != 5 || m.Holding || m.Candidates != 5 {
				t.Errorf("after the recovery: %d suspended, guard %+v", suspended, m)
			}
			if n := client.ZCard(t.Context(), pendingKey).Val(); n != 0 {
				t.Errorf("%d URLs are still pending", n)
			}
		})
	}
}

// spread returns the n-th URL of many accounts.
func spread(n int) Key {
	return Key{Account: fmt.Sprintf("account-%d", n%97), URLKey: fmt.Sprintf("%032x", n)}
}

// TestGuardCountsAccounts: one account's dead URLs are suspended and keep no other's from it; many accounts' are
// held, whatever a large account does.
func TestGuardCountsAccounts(t *testing.T) {
	t.Parallel()
	of := func(account string, n int) Key { return Key{Account: account, URLKey: fmt.Sprintf("%032x", n)} }
	for name, test := range map[string]struct {
		attackers, others      int // failing URLs of one account, of others with one each
		largest, rest          int // healthy URLs of one account, of others with one each
		suspended, failingFair int
	}{
		"thirty of one account alone":              {30, 0, 0, 10, 30, 1},
		"a hundred of one account and one other":   {100, 1, 0, 10, 101, 3},
		"nine others beside it":                    {100, 9, 0, 10, 109, 19},
		"ten others beside it":                     {100, 10, 0, 10, 0, 21},
		"many accounts":                            {0, 25, 0, 10, 0, 25},
		"many accounts and a large healthy one":    {0, 25, 800, 100, 0, 25},
		"few of many, and a large healthy account": {0, 25, 300, 700, 25, 25},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
			t.Cleanup(func() { _ = client.Close() })
			w := newWorld(t, client, testRules())
			suspended := 0
			for range 8 {
				var batch []Observation
				for i := range test.attackers {
					batch = append(batch, w.failure(of("attacker", i)))
				}
				for i := range test.others {
					batch = append(batch, w.failure(of(fmt.Sprint("other-", i), i)))
				}
				for i := range test.largest {
					batch = append(batch, w.success(of("large", i)))
				}
				for i := range test.rest {
					batch = append(batch, w.success(of(fmt.Sprint("healthy-", i), i)))
				}
				for _, e := range events(w.observe(batch...)) {
					if e == string(EventSuspended) {
						suspended++
					}
				}
				w.now = w.now.Add(time.Second)
			}
			if suspended != test.suspended {
				t.Errorf("%d URLs are suspended, want %d; guard %+v", suspended, test.suspended, w.massNow())
			}
			if got := fair(test.attackers+test.others, max(test.attackers, min(test.others, 1))); got != test.failingFair {
				t.Errorf("failing URLs count as %d, want %d", got, test.failingFair)
			}
		})
	}
}

func TestCandidatesAgeOut(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		for i := range 10 {
			w.suspend(urlKey(i))
		}
		if got := w.massNow().Candidates; got != 10 {
			t.Errorf("candidates: got %d, want 10", got)
		}
		w.observe(w.probe(w.get(urlKey(0)), true))
		if got := w.massNow().Candidates; got != 9 {
			t.Errorf("candidates after one works again: got %d, want 9", got)
		}
		w.now = w.now.Add(massWindow)
		w.suspend(urlKey(20))
		if n := client.ZCard(t.Context(), recentKey).Val(); n != 1 {
			t.Errorf("members after 15 min: got %d, want 1", n)
		}
	})
}

func TestByHandInStore(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		key := urlKey(1)
		command := func(seq uint64) Command {
			return Command{Key: key, URLHost: "hooks.example.com", Seq: seq, At: w.now}
		}
		do := func(f func(context.Context, time.Time, Command) (Decision, error), seq uint64, want ...string) *Flag {
			t.Helper()
			d, err := f(t.Context(), w.now, command(seq))
			if err != nil {
				t.Fatal(err)
			}
			wantEvents(t, []Decision{d}, want...)
			if diff := gocmp.Diff(w.get(key), d.Flag); diff != "" {
				t.Errorf("flag (-stored +decided):\n%s", diff)
			}
			return d.Flag
		}
		f := do(w.store.suspendByHand, 1, "suspended")
		if !f.ByHand || f.Reason != ReasonByHand || !f.Until.IsZero() || f.URLHost != "hooks.example.com" || f.Evidence.Statuses == nil {
			t.Errorf("flag by hand: %+v", f)
		}
		do(w.store.suspendByHand, 1)
		do(w.store.suspendByHand, 2)
		do(w.store.resume, 3, "resumed")
		do(w.store.suspendByHand, 2) // redelivered after the resume
		do(w.store.resume, 3)
		do(w.store.resume, 4)
		if w.get(key) != nil {
			t.Error("suspended by an old command")
		}
		w.now = w.now.Add(time.Second)
		w.suspend(key)
		if f := do(w.store.suspendByHand, 5, "suspended"); !f.ByHand || f.Evidence.Failures != 5 {
			t.Errorf("by hand over an automatic one: %+v", f)
		}
		do(w.store.resume, 6, "resumed")
		w.now = w.now.Add(time.Second)
		wantEvents(t, w.suspend(key), "suspended")
		do(w.store.resume, 7, "resumed")
	})
}

func TestAllListsEveryFlag(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		var want []Flag
		for i := range 1500 {
			c := Command{Key: urlKey(i), URLHost: "hooks.example.com", Seq: uint64(i + 1), At: w.now}
			d, err := w.store.suspendByHand(t.Context(), w.now, c)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, *d.Flag)
		}
		got, err := w.store.All(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(got, func(a, b Flag) int { return cmp.Compare(a.URLKey, b.URLKey) })
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("flags (-want +got):\n%s", diff)
		}
	})
}

func TestRestoreAfterFlush(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		auto, hand, probing, resumed := urlKey(1), urlKey(2), urlKey(3), urlKey(4)
		w.suspend(auto, probing, resumed)
		if _, err := w.store.suspendByHand(t.Context(), w.now, Command{Key: hand, URLHost: "h.example", Seq: 1, At: w.now}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.store.startProbe(t.Context(), w.now, probing, w.get(probing).Trip, Probe{StartedAt: w.now.UTC(), By: "d1"}); err != nil {
			t.Fatal(err)
		}
		was := w.get(resumed)
		w.observe(w.probe(was, true))
		if n := w.restore(*was); n != 0 || w.get(resumed) != nil {
			t.Error("a copy that was not yet deleted brings back a resumed flag")
		}

		copies, err := w.store.All(t.Context())
		if err != nil || len(copies) != 3 {
			t.Fatalf("flags: %+v, %v", copies, err)
		}
		if n := w.restore(copies...); n != 0 {
			t.Errorf("%d of the flags that are there were restored", n)
		}
		client.FlushAll(t.Context())
		if lost, err := w.store.Lost(t.Context()); err != nil || !lost {
			t.Fatalf("Lost after a flush: %v, %v", lost, err)
		}
		failed := w.probe(w.flagOf(copies, probing), false)
		if _, err := w.store.observe(t.Context(), w.now, []Observation{failed}); !errors.Is(err, ErrLost) {
			t.Fatalf("Observe after a flush: %v, want ErrLost", err)
		}
		if n := w.restore(copies...); n != 3 {
			t.Errorf("restored %d flags, want 3", n)
		}
		for _, f := range copies {
			if diff := gocmp.Diff(&f, w.get(f.Key())); diff != "" {
				t.Errorf("restored flag (-want +got):\n%s", diff)
			}
		}
		if lost, err := w.store.Lost(t.Context()); err != nil || lost {
			t.Errorf("Lost after Restore: %v, %v", lost, err)
		}
		// Observations that failed with ErrLost are given again.
		wantEvents(t, w.observe(failed), "suspended")
		newer := w.get(probing)
		if n := w.restore(copies...); n != 0 {
			t.Errorf("%d newer flags were replaced", n)
		}
		if diff := gocmp.Diff(newer, w.get(probing)); diff != "" {
			t.Errorf("newer flag (-want +got):\n%s", diff)
		}
	})
}

func TestCandidateDoesNotReplaceARestoredFlag(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		key := urlKey(1)
		w.suspend(key)
		known := w.get(key)
		client.Del(t.Context(), flagKey(key))
		for range 4 {
			w.observe(w.failure(key))
			w.now = w.now.Add(time.Second)
		}
		if n := client.ZCard(t.Context(), pendingKey).Val(); n != 1 {
			t.Fatalf("%d candidates, want 1", n)
		}
		w.restore(*known)
		w.now = w.now.Add(time.Second)
		wantEvents(t, w.observe())
		if diff := gocmp.Diff(known, w.get(key)); diff != "" {
			t.Errorf("restored flag (-want +got):\n%s", diff)
		}
		if n := client.ZCard(t.Context(), pendingKey).Val(); n != 0 {
			t.Errorf("%d candidates are left", n)
		}
	})
}

func (w *world) flagOf(flags []Flag, key Key) *Flag {
	w.t.Helper()
	i := slices.IndexFunc(flags, func(f Flag) bool { return f.Key() == key })
	if i < 0 {
		w.t.Fatalf("no flag of %s", key)
	}
	return &flags[i]
}

func TestScriptIsLoadedAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		var batch []Observation
		for i := range 700 {
			batch = append(batch, w.failure(urlKey(i)), w.failure(urlKey(i)))
		}
		client.ScriptFlush(t.Context())
		ds := w.observe(batch...)
		if len(ds) != 700 {
			t.Fatalf("decisions: got %d, want a warning of 700 URLs", len(ds))
		}
		for _, d := range ds {
			if f := d.Transitions[0].Flag; f.Evidence.Failures != 2 {
				t.Fatalf("%s: %d failures counted, want 2", d.Key, f.Evidence.Failures)
			}
		}
	})
}

func TestFlagsSurviveKillOfRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, err := Open(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	w := newWorld(t, client, testRules())
	w.suspend(urlKey(1))
	before := w.get(urlKey(1))

	server.Kill()
	if _, err := w.store.Observe(t.Context(), []Observation{w.failure(urlKey(2))}); err == nil || errors.Is(err, ErrLost) {
		t.Errorf("Observe without a server: %v, want a connection error", err)
	}
	if _, err := w.store.Lost(t.Context()); err == nil {
		t.Error("Lost without a server gives no error")
	}
	server.Restart()
	// Connections from before the kill may give one more error each.
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := w.store.Lost(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if diff := gocmp.Diff(before, w.get(urlKey(1))); diff != "" {
		t.Errorf("flag after the restart (-want +got):\n%s", diff)
	}
	wantEvents(t, w.observe(w.probe(before, true)), "resumed")

	server.Pause()
	if _, err := w.store.Observe(t.Context(), nil); err == nil {
		t.Error("Observe on a hanging server gives no error")
	}
	server.Continue()
}

// TestBytesPerFailingURL fills windows to the brim: every bucket in use.
func TestBytesPerFailingURL(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	rules := DefaultRules()
	rules.MinFailures = 1_000_000
	w := newWorld(t, client, rules)
	w.seq = 4_000_000_000
	key := Key{Account: "account-0123456789", URLKey: urlKey(1).URLKey}
	measure := func() int64 {
		n, err := client.MemoryUsage(t.Context(), windowKey(key), 0).Result()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	w.observe(w.failure(key))
	t.Logf("one failure: %d bytes", measure())
	for i := range 2000 {
		o := w.failure(key)
		if i%100 == 0 {
			o.Result = Result{At: o.Result.At, Reason: "timeout"}
		}
		w.observe(o)
		w.now = w.now.Add(700 * time.Millisecond)
	}
	var win window
	body := client.Get(t.Context(), windowKey(key)).Val()
	if err := json.Unmarshal([]byte(body), &win); err != nil {
		t.Fatal(err)
	}
	if got := len(win.Buckets) / 2; got < buckets-1 {
		t.Errorf("buckets in use: %d", got)
	}
	got := measure()
	t.Logf("full window: %d bytes: %s", got, body)
	if got > 400 {
		t.Errorf("a failing URL takes %d bytes, want at most 400", got)
	}
	w.store = newStore(t, client, DefaultRules())
	w.observe(w.failure(key))
	w.now = w.now.Add(5 * time.Second)
	wantEvents(t, w.observe(), "suspended")
	t.Logf("suspended: window %d bytes, flag %d bytes", measure(), client.MemoryUsage(t.Context(), flagKey(key), 0).Val())
}

// TestStoreKeepsTheMachine feeds the same days to a store and to a machine in
// memory and compares every record. The days are wilder than real ones: sequences and times out of
// order, probes of any trip, commands again and again.
func TestStoreKeepsTheMachine(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		server.FlushAll()
		rules := drawRules(t)
		store, err := NewStore(client, rules)
		if err != nil {
			t.Fatal(err)
		}
		const host = "hooks.example.com"
		m := newMachine(testKey, host, rules)
		at := time.UnixMilli(1_700_000_000_000)
		trips := []string{"", "1-1"}
		var copies []Flag

		m.base = 1
		store.Revision = func(Key) (uint64, bool) { return 0, true }
		run := func(decide func(*machine, *turn)) *turn {
			made := &turn{key: testKey, host: host, base: 1}
			made.decide = func(m *machine) { decide(m, made) }
			if err := store.run(ctx, []*turn{made}, nil); err != nil {
				t.Fatal(err)
			}
			return made
		}
		check := func(want []Transition, got []Transition) {
			t.Helper()
			if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("steps (-machine +store):\n%s", diff)
			}
			for _, s := range want {
				trips = append(trips, s.Flag.Trip)
				if s.Flag.State != Active {
					copies = append(copies, s.Flag)
				}
			}
			var win *window
			if body, err := client.Get(ctx, windowKey(testKey)).Result(); err == nil {
				win = new(window)
				if err := json.Unmarshal([]byte(body), win); err != nil {
					t.Fatal(err)
				}
			}
			if diff := gocmp.Diff(m.load(at.UnixMilli()), win, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("window (-machine +store):\n%s", diff)
			}
			var flag *record
			if body, err := client.Get(ctx, flagKey(testKey)).Result(); err == nil {
				flag = new(record)
				if err := json.Unmarshal([]byte(body), flag); err != nil {
					t.Fatal(err)
				}
			}
			if diff := gocmp.Diff(m.flag, flag, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("flag (-machine +store):\n%s", diff)
			}
		}
		one := func(step Transition, ok bool, d Decision, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			var want []Transition
			if ok {
				want = []Transition{step}
			}
			check(want, d.Transitions)
		}
		drawTime := func(t *rapid.T, label string) time.Time {
			ago := rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-100, rules.Window.Milliseconds()*5/4)).Draw(t, label)
			return at.Add(-time.Duration(ago) * time.Millisecond)
		}
		seq := uint64(0)
		drawSeq := func(t *rapid.T) uint64 {
			if rapid.IntRange(0, 4).Draw(t, "old") == 0 {
				return rapid.Uint64Range(1, seq+1).Draw(t, "seq")
			}
			seq += rapid.Uint64Range(1, 3).Draw(t, "ahead")
			return seq
		}
		hand := uint64(0)
		drawCommand := func(t *rapid.T) Command {
			if rapid.IntRange(0, 3).Draw(t, "again") > 0 {
				hand++
			}
			return Command{Key: testKey, URLHost: host, Seq: hand, At: drawTime(t, "given ago")}
		}
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				ms := rapid.OneOf(
					rapid.Int64Range(1, rules.Window.Milliseconds()/8),
					rapid.Int64Range(1, 2*rules.Window.Milliseconds()),
					rapid.Int64Range(1, 4*rules.MaxDuration.Milliseconds()),
				).Draw(t, "ms")
				at = at.Add(time.Duration(ms) * time.Millisecond)
				server.FastForward(time.Duration(ms) * time.Millisecond)
			},
			"results": func(t *rapid.T) {
				var batch []Observation
				for range rapid.IntRange(1, 6).Draw(t, "n") {
					o := Observation{Key: testKey, URLHost: host, Seq: drawSeq(t), Result: Result{At: drawTime(t, "ago")}}
					switch rapid.IntRange(0, 11).Draw(t, "kind") {
					case 0:
						o.Result.Delivered = true
					case 1:
						o.Result.Probe = true
						o.Result.Delivered = rapid.Bool().Draw(t, "delivered")
						o.Result.Reason = "tls"
						o.Result.Trip = rapid.SampledFrom(trips).Draw(t, "trip")
						if f := m.suspension(); f != nil && rapid.Bool().Draw(t, "current") {
							o.Result.Trip = f.Trip
						}
					default:
						o.Result.Reason = "status_5xx"
						o.Result.Status = rapid.IntRange(500, 506).Draw(t, "status")
					}
					batch = append(batch, o)
				}
				_, deltas := fold(batch)
				d := deltas[testKey]
				want, candidate := m.observe(at.UnixMilli(), d)
				made := run(func(m *machine, made *turn) { made.steps, made.candidate = m.observe(at.UnixMilli(), d) })
				if made.candidate != candidate {
					t.Fatalf("candidate: machine %v, store %v", candidate, made.candidate)
				}
				check(want, made.steps)
			},
			"trip": func(t *rapid.T) {
				want, ok := m.trip(at)
				made := run(func(m *machine, made *turn) {
					if step, ok := m.trip(at); ok {
						made.steps = []Transition{step}
					}
				})
				one(want, ok, made.decision(), nil)
			},
			"probe starts": func(t *rapid.T) {
				trip := rapid.SampledFrom(trips).Draw(t, "trip")
				if f := m.suspension(); f != nil && rapid.Bool().Draw(t, "current") {
					trip = f.Trip
				}
				p := Probe{StartedAt: at, By: "d1"}
				want, ok := m.startProbe(at, trip, p)
				d, err := store.startProbe(ctx, at, testKey, trip, p)
				one(want, ok, d, err)
			},
			"suspend": func(t *rapid.T) {
				c := drawCommand(t)
				want, ok := m.suspendByHand(at, c)
				d, err := store.suspendByHand(ctx, at, c)
				one(want, ok, d, err)
			},
			"resume": func(t *rapid.T) {
				c := drawCommand(t)
				want, ok := m.resume(at, c)
				d, err := store.resume(ctx, at, c)
				one(want, ok, d, err)
			},
			"flag is lost": func(t *rapid.T) {
				m.flag = nil
				if err := client.Del(ctx, flagKey(testKey)).Err(); err != nil {
					t.Fatal(err)
				}
			},
			"restore": func(t *rapid.T) {
				if len(copies) == 0 {
					t.Skip("no flag yet")
				}
				f := rapid.SampledFrom(copies).Draw(t, "copy")
				want := m.restore(at, f)
				n, err := store.restore(ctx, at, []Flag{f})
				if err != nil {
					t.Fatal(err)
				}
				if (n == 1) != want {
					t.Fatalf("restored: machine %v, store %d", want, n)
				}
				check(nil, nil)
			},
		})
	})
}

func TestMembersCarryKeyAndHost(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"hooks.example.com", "hooks.example.com:8443", "[2001:db8::1]:443", ""} {
		key, got, ok := parseMember(member(testKey, host))
		if !ok || key != testKey || got != host {
			t.Errorf("host %q: got %v %q %v", host, key, got, ok)
		}
	}
	if _, _, ok := parseMember("acme:00"); ok {
		t.Error("a member without host is accepted")
	}
}

func TestKeyString(t *testing.T) {
	t.Parallel()
	if got, ok := ParseKey(testKey.String()); !ok || got != testKey {
		t.Errorf("got %v %v, want %v", got, ok, testKey)
	}
	for _, s := range []string{"", "acme", "acme.", ".00", "acme.00.11"} {
		if _, ok := ParseKey(s); ok {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestNewStoreRefusesWrongRules(t *testing.T) {
	t.Parallel()
	if _, err := NewStore(redis.NewClient(&redis.Options{}), Rules{}); err == nil || !strings.Contains(err.Error(), "SUSPENSION_WINDOW") {
		t.Errorf("got %v", err)
	}
}
