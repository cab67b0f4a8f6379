package dispatcher

import (
	"testing"
	"time"

	"gancho/pkg/event"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/webhook"
)

// newRetry returns notification number i as it waits for its second attempt.
func (r *rig) newRetry(w *webhook.Webhook, i string) *notification.Notification {
	eventID := event.ID(w.Account, "crm_deal_created", i)
	return &notification.Notification{
		Account: w.Account, ID: event.NotificationID(eventID, w.UUID), WebhookID: w.ID, EventID: eventID, EventName: "crm_deal_created",
		EventTime: time.Now(), Send: 1, Moves: 1, AttemptsDone: 1, Body: []byte("{}"),
	}
}

// retry schedules a retry of notification number i and returns it.
func (r *rig) retry(w *webhook.Webhook, i string, at time.Time) *notification.Notification {
	r.t.Helper()
	n := r.newRetry(w, i)
	if err := lane.Schedule(r.t.Context(), r.bus, n, at); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// TestFullRetriesStopFirstAttempts starts with more on RETRIES than it may hold: retries are made, first
// attempts are not, until it has shrunk.
func TestFullRetriesStopFirstAttempts(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.Limits.RetriesMaxBytes = 1 })
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, nil)
	waiting := r.retry(w, "waiting", time.Now().Add(time.Hour))
	r.start()
	first := r.notify(w, 1)
	for _, i := range []string{"a", "b"} { // each comes after a pull request's time
		due := r.retry(w, i, time.Now())
		r.state(due.ID, notification.Delivered)
	}
	if got := rc.attempts(first); len(got) > 0 {
		t.Errorf("a first attempt was made: %v", got)
	}
	x, err := lane.Scheduled(t.Context(), r.bus, "acme", waiting.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := lane.Remove(t.Context(), r.bus, x); err != nil {
		t.Fatal(err)
	}
	r.state(first, notification.Delivered)
}
