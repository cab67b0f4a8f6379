package dispatcher

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/latest"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

func skips(w *webhook.Webhook) { w.Stale = webhook.Skip }

// deal returns the notification of event number i, which is about a deal.
func deal(w *webhook.Webhook, id string, i int) *notification.Notification {
	eventID := event.ID(w.Account, "crm_deal_updated", fmt.Sprint(i))
	return &notification.Notification{
		Account: w.Account, ID: event.NotificationID(eventID, w.UUID), WebhookID: w.ID, EventID: eventID, EventName: "crm_deal_updated",
		EventSequence: uint64(i), EventTime: time.Unix(1_700_000_000, int64(i)), Send: 1,
		Body: fmt.Appendf(nil, `{"document":{"id":%q,"i":%d}}`, id, i),
	}
}

// publish starts the notification on its way and returns its id.
func (r *rig) publish(n *notification.Notification) string {
	r.t.Helper()
	if err := lane.Notify(r.bus, n).Wait(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return n.ID
}

// TestSkipsStale: what waited is left out once a later event of its document was delivered, and only then.
func TestSkipsStale(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.RetryDelays = slices.Repeat([]time.Duration{time.Hour}, 5) })
	rc := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		if attempt == "1" {
			return
		}
		fails(attempt, w)
	})
	skip, send := r.webhook(rc.URL+"/skip", skips), r.webhook(rc.URL+"/send", nil)
	r.start()
	r.state(r.publish(deal(skip, "a", 10)), notification.Delivered)
	r.state(r.publish(deal(send, "a", 10)), notification.Delivered)
	again := func(n *notification.Notification) *notification.Notification { // it waited for its second attempt
		n.AttemptsDone, n.Moves = 1, 1
		return n
	}
	replayed := func(n *notification.Notification) *notification.Notification {
		n.Replay = uuid.NewString()
		return n
	}
	retry := func(n *notification.Notification) {
		if err := lane.Schedule(t.Context(), r.bus, n, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	park := func(n *notification.Notification) {
		if err := lane.Park(r.bus, n, skip.URLKey).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first := func(n *notification.Notification) { r.publish(n) }
	earlier, later := deal(skip, "a", 9), deal(skip, "a", 9)
	earlier.EventTime, later.EventTime = time.Unix(1_600_000_000, 0), time.Unix(1_800_000_000, 0)
	deleted := again(deal(skip, "a", 4))
	deleted.EventName = "crm_deal_deleted"
	contact := again(deal(skip, "a", 4))
	contact.EventName = "crm_contact_updated"
	unnumbered := again(deal(skip, "a", 5))
	unnumbered.EventSequence = 0
	for name, tc := range map[string]struct {
		n       *notification.Notification
		start   func(*notification.Notification)
		skipped bool
	}{
		"a first attempt":             {deal(skip, "a", 1), first, false},
		"a retry":                     {again(deal(skip, "a", 2)), retry, true},
		"parked before its first":     {deal(skip, "a", 3), park, true},
		"parked after its first":      {again(deal(skip, "a", 4)), park, true},
		"a replay":                    {replayed(deal(skip, "a", 5)), first, true},
		"another action":              {deleted, retry, true},
		"another kind of document":    {contact, retry, false},
		"another document":            {again(deal(skip, "b", 6)), retry, false},
		"a later event":               {again(deal(skip, "a", 11)), retry, false},
		"the same event":              {again(deal(skip, "a", 10)), retry, false},
		"of another webhook":          {again(deal(send, "a", 7)), retry, false},
		"earlier by both":             {again(earlier), retry, true},
		"earlier by its number only":  {again(later), retry, false},
		"without a number, as a test": {unnumbered, retry, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := *tc.n
			eventID := event.ID(n.Account, n.EventName, name) // of its own, so that the journal knows nothing of it
			n.EventID, n.ID = eventID, event.NotificationID(eventID, uuid.MustParse(n.WebhookID))
			n.Moves = max(n.Moves, 1)
			tc.start(&n)
			var last *notification.Record
			r.until("something became of it", func() bool {
				var err error
				last, err = journal.Last(t.Context(), r.bus, n.Account, n.ID)
				return err == nil && last.State != notification.Parked // its URL may be at its limit
			})
			if !tc.skipped {
				if last.State == notification.Cancelled || len(rc.attempts(n.ID)) != 1 {
					t.Errorf("it was not sent: %+v", last)
				}
				return
			}
			newest := event.ID("acme", "crm_deal_updated", "10")
			if last.State != notification.Cancelled || last.Reason != notification.Superseded || last.Newer != newest || len(rc.attempts(n.ID)) != 0 {
				t.Errorf("it ended as %+v after the attempts %v, want superseded by %s and none", last, rc.attempts(n.ID), newest)
			}
		})
	}
	r.settled()
	r.until("RETRIES and PARKED hold nothing that was left out", func() bool {
		parked, err := r.bus.StreamState(t.Context(), topology.Parked)
		return err == nil && parked.Messages == 0
	})
}

// TestMayBeStale cuts a dispatcher off while it has an event that another one makes stale. It does not send it, and
// neither does the one that gets it next.
func TestMayBeStale(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		retry    bool
		at       string // the call that is lost
		until    string // a line of the log; "": until the next one has it
		attempts []string
	}{
		"it asks":                     {true, "$JS.API.DIRECT.GET.KV_LATEST.", "may be stale wait", nil},
		"a first attempt is repeated": {false, "gancho.attempts.", "", []string{"1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			rc := newReceiver(t, ok)
			w := r.webhook(rc.URL, skips)
			proxy, direct := r.broker.Proxy(), r.cfg.Bus.URL
			cut := bustest.Break{Fault: bustest.Lost, Freeze: true}
			proxy.Break(&cut, func(subject string, _ []byte) bool { return strings.HasPrefix(subject, tc.at) })
			core, logs := observer.New(zap.WarnLevel)
			r.cfg.Bus.URL, r.log = proxy.URL(), zap.New(core)
			r.start()
			t.Cleanup(proxy.Thaw) // else it cannot stop
			older, later := deal(w, "a", 1), deal(w, "a", 2)
			if tc.retry {
				older.AttemptsDone, older.Moves = 1, 1
				if err := lane.Schedule(t.Context(), r.bus, older, time.Now()); err != nil {
					t.Fatal(err)
				}
			} else {
				r.publish(older)
			}
			<-cut.Done
			written, err := latest.Open(t.Context(), r.bus)
			if err != nil {
				t.Fatal(err)
			}
			if err := written.Delivered(t.Context(), later); err != nil { // by another dispatcher
				t.Fatal(err)
			}
			r.cfg.Bus.URL, r.log = direct, bustest.Logger(t)
			r.start()
			if tc.until != "" {
				r.until("the one that is cut off gives up", func() bool { return logs.FilterMessageSnippet(tc.until).Len() > 0 })
				proxy.Thaw()
			}
			last := r.end(older.ID)
			if last.Reason != notification.Superseded || last.Newer != later.EventID || !slices.Equal(rc.attempts(older.ID), tc.attempts) {
				t.Errorf("it ended as %+v after the attempts %v, want superseded after %v", last, rc.attempts(older.ID), tc.attempts)
			}
		})
	}
}

// stalls measures until stop is called how long this machine keeps a goroutine from running that should: a process that
// is stopped between its last look and its request sends late by that much.
func (r *rig) stalls() (worst *time.Duration, stop func()) {
	worst = new(time.Duration)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			began := time.Now()
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			*worst = max(*worst, 3*time.Since(began))
		}
	}()
	stop = sync.OnceFunc(func() { close(done); <-ended })
	r.t.Cleanup(stop)
	return worst, stop
}

// TestLastOfEachDocumentIsDelivered: documents change while their receiver fails at random and dispatchers die before
// and after each write of a delivery. The last event of every document arrives, and no older one is sent more than a
// second after the record of a newer one's delivery.
func TestLastOfEachDocumentIsDelivered(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it waits for retries")
	}
	t.Parallel()
	const documents, events = 12, 8
	r := newRig(t, func(c *Config) {
		c.Delivery.Timeout, c.ackWaitOr = 200*time.Millisecond, 600*time.Millisecond
		c.RetryDelays = slices.Repeat([]time.Duration{1500 * time.Millisecond}, 5)
	})
	r.log = zap.NewNop() // faults are logged
	type request struct {
		id string
		at time.Time
	}
	var mu sync.Mutex
	var requests []request
	dice := rand.New(rand.NewPCG(1, 2))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		mu.Lock()
		defer mu.Unlock()
		requests = append(requests, request{req.Header.Get("Webhook-Id"), time.Now()})
		if attempt := req.Header.Get("Gancho-Attempt"); attempt < "3" && dice.IntN(2) == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	w := r.webhook(server.URL, skips)
	direct := r.cfg.Bus.URL
	for _, prefix := range []string{"$KV.LATEST.", "gancho.attempts.", "$JS.ACK."} { // one dies at each of them
		proxy, count := r.broker.Proxy(), 0
		proxy.Break(&bustest.Break{Fault: bustest.Unanswered, Freeze: true}, func(subject string, _ []byte) bool {
			if strings.HasPrefix(subject, prefix) {
				count++
			}
			return count == 5
		})
		r.cfg.Bus.URL = proxy.URL()
		r.start()
		t.Cleanup(proxy.Thaw) // else it cannot stop
	}
	r.cfg.Bus.URL = direct
	r.start()
	var ids [documents][events]string
	for e := range events {
		for d := range documents {
			ids[d][e] = r.publish(deal(w, fmt.Sprint("d", d), 1+e*documents+d))
		}
	}
	worst, stop := r.stalls()
	for d := range documents {
		for e := range events {
			r.end(ids[d][e])
		}
	}
	stop()
	within := time.Second + *worst
	skipped := 0
	for d := range documents {
		recorded := time.Time{} // the earliest record of a delivery of a later event
		for e := range slices.Backward(ids[d][:]) {
			id := ids[d][e]
			last := r.end(id)
			if last.Reason == notification.Superseded {
				skipped++
			}
			if e == events-1 && last.State != notification.Delivered {
				t.Errorf("the last event of document %d ended as %+v", d, last)
			}
			mu.Lock()
			for _, req := range requests {
				if req.id == id && !recorded.IsZero() && req.at.After(recorded.Add(within)) {
					t.Errorf("event %d of document %d was sent %v after a newer one was recorded as delivered", e, d, req.at.Sub(recorded))
				}
			}
			mu.Unlock()
			if last.State != notification.Delivered {
				continue
			}
			raw, err := r.bus.Get(t.Context(), topology.Attempts, "", last.Sequence)
			if err != nil {
				t.Fatal(err)
			}
			if recorded.IsZero() || raw.Time.Before(recorded) {
				recorded = raw.Time
			}
		}
	}
	if skipped == 0 {
		t.Error("nothing was stale: the test shows nothing")
	}
	t.Logf("%d of %d notifications were superseded, %d requests", skipped, documents*events, len(requests))
}
