package suspension

import (
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
)

// TestNewerRecordWins: Redis may have lost its last writes; the bucket may be behind. Whichever holds the later step is
// right, and a suspension that is only missing in Redis stands.
func TestNewerRecordWins(t *testing.T) {
	t.Parallel()
	key := urlKey(1)
	for name, test := range map[string]struct {
		// redis prepares Redis and returns the bucket's entry.
		redis func(w *world) (copied *Flag, revision uint64)
		want  func(copied, held *Flag) *Flag // of the two, the one that stands
	}{
		"active in both":           {func(*world) (*Flag, uint64) { return nil, 0 }, func(_, _ *Flag) *Flag { return nil }},
		"not in the bucket yet":    {func(w *world) (*Flag, uint64) { w.suspend(key); return nil, 0 }, func(_, held *Flag) *Flag { return held }},
		"the bucket's was deleted": {func(w *world) (*Flag, uint64) { w.suspend(key); return nil, 7 }, func(_, _ *Flag) *Flag { return nil }},
		"suspended again after the deletion": {func(w *world) (*Flag, uint64) {
			w.store.Revision = func(Key) (uint64, bool) { return 7, true }
			w.suspend(key)
			return nil, 7
		}, func(_, held *Flag) *Flag { return held }},
		"a version before revisions": {func(w *world) (*Flag, uint64) {
			w.store.Revision = nil
			w.suspend(key)
			return nil, 7
		}, func(_, held *Flag) *Flag { return held }},
		"lost by Redis": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			w.store.client.Del(w.t.Context(), flagKey(key))
			return f, 3
		}, func(copied, _ *Flag) *Flag { return copied }},
		"lost by Redis with its window": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			w.store.client.Del(w.t.Context(), flagKey(key), windowKey(key))
			return f, 3
		}, func(copied, _ *Flag) *Flag { return copied }},
		"resumed by a probe": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			w.now = f.Until
			w.observe(w.probe(f, true))
			return f, 3
		}, func(_, _ *Flag) *Flag { return nil }},
		"resumed by hand": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			if _, err := w.store.resume(w.t.Context(), w.now, Command{Key: key, Seq: 1, At: w.now, Since: f.Since, Revision: 3}); err != nil {
				w.t.Fatal(err)
			}
			return f, 3
		}, func(_, _ *Flag) *Flag { return nil }},
		"resumed by hand after Redis lost it, by a clock that is behind": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			w.store.client.Del(w.t.Context(), flagKey(key), windowKey(key))
			given := f.Since.Add(-time.Second)
			if _, err := w.store.resume(w.t.Context(), w.now, Command{Key: key, Seq: 1, At: given, Since: f.Since, Revision: 3}); err != nil {
				w.t.Fatal(err)
			}
			return f, 3
		}, func(_, _ *Flag) *Flag { return nil }},
		"probed further in Redis": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			w.observe(w.probe(f, false))
			return f, 3
		}, func(_, held *Flag) *Flag { return held }},
		"probed further in the bucket": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			before := w.store.client.Get(w.t.Context(), flagKey(key)).Val()
			w.observe(w.probe(w.get(key), false))
			f := w.get(key)
			w.store.client.Set(w.t.Context(), flagKey(key), before, 0)
			return f, 3
		}, func(copied, _ *Flag) *Flag { return copied }},
		"suspended by hand in the bucket": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			before := w.store.client.Get(w.t.Context(), flagKey(key)).Val()
			given := w.now.Add(-time.Hour) // by a clock that is behind
			if _, err := w.store.suspendByHand(w.t.Context(), w.now, Command{Key: key, Seq: 1, At: given, Revision: 3}); err != nil {
				w.t.Fatal(err)
			}
			f := w.get(key)
			w.store.client.Set(w.t.Context(), flagKey(key), before, 0)
			return f, 4
		}, func(copied, _ *Flag) *Flag { return copied }},
		"a claim on the probe": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			f.State, f.Probe = Probing, &Probe{StartedAt: w.now, By: "d1"}
			return f, 3
		}, func(_, held *Flag) *Flag { return held }},
		"unreadable in Redis": {func(w *world) (*Flag, uint64) {
			w.suspend(key)
			f := w.get(key)
			w.store.client.Set(w.t.Context(), flagKey(key), "\x00\x00", 0)
			return f, 3
		}, func(copied, _ *Flag) *Flag { return copied }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, client *redis.Client) {
				w := newWorld(t, client, testRules())
				w.store.Revision = func(Key) (uint64, bool) { return 0, true }
				copied, revision := test.redis(w)
				held := w.get(key)
				got, err := w.store.reconcile(t.Context(), w.now, key, copied, revision)
				if err != nil {
					t.Fatal(err)
				}
				want := test.want(copied, held)
				if diff := gocmp.Diff(want, got); diff != "" {
					t.Errorf("what stands (-want +got):\n%s", diff)
				}
				if diff := gocmp.Diff(want, w.get(key)); diff != "" {
					t.Errorf("what Redis holds (-want +got):\n%s", diff)
				}
				if want == nil && w.restore(*zeroIfNil(copied, key)) == 1 && copied != nil {
					t.Error("a suspension that was ended can be restored")
				}
			})
		})
	}
}

func zeroIfNil(f *Flag, key Key) *Flag {
	if f != nil {
		return f
	}
	return &Flag{Account: key.Account, URLKey: key.URLKey, State: Suspended}
}

// TestBeatNoticesLostWrites: marks that went back show that Redis has lost its last writes.
func TestBeatNoticesLostWrites(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		other := newStore(t, client, testRules())
		beat := func(s *Store, after time.Duration, want error) {
			t.Helper()
			if err := s.beatAt(t.Context(), w.now.Add(after)); err != want { //nolint:errorlint // returned as it is
				t.Errorf("beat after %v: got %v, want %v", after, err, want)
			}
		}
		beat(w.store, time.Second, nil)
		beat(other, -time.Hour, nil) // a clock that is behind moves nothing back
		beat(w.store, 2*time.Second, nil)
		saved := client.Get(t.Context(), epochKey).Val()
		beat(w.store, 3*time.Second, nil)
		client.Set(t.Context(), epochKey, saved, 0)
		beat(w.store, 4*time.Second, ErrStale)
		beat(w.store, 5*time.Second, nil)
		client.FlushAll(t.Context())
		beat(w.store, 6*time.Second, ErrLost)
		w.restore()
		beat(w.store, 7*time.Second, nil)
	})
}

// TestRecordsOfTheScripts: records that Lua scripts of earlier versions wrote are read and carried on.
func TestRecordsOfTheScripts(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t, client, testRules())
		key, ctx := urlKey(1), t.Context()
		w.now = time.UnixMilli(1_700_000_016_200)
		client.Set(ctx, windowKey(key), `{"c":2,"r":1700000003000,"e":["503","timeout"],"d":20000,"w":1,"b":[0,2,1000,2,2000,1],"t":1700000012970,"l":2000,"o":7,"s":13}`, time.Minute)
		w.seq = 13
		w.observe(w.failure(key))
		w.now = w.now.Add(time.Second)
		wantEvents(t, w.observe(), "suspended")
		if f := w.get(key); f.Evidence.Failures != 6 || f.Trips != 3 || len(f.Evidence.Statuses) != 2 {
			t.Errorf("suspended by an older version's window: %+v", f)
		}
		client.Set(ctx, windowKey(key), `{"s":5}`, time.Minute)
		client.Set(ctx, flagKey(key), `{"last":1700000004000,"probe_by":"d1","statuses":["503"],"trips":1,"since":1700000005000,"state":"probing",`+
			`"until":1700000015630,"trip":"1700000000000-5","probe_at":1700000015630,"reason":"always_failing","failures":5,"host":"hooks.example.com:8443","first":1700000000000}`, 0)
		f := w.get(key)
		if f == nil || f.State != Probing || f.Probe.By != "d1" || f.Evidence.Failures != 5 {
			t.Fatalf("an older version's suspension is read as %+v", f)
		}
		wantEvents(t, w.observe(w.probe(f, true)), "resumed")
		client.Set(ctx, flagKey(key), `{"trips":0,"by_hand":true,"state":"suspended","trip":"hand-1700000039970-9","host":"h","failures":0,"since":1700000039970,"reason":"by_hand"}`, 0)
		if f := w.get(key); f == nil || !f.ByHand || f.Trip != "hand-1700000039970-9" {
			t.Errorf("an older version's suspension by hand is read as %+v", f)
		}
	})
}

// TestWarningForecasts: at_risk says when the URL will be suspended if it goes on like that.
func TestWarningForecasts(t *testing.T) {
	t.Parallel()
	rules := DefaultRules()
	m := newMachine(testKey, "hooks.example.com", rules)
	now := time.UnixMilli(1_700_000_000_000)
	var warning Transition
	for i := range uint64(40) {
		steps, candidate := m.observeAll(now, []Observation{{Seq: i + 1, Result: Result{At: now, Reason: "timeout"}}})
		if len(steps) > 0 {
			warning = steps[0]
		}
		if candidate {
			break
		}
		now = now.Add(10 * time.Second)
	}
	if want := now.Add(rules.Settle()); warning.Event != EventAtRisk || !warning.Flag.Until.Equal(want) {
		t.Errorf("warned of %v %v, want %v", warning.Event, warning.Flag.Until, want.UTC())
	}
}
