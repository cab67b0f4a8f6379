package dispatcher

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// referred publishes the webhook's notification of an event whose body is stored once, as the publisher would.
func (r *rig) referred(w *webhook.Webhook, e *event.Event) string {
	r.t.Helper()
	ref, err := bodies.NewStore(r.bus, nil, 0).Put(r.t.Context(), e)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.refer(w, e, ref)
}

// refer publishes the webhook's notification of an event that refers to a body.
func (r *rig) refer(w *webhook.Webhook, e *event.Event, ref *notification.Reference) string {
	r.t.Helper()
	n := notification.First(e, time.Now(), w.UUID)
	n.Ref = ref
	if err := lane.Notify(r.bus, &n).Wait(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return n.ID
}

func largeEvent(i int) *event.Event {
	return &event.Event{
		ID: event.ID("acme", "crm_deal_created", fmt.Sprint(i)), Account: "acme", Name: "crm_deal_created",
		Body: fmt.Appendf(nil, `{"i": %d, "text": %q}`, i, strings.Repeat("x", 200_000)),
	}
}

// held returns how many messages and bytes a stream holds.
func (r *rig) held(stream string) (messages, bytes uint64) {
	r.t.Helper()
	state, err := r.bus.StreamState(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	return state.Messages, state.Bytes
}

// TestLargeBodyIsStoredOnce: a notification that refers to its event's body is delivered, retried, parked, released and
// kept as others are, byte for byte, and no stream holds the body again.
func TestLargeBodyIsStoredOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	flaky := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		if attempt < "4" { // the fourth comes from RETRIES a third time
			fails(attempt, w)
		}
	})
	good, dead := newReceiver(t, ok), newReceiver(t, fails)
	toFlaky, toGood, toDead := r.webhook(flaky.URL, nil), r.webhook(good.URL, nil), r.webhook(dead.URL, nil)
	f := r.flag(toGood, time.Time{})
	r.start()
	e := largeEvent(1)
	retried, parked, failed := r.referred(toFlaky, e), r.referred(toGood, e), r.referred(toDead, e)
	r.state(parked, notification.Parked)
	r.state(retried, notification.Delivered)
	r.state(failed, notification.PermanentlyFailed)
	r.until("the failed one is kept", func() bool { n, _ := r.held(topology.Failed); return n == 1 })
	if n, bytes := r.held(topology.Parked); n != 1 || bytes > 2000 {
		t.Errorf("PARKED has %d messages of %d bytes", n, bytes)
	}
	if err := r.flags.Delete(t.Context(), f.Key().String(), 0); err != nil {
		t.Fatal(err)
	}
	r.state(parked, notification.Delivered)
	for _, rc := range []*receiver{flaky, good, dead} {
		rc.mu.Lock()
		for _, got := range rc.bodies {
			if got != string(e.Body) {
				t.Errorf("a receiver got %d bytes %.40q", len(got), got)
			}
		}
		rc.mu.Unlock()
	}
	if got := flaky.attempts(retried); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
		t.Errorf("attempts %v", got)
	}
	if got := len(dead.attempts(failed)); got != notification.MaxAttempts {
		t.Errorf("%d attempts of the dead one", got)
	}
	for _, stream := range []string{topology.Notifications, topology.Retries, topology.Parked, topology.Failed} {
		if _, bytes := r.held(stream); bytes > 10_000 {
			t.Errorf("%s holds %d bytes", stream, bytes)
		}
	}
	kept, err := lane.Failed(t.Context(), r.bus, "acme", toDead.ID, failed)
	if err != nil || kept.Ref == nil {
		t.Fatalf("kept: %+v, %v", kept, err)
	}
	if err := bodies.Fill(t.Context(), r.bus, kept); err != nil || string(kept.Body) != string(e.Body) {
		t.Errorf("kept: %d bytes, %v", len(kept.Body), err)
	}
}

// TestLargeBodyIsAwayForAWhile: while the broker gives no body out, its notification waits on RETRIES, wherever it came
// from. Nothing is sent, no attempt is used up, and others go on. Later it is sent with the number that it had.
func TestLargeBodyIsAwayForAWhile(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a fetch is given up after 10 s, and made again 10 s later")
	}
	t.Parallel()
	r := newRig(t, nil)
	proxy := r.broker.Proxy()
	proxy.Silence(func(subject string) bool { return strings.Contains(subject, ".GET."+topology.Bodies) })
	r.cfg.Bus.URL, r.log = proxy.URL(), zap.NewNop() // the fault is logged
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, nil)
	first, second := largeEvent(1), largeEvent(2)
	fresh := r.referred(w, first)
	ref, err := bodies.NewStore(r.bus, nil, 0).Put(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	n := notification.First(second, time.Now(), w.UUID)
	n.Ref, n.AttemptsDone = ref, 2
	tried := n.Retry(notification.Position{AttemptsDone: 2})
	if err := lane.Schedule(t.Context(), r.bus, &tried, time.Now()); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.state(r.notify(w, 3), notification.Delivered)
	r.until("both wait on RETRIES, and nowhere else", func() bool {
		subjects, err := r.bus.Subjects(t.Context(), topology.Retries, ">")
		upTo, settledErr := lane.Settled(t.Context(), r.bus)
		return err == nil && settledErr == nil && len(subjects) == 2 && upTo == 2 && !slices.ContainsFunc(slices.Collect(maps.Keys(subjects)), func(s string) bool {
			return !strings.HasPrefix(s, "gancho.retries.at.")
		})
	})
	if n := rc.total(); n != 1 {
		t.Errorf("%d requests, want that of the small one", n)
	}
	for _, id := range []string{fresh, n.ID} {
		if last, err := journal.Last(t.Context(), r.bus, "acme", id); err == nil {
			t.Errorf("a step is recorded: %+v", last)
		}
	}
	proxy.Silence(nil)
	for id, number := range map[string]string{fresh: "1", n.ID: "3"} {
		last := r.state(id, notification.Delivered)
		if got := rc.attempts(id); !slices.Equal(got, []string{number}) || fmt.Sprint(last.AttemptsDone) != number {
			t.Errorf("requests %v, %d attempts recorded; want number %s alone", got, last.AttemptsDone, number)
		}
	}
}

// TestLargeBodyGone: a notification whose body is gone, or has other bytes, ends where people see it. Nothing is sent.
// One that was erased meanwhile is left alone.
func TestLargeBodyGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, nil)
	gone, forged, erased := largeEvent(1), largeEvent(2), largeEvent(3)
	end := &notification.Record{
		Kind: notification.KindCancelled, At: time.Now(), Account: "acme", WebhookID: w.ID, NotificationID: event.NotificationID(erased.ID, w.UUID),
		EventID: erased.ID, EventName: erased.Name, Send: 1,
	}
	end.Ended(notification.ReasonErased)
	if _, err := journal.Write(t.Context(), r.bus, end); err != nil {
		t.Fatal(err)
	}
	changed := *forged
	changed.Body = append([]byte(" "), forged.Body[1:]...)
	at := bus.NewMessage(notification.Refer(forged.Body).Subject("acme", forged.ID), "", changed.Body)
	if _, err := r.bus.Publish(t.Context(), topology.Bodies, at); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.state(r.notify(w, 5), notification.Delivered) // later ones are trusted
	var ids []string
	for _, e := range []*event.Event{gone, forged, erased} {
		ids = append(ids, r.refer(w, e, notification.Refer(e.Body)))
	}
	for _, id := range ids[:2] {
		if last := r.state(id, notification.PermanentlyFailed); last.Reason != string(delivery.InternalError) || last.AttemptsDone != 0 {
			t.Errorf("record: got %+v", last)
		}
	}
	r.until("all are settled", func() bool {
		upTo, err := lane.Settled(t.Context(), r.bus)
		return err == nil && upTo == 4
	})
	if n, _ := r.held(topology.Quarantine); n != 2 {
		t.Errorf("%d messages were set aside, want 2", n)
	}
	if last := r.end(end.NotificationID); last.Reason != notification.ReasonErased {
		t.Errorf("the erased one: %+v", last)
	}
	if n := rc.total(); n != 1 {
		t.Errorf("%d requests were made, want 1 of the other", n)
	}
	r.state(r.notify(w, 4), notification.Delivered) // the dispatcher goes on
}
