package numbers

import (
	"fmt"
	"math"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/zap/zaptest"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

func keeper(t *testing.T, b *bus.Bus) *Keeper {
	k := New(b, zaptest.NewLogger(t))
	k.every, k.forlorn = -1, -1 // a slice is always due
	return k
}

const hooks = 5

func hookID(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i%hooks) }

// happen stores n events with a notification and an attempt each; every third attempt fails. Each event was held back
// from two other webhooks, which is noted twice.
func happen(t *testing.T, b *bus.Bus, account string, n int) {
	t.Helper()
	for i := range n {
		stored, err := eventstream.Publish(t.Context(), b, event.Subject(account, "crm_deal_created"), "", nil, []byte(`{"n":1}`))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			h := Held{
				Account: account, Sequence: stored.Sequence, Webhooks: []uuid.UUID{uuid.MustParse(hookID(i + 1)), uuid.MustParse(hookID(i + 2))},
			}
			started, err := h.Start(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range started {
				if err := s.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		m := bustest.Example(i)
		m.Account, m.WebhookID, m.EventID = account, hookID(i), event.ID(account, m.EventName, strconv.FormatUint(stored.Sequence, 10))
		m.ID = event.NotificationID(m.EventID, uuid.MustParse(m.WebhookID))
		if err := lane.Notify(b, m).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := &notification.Record{
			Kind: notification.KindAttempt, At: time.Now(), Account: account, NotificationID: m.ID, WebhookID: m.WebhookID, EventID: m.EventID,
			EventName: m.EventName, Send: 1, AttemptsDone: 1, State: notification.Delivered,
			Attempt: &notification.Attempt{Number: 1, Send: 1, StartedAt: time.Now(), Outcome: notification.OutcomeDelivered, DurationMS: 100},
		}
		if i%3 == 0 {
			r.State, r.Attempt.Outcome, r.Attempt.Reason = notification.Retrying, notification.OutcomeFailed, delivery.Timeout
			r.Attempt.DurationMS = 5000
		}
		if _, err := journal.Write(t.Context(), b, r); err != nil {
			t.Fatal(err)
		}
	}
}

// checkSums asks in all ways for the counts of what happened n times to each account.
func checkSums(t *testing.T, b *bus.Bus, when string, n int, accounts ...string) {
	t.Helper()
	from := time.Now().UTC().Truncate(24 * time.Hour)
	to := from.Add(48 * time.Hour)
	k := keeper(t, b)
	for name, step := range steps {
		all, err := k.Accounts(t.Context(), "", from, to, step)
		if err != nil {
			t.Fatal(err)
		}
		sums := map[string]*Counts{}
		for _, a := range all {
			if sums[a.Account] == nil {
				sums[a.Account] = &Counts{}
			}
			sums[a.Account].Add(&a.Counts)
		}
		failed := uint64((n + 2) / 3)
		want := &Counts{
			Delivered: uint64(n) - failed, Failed: failed, Reasons: map[string]uint64{"timeout": failed},
			Took:   map[int]uint64{bucket(100): uint64(n) - failed, bucket(5000): failed},
			States: map[notification.State]uint64{notification.Pending: uint64(n), notification.Delivered: uint64(n) - failed, notification.Retrying: failed},
			Events: uint64(n), EventBytes: 7 * uint64(n), Held: 2 * uint64(n),
		}
		wanted := map[string]*Counts{}
		for _, account := range accounts {
			wanted[account] = want
		}
		if diff := cmp.Diff(wanted, sums); diff != "" {
			t.Errorf("%s, by %s:\n%s", when, name, diff)
		}
		total := &Counts{}
		for i := range hooks {
			of, err := k.Webhook(t.Context(), "acme", hookID(i), from, to, step)
			if err != nil {
				t.Fatal(err)
			}
			if len(of) != int(to.Sub(from)/step) {
				t.Errorf("%s: %d steps of %s", when, len(of), name)
			}
			for _, n := range of {
				total.Add(&n.Counts)
			}
		}
		want.Events, want.EventBytes = 0, 0 // of the account only
		if diff := cmp.Diff(want, total); diff != "" {
			t.Errorf("%s, webhooks by %s:\n%s", when, name, diff)
		}
	}
}

// TestSums asks while several processes count, after they did, and after hours were added up: the sums are always those
// of what happened.
func TestSums(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	check := func(when string, n int) { t.Helper(); checkSums(t, b, when, n, "acme", "globex") }
	happen(t, b, "acme", 30)
	happen(t, b, "globex", 30)
	check("nothing was counted", 30)
	together := func() {
		t.Helper()
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for more := true; more; {
					var err error
					if more, err = keeper(t, b).step(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
	}
	together()
	check("all was counted", 30)
	happen(t, b, "acme", 15)
	happen(t, b, "globex", 15)
	check("some was counted", 45)
	together()

	// The hour ends; twice, as after a crash before that was noted.
	end := time.Now().UTC().Add(time.Hour).Truncate(time.Hour)
	for range 2 {
		if err := keeper(t, b).addUp(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	m, _, err := keeper(t, b).mark(t.Context())
	if err != nil || !m.Until.Equal(end) {
		t.Errorf("hours are added up until %v, want %v; %v", m.Until, end, err)
	}
	check("the hour was added up", 45)
}

// A slice that is full is followed by another.
func TestFullSlices(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	happen(t, b, "acme", 20)
	last, total := slice{}, &Counts{}
	for rounds := 0; ; rounds++ {
		next, counts, whole, err := keeper(t, b).count(t.Context(), &last, "", 3, sources())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range counts {
			total.Add(n)
		}
		if last = next; whole {
			if rounds == 0 {
				t.Error("one slice took it all")
			}
			break
		}
		if rounds > 100 {
			t.Fatal("it does not end")
		}
	}
	if total.Events != 20 || total.Attempts() != 20 || total.States[notification.Pending] != 20 {
		t.Errorf("counted %+v", total)
	}
}

// TestQuestionsLeaveNothing: questions leave no consumers at the broker, which refuses more than a thousand.
func TestQuestionsLeaveNothing(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	happen(t, b, "acme", 5)
	k := keeper(t, b)
	if _, err := k.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	to := time.Now().UTC().Add(time.Hour).Truncate(time.Hour)
	for range 20 {
		happen(t, b, "acme", 1)
		if _, err := k.Accounts(t.Context(), "acme", to.Add(-3*time.Hour), to, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{topology.Numbers, topology.Events, topology.Notifications, topology.Attempts, topology.Held} {
		stream, err := s.JetStream().Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if n := stream.CachedInfo().State.Consumers; n > 0 {
			t.Errorf("%s has %d consumers", name, n)
		}
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	var c Counts
	if got := c.Quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	for ms := 1; ms <= 1000; ms++ {
		c.Took = sum(c.Took, map[int]uint64{bucket(float64(ms)): 1})
	}
	for q, want := range map[float64]float64{0.5: 500, 0.95: 950, 0.99: 990} {
		if got := c.Quantile(q); math.Abs(got-want)/want > 0.1 {
			t.Errorf("p%v is %v ms, want %v within a tenth", q*100, got, want)
		}
	}
}
