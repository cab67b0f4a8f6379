package dispatcher

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// probes makes n first attempts of the webhook, one after another, and returns when all have succeeded.
func (r *rig) probes(w *webhook.Webhook, from, n int) {
	r.t.Helper()
	for i := range n {
		r.stateOf(w.Account, r.notify(w, from+i), notification.Delivered)
	}
}

// degraded waits until /readyz names the trouble; the dispatcher stays ready.
func (r *rig) degraded(words string) {
	r.t.Helper()
	r.until("/readyz says "+words, func() bool {
		s := r.health.State()
		return s.Ready && strings.Contains(strings.Join(s.Degraded, "; "), words)
	})
}

// settled waits until the lane of first attempts holds no delivery.
func (r *rig) settled() {
	r.t.Helper()
	r.until("no first attempt is in flight", func() bool {
		first, err := r.bus.ConsumerState(r.t.Context(), topology.Durable{Stream: topology.Notifications, Name: topology.ConsumerFirst})
		return err == nil && first.AckPending == 0 && first.Pending == 0
	})
}

// TestFullParkedHoldsNoPlace: an account fills PARKED with notifications for a suspended URL and goes on. Those that
// find no room come back over RETRIES and use up nothing; the first attempts of another account go on, and
// all notifications are delivered when the URL is resumed.
func TestFullParkedHoldsNoPlace(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, func(c *Config) {
		c.MaxInFlight, c.Limits.ParkedMaxBytes, c.Limits.RetriesMaxBytes = 16, 4<<20, 32<<20
	})
	r.log = zap.NewNop() // a full stream is worth a warning
	rc := newReceiver(t, ok)
	attacker, other := r.webhook(rc.URL+"/attacker", nil), r.webhookOf("other", rc.URL+"/other", nil)
	f := r.flag(attacker, time.Time{})
	r.start()
	body := bytes.Repeat([]byte{'x'}, 256<<10)
	var ids []string
	for i := range 40 { // 10 MB
		ids = append(ids, r.send(attacker, i, body))
	}
	r.degraded("PARKED has no room")
	r.probes(other, 0, 50)
	r.settled()
	for _, id := range ids {
		r.state(id, notification.Parked)
		if got := rc.attempts(id); len(got) > 0 {
			t.Fatalf("a suspended URL got the attempts %v", got)
		}
	}
	if err := r.flags.Delete(t.Context(), f.Key().String(), 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if last := r.state(id, notification.Delivered); last.AttemptsDone != 1 || !slices.Equal(rc.attempts(id), []string{"1"}) {
			t.Errorf("attempts: got %v, %d recorded, want one", rc.attempts(id), last.AttemptsDone)
		}
	}
}

// TestRefusedExpires: a notification that PARKED has refused for longer than PARKED_MAX_AGE ends like a parked one.
func TestRefusedExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.ParkedMaxAge = time.Minute })
	w := r.webhook(newReceiver(t, ok).URL, nil)
	r.flag(w, time.Time{})
	old := r.newRetry(w, "old")
	old.RefusedAt = time.Now().Add(-2 * time.Minute)
	if err := lane.Schedule(t.Context(), r.bus, old, time.Now()); err != nil {
		t.Fatal(err)
	}
	r.start()
	if last := r.state(old.ID, notification.PermanentlyFailed); last.Reason != "expired_while_suspended" || last.AttemptsDone != 1 {
		t.Errorf("record: got %+v", last)
	}
}

// TestFullRetriesHoldBackOneAccount: an account's large failing events put RETRIES over its limit. First attempts of
// that account wait, those of another go on, and everything is delivered in the end.
func TestFullRetriesHoldBackOneAccount(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, func(c *Config) {
		c.Limits.RetriesMaxBytes, c.MaxInFlightBytes = 8<<20, 16<<20
		c.RetryDelays = slices.Repeat([]time.Duration{time.Hour}, 5)
	})
	r.log = zap.NewNop()
	var mu sync.Mutex
	broken := true
	rc := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		mu.Lock()
		defer mu.Unlock()
		if broken {
			fails(attempt, w)
		}
	})
	attacker, other := r.webhook(rc.URL, nil), r.webhookOf("other", newReceiver(t, ok).URL, nil)
	shares, err := r.bus.Bucket(t.Context(), topology.BucketShares)
	if err != nil {
		t.Fatal(err)
	}
	err = share.WriteWork(t.Context(), shares, share.Work{At: time.Now(), Accounts: map[string]share.Open{ // as the books will
		"acme": {Retrying: 10 << 20}, "other": {Retrying: 10 << 10},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	body := bytes.Repeat([]byte{'x'}, 1<<20)
	var ids []string
	for i := range 10 { // the last may be parked already
		ids = append(ids, r.send(attacker, i, body))
		r.until("it failed", func() bool {
			last, err := journal.Last(t.Context(), r.bus, "acme", ids[i])
			return err == nil && (last.State == notification.Retrying || last.State == notification.Parked)
		})
	}
	r.degraded("first attempts of 1 accounts wait, the largest acme")
	for i := range 5 {
		ids = append(ids, r.notify(attacker, 10+i))
	}
	for _, id := range ids[10:] {
		if last := r.state(id, notification.Parked); last.Reason != notification.Saturated || last.AttemptsDone != 0 {
			t.Errorf("a first attempt of the account that holds RETRIES: got %+v", last)
		}
	}
	r.probes(other, 0, 50)
	r.degraded("the largest acme")
	for _, id := range ids[10:] {
		if got := rc.attempts(id); len(got) > 0 {
			t.Errorf("first attempts of the account that holds RETRIES were made: %v", got)
		}
	}
	mu.Lock()
	broken = false
	mu.Unlock()
	for _, id := range ids[:10] { // the hour passes
		x, err := lane.Scheduled(t.Context(), r.bus, "acme", id)
		if errors.Is(err, bus.ErrNotFound) {
			continue // parked
		}
		if err != nil {
			t.Fatal(err)
		}
		soon := x.Notification
		soon.Moves++
		if err := lane.Schedule(t.Context(), r.bus, &soon, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range ids {
		r.state(id, notification.Delivered)
	}
}

// TestLargeEventsOfHangingURLs: hanging URLs with large events hold at most their part of MAX_IN_FLIGHT_BYTES, so the
// first attempts of another account go on.
func TestLargeEventsOfHangingURLs(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, func(c *Config) {
		c.Limits.EventMaxBytes, c.MaxInFlightBytes, c.MaxInFlight = 256<<10, 4<<20, 2048
		c.Delivery.Timeout = time.Minute
		c.Service.ShutdownTimeout = 2 * time.Minute
	})
	hang := make(chan struct{})
	release := sync.OnceFunc(func() { close(hang) })
	rc := newReceiver(t, func(string, http.ResponseWriter) { <-hang })
	t.Cleanup(release)
	other := r.webhookOf("other", newReceiver(t, ok).URL, nil)
	r.start()
	body := bytes.Repeat([]byte{'x'}, 256<<10)
	var ids []string
	for u := range 20 {
		w := r.webhook(rc.URL+"/"+string(rune('a'+u)), nil)
		for i := range 6 {
			ids = append(ids, r.send(w, 6*u+i, body))
		}
	}
	r.until("some hang", func() bool { return rc.total() > 0 })
	r.probes(other, 1000, 50)
	if n := len(ids) - rc.total(); n == 0 {
		t.Error("every request of the attacker is in flight: this shows nothing")
	}
	release()
	for _, id := range ids {
		r.state(id, notification.Delivered)
	}
}

// TestDisplacedOnlyOnce: a crash between the move to RETRIES and the ack, while PARKED has room again, leaves one copy.
func TestDisplacedOnlyOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.Delivery.Timeout = 100 * time.Millisecond })
	w := r.webhook(newReceiver(t, ok).URL, nil)
	r.flag(w, time.Time{})
	first, err := lane.First(t.Context(), r.bus, r.cfg.ackWait())
	if err != nil {
		t.Fatal(err)
	}
	id := r.notify(w, 1)
	var dead *lane.Delivery
	for dead == nil {
		if _, err := first.Pull(t.Context(), 1, bus.Unbounded, func(d *lane.Delivery) { dead = d }); err != nil {
			t.Fatal(err)
		}
	}
	record := dead.Record(dead.Position(), notification.KindParked, time.Now())
	record.State, record.Reason, record.URLKey = notification.Parked, notification.Suspended, w.URLKey
	sequence, err := journal.Write(t.Context(), r.bus, record)
	if err != nil {
		t.Fatal(err)
	}
	next, _ := dead.Displaced(notification.Position{Journal: sequence}, time.Now())
	if err := lane.Schedule(t.Context(), r.bus, &next, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	dead.NakAfter(time.Millisecond)
	r.start()
	r.settled()
	backlogs, err := lane.Backlogs(t.Context(), r.bus, "acme")
	if err != nil || len(backlogs) > 0 {
		t.Errorf("on PARKED too: %v, %v", backlogs, err)
	}
	if _, err := lane.Scheduled(t.Context(), r.bus, "acme", id); err != nil {
		t.Errorf("on RETRIES: %v", err)
	}
}

// TestNoRoomAnywhere: a delivery that neither PARKED nor RETRIES takes stays with the broker, and its many deliveries
// are not mistaken for crashes.
func TestNoRoomAnywhere(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	w := r.webhook(newReceiver(t, ok).URL, nil)
	d := &Dispatcher{log: zap.NewNop(), bus: r.bus, fullness: fullness{log: zap.NewNop(), bus: r.bus}}
	first, err := lane.First(t.Context(), r.bus, r.cfg.ackWait())
	if err != nil {
		t.Fatal(err)
	}
	r.notify(w, 1)
	var m *lane.Delivery
	for m == nil {
		if _, err := first.Pull(t.Context(), 1, bus.Unbounded, func(d *lane.Delivery) { m = d }); err != nil {
			t.Fatal(err)
		}
	}
	m.NumDelivered = 100
	if got := d.received(m).NumDelivered; got != 100 {
		t.Errorf("with room: %d deliveries count", got)
	}
	d.retryDelivery(t.Context(), m, bus.ErrFull)
	if got := d.received(m).NumDelivered; got != 1 {
		t.Errorf("without room: %d deliveries count", got)
	}
	if state := d.fullness.State(); !strings.Contains(state, "RETRIES has no room") {
		t.Errorf("state: %q", state)
	}
	if n, err := first.AckPending(t.Context()); err != nil || n != 1 {
		t.Errorf("with the broker: %d, %v", n, err)
	}
}
