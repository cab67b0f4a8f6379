package dispatcher

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/history"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/pkg/topology"
)

// TestLargeAnswersPushOutTheirOwn: an account whose receiver fails with large answers, and whose events are large,
// writes ATTEMPTS and FAILED full and goes on. What another account had before is all there, payloads for a resend
// included; of the first one the oldest is gone, and its notifications ended as always.
func TestLargeAnswersPushOutTheirOwn(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	const limit, at = 4 << 20, 3 // notifications at once: their records and payloads are less than a tenth of the limit
	r := newRig(t, func(c *Config) {
		c.Limits.AttemptsMaxBytes, c.Limits.FailedMaxBytes = limit, limit
		for i := range c.RetryDelays {
			c.RetryDelays[i] = 10 * time.Millisecond
		}
	})
	r.log = zap.NewNop()
	answer := newReceiver(t, func(_ string, w http.ResponseWriter) {
		for i := range 30 {
			w.Header().Set("X-Large-"+strconv.Itoa(i), strings.Repeat(uuid.NewString(), 6))
		}
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte(strings.Repeat(uuid.NewString(), 120)))
	})
	attacker, other := r.webhookOf("attacker", answer.URL, nil), r.webhookOf("other", newReceiver(t, fails).URL, nil)
	healthy := r.webhookOf("other", newReceiver(t, ok).URL, nil)
	r.start()
	var kept, delivered []string
	for i := range 4 {
		kept, delivered = append(kept, r.notify(other, i)), append(delivered, r.notify(healthy, i))
	}
	for i := range kept {
		r.stateOf("other", kept[i], notification.PermanentlyFailed)
		r.stateOf("other", delivered[i], notification.Delivered)
	}

	meter := share.New(share.Config{Share: 0.2}, share.Limits{}, func(string) bool { return true })
	keeper := history.New(r.bus, meter, r.log, prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { keeper.Run(ctx) })

	// wrote is about how many bytes the stream has taken in all, removed ones included.
	wrote := func(stream string) uint64 {
		s, err := r.bus.StreamState(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		return s.Last * s.Bytes / s.Messages
	}
	body := append(append([]byte(`{"a":"`), strings.Repeat("x", 90<<10)...), `"}`...)
	var first string
	for n := 0; min(wrote(topology.Attempts), wrote(topology.Failed)) < limit*13/10; n += at {
		ids := make([]string, at)
		for i := range ids {
			ids[i] = r.send(attacker, n+i, body)
		}
		for _, id := range ids {
			r.stateOf("attacker", id, notification.PermanentlyFailed)
			r.until("the payload is kept", func() bool {
				_, err := lane.Failed(t.Context(), r.bus, "attacker", attacker.ID, id)
				return err == nil
			})
		}
		if n == 0 {
			first = ids[0]
			if most := max(wrote(topology.Attempts), wrote(topology.Failed)); most > limit/10 {
				t.Fatalf("%d bytes at once are more than a tenth", most)
			}
		}
		for _, stream := range []string{topology.Attempts, topology.Failed} {
			r.until("the oldest records are removed", func() bool {
				s, err := r.bus.StreamState(t.Context(), stream)
				return err == nil && s.Bytes <= limit*91/100
			})
		}
	}

	for i := range kept {
		for _, id := range []string{kept[i], delivered[i]} {
			last, err := journal.Last(t.Context(), r.bus, "other", id)
			if err != nil {
				t.Fatalf("a notification of the other account: %v", err)
			}
			for _, err := range journal.History(t.Context(), r.bus, last) {
				if err != nil {
					t.Errorf("an attempt of the other account: %v", err)
				}
			}
		}
		if _, err := lane.Failed(t.Context(), r.bus, "other", other.ID, kept[i]); err != nil {
			t.Errorf("the other account's notification cannot be sent again: %v", err)
		}
	}
	if _, err := lane.Failed(t.Context(), r.bus, "attacker", attacker.ID, first); err == nil {
		t.Error("the attacker's oldest payload is still there")
	}
}

// TestRemovedRecordsUseUpNoAttempt: the records of a notification are removed from the journal between its attempts. It
// makes six requests all the same, each with its number, and ends.
func TestRemovedRecordsUseUpNoAttempt(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, func(c *Config) { c.RetryDelays = slices.Repeat([]time.Duration{3 * time.Second}, 5) })
	r.log = zap.NewNop()
	rc := newReceiver(t, fails)
	w := r.webhook(rc.URL, nil)
	r.start()
	id := r.notify(w, 1)
	for done := 1; done < notification.MaxAttempts; done++ {
		r.until("the attempt is recorded", func() bool {
			last, err := journal.Last(t.Context(), r.bus, "acme", id)
			return err == nil && last.AttemptsDone >= done
		})
		r.record("other")
		if err := r.bus.PurgeOldest(t.Context(), topology.Attempts, topology.SubjectsOf(topology.Attempts, "*"), 1); err != nil {
			t.Fatal(err)
		}
	}
	last := r.end(id)
	if last.State != notification.PermanentlyFailed || last.AttemptsDone != notification.MaxAttempts {
		t.Errorf("%s after %d attempts", last.State, last.AttemptsDone)
	}
	if got, want := rc.attempts(id), []string{"1", "2", "3", "4", "5", "6"}; !slices.Equal(got, want) {
		t.Errorf("requests had the numbers %v", got)
	}
}

// record writes a record of the account.
func (r *rig) record(account string) {
	r.t.Helper()
	_, err := journal.Write(r.t.Context(), r.bus, &notification.Record{
		Kind: notification.KindAttempt, At: time.Now(), Account: account, WebhookID: uuid.NewString(), NotificationID: uuid.NewString(), Send: 1, AttemptsDone: 1,
		State: notification.Delivered,
	})
	if err != nil {
		r.t.Error(err)
	}
}
