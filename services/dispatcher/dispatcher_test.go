package dispatcher

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/net/dns/dnsmessage"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/delivery"
	"gancho/pkg/dnstest"
	"gancho/pkg/egress"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
	"gancho/pkg/webhook"
)

// rig is a dispatcher on a real broker, without publisher, monitor or management: the test plays them.
type rig struct {
	t        testing.TB
	broker   *bustest.Server
	bus      *bus.Bus
	webhooks *bus.Bucket
	flags    *bus.Bucket
	keys     *seal.Keyring
	cfg      Config
	log      *zap.Logger
	metrics  *prometheus.Registry // of the dispatcher started last
	health   *service.Health      // of it too
	run      func(context.Context, Config, *service.Process) error
	stop     func()
}

func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	broker := bustest.Start(t)
	r := &rig{t: t, broker: broker, keys: seal.New(), log: bustest.Logger(t), run: Run}
	keyFile := filepath.Join(t.TempDir(), "keys")
	if err := r.keys.Write(keyFile); err != nil {
		t.Fatal(err)
	}
	r.cfg = Config{
		Service: service.Config{ShutdownTimeout: 20 * time.Second}, Bus: bus.Config{URL: broker.URL()}, Limits: bustest.Limits(),
		Delivery:    delivery.Config{Timeout: 2 * time.Second},
		Egress:      egress.Config{AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}},
		RetryDelays: []time.Duration{100 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond, 150 * time.Millisecond, 200 * time.Millisecond},
		RetryJitter: 0.1, MaxRetryAfter: time.Second, MaxInFlight: 64, MaxInFlightBytes: 64 << 20, MaxInFlightPerURL: 16, ParkedMaxAge: time.Hour, EncryptionKeyFile: keyFile,
	}
	if change != nil {
		change(&r.cfg)
	}
	r.bus = broker.Topology(r.cfg.Limits)
	var err error
	if r.webhooks, err = r.bus.Bucket(t.Context(), topology.BucketWebhooks); err != nil {
		t.Fatal(err)
	}
	if r.flags, err = r.bus.Bucket(t.Context(), topology.BucketSuspensions); err != nil {
		t.Fatal(err)
	}
	return r
}

// start runs a dispatcher until the test ends or stop is called, which fails the test if it does not end well.
func (r *rig) start() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	r.metrics, r.health = prometheus.NewRegistry(), service.NewHealth()
	proc := &service.Process{Name: "dispatcher", Log: r.log, Metrics: r.metrics, Health: r.health}
	cfg := r.cfg // the next one may have another
	go func() { done <- r.run(ctx, cfg, proc) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("dispatcher: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
}

// webhook registers a webhook of account acme for every event.
func (r *rig) webhook(url string, change func(*webhook.Webhook)) *webhook.Webhook {
	r.t.Helper()
	return r.webhookOf("acme", url, change)
}

// webhookOf registers a webhook of the account for every event.
func (r *rig) webhookOf(account, url string, change func(*webhook.Webhook)) *webhook.Webhook {
	r.t.Helper()
	w := &webhook.Webhook{ID: uuid.NewString(), Account: account, Name: "test", EventName: "*", Method: http.MethodPost, URL: url, Status: webhook.Active, Version: 1}
	_, key := delivery.NewSecret()
	w.Secrets = []webhook.Secret{{Sealed: r.keys.Seal(key, w.SealContext("secret"))}}
	r.put(w, change)
	return w
}

func (r *rig) put(w *webhook.Webhook, change func(*webhook.Webhook)) {
	r.t.Helper()
	if change != nil {
		change(w)
		w.Version++
	}
	body, err := registry.Sign(r.keys, w)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.webhooks.Put(r.t.Context(), w.Key(), body); err != nil {
		r.t.Fatal(err)
	}
	w.URLKey, w.UUID = webhook.URLKey(w.URL), uuid.MustParse(w.ID)
}

// notify publishes notification number i of the webhook and returns its id.
func (r *rig) notify(w *webhook.Webhook, i int) string {
	r.t.Helper()
	return r.send(w, i, fmt.Appendf(nil, `{"i": %d }`, i))
}

// send is notify with a body.
func (r *rig) send(w *webhook.Webhook, i int, body []byte) string {
	r.t.Helper()
	eventID := event.ID(w.Account, "crm_deal_created", fmt.Sprint(i))
	n := &notification.Notification{
		Account: w.Account, ID: event.NotificationID(eventID, w.UUID), WebhookID: w.ID, EventID: eventID, EventName: "crm_deal_created",
		EventTime: time.Now(), Send: 1, Body: body,
	}
	if err := lane.Notify(r.bus, n).Wait(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return n.ID
}

// state waits until the last record of acme's notification has that state and returns it.
func (r *rig) state(id string, want notification.State) *notification.Record {
	r.t.Helper()
	return r.stateOf("acme", id, want)
}

// stateOf is state for any account.
func (r *rig) stateOf(account, id string, want notification.State) *notification.Record {
	r.t.Helper()
	var last *notification.Record
	var err error
	is := func() bool { return err == nil && last != nil && last.State == want }
	defer func() {
		if !is() {
			r.t.Logf("the last record of %s: %+v, %v", id, last, err)
		}
	}()
	r.until(fmt.Sprintf("notification %s is %s", id, want), func() bool {
		last, err = journal.Last(r.t.Context(), r.bus, account, id)
		return is()
	})
	return last
}

// end waits until the notification has ended, however it did, and returns its last record.
func (r *rig) end(id string) *notification.Record {
	r.t.Helper()
	var last *notification.Record
	r.until(fmt.Sprintf("notification %s has ended", id), func() bool {
		var err error
		last, err = journal.Last(r.t.Context(), r.bus, "acme", id)
		return err == nil && last.State.Terminal()
	})
	return last
}

func (r *rig) until(what string, is func() bool) { r.t.Helper(); waittest.Until(r.t, what, is) }

// receiver is a webhook's endpoint that remembers what it saw.
type receiver struct {
	*httptest.Server

	mu     sync.Mutex
	bodies []string
	seen   map[string][]string // Gancho-Attempt of each request, by webhook-id
	answer func(attempt string, w http.ResponseWriter)
}

func newReceiver(t *testing.T, answer func(attempt string, w http.ResponseWriter)) *receiver {
	t.Helper()
	rc := &receiver{seen: map[string][]string{}, answer: answer}
	rc.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		attempt := req.Header.Get("Gancho-Attempt")
		rc.mu.Lock()
		rc.bodies = append(rc.bodies, string(body))
		rc.seen[req.Header.Get("webhook-id")] = append(rc.seen[req.Header.Get("webhook-id")], attempt)
		rc.mu.Unlock()
		rc.answer(attempt, w)
	}))
	t.Cleanup(rc.Close)
	return rc
}

func (rc *receiver) attempts(id string) []string {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return slices.Clone(rc.seen[id])
}

func (rc *receiver) total() int {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return len(rc.bodies)
}

func ok(string, http.ResponseWriter) {}

func fails(_ string, w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) }

// TestLogLine: every attempt has one line with every field of the contract, and no field holds the URL.
func TestLogLine(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	r := newRig(t, nil)
	r.log = zap.New(core).With(zap.String("service", "dispatcher"))
	rc := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		if attempt == "1" {
			fails(attempt, w)
		}
	})
	w := r.webhook(rc.URL+"/path?query=1", nil)
	r.start()
	r.state(r.notify(w, 1), notification.Delivered)
	r.stop()
	lines := logs.FilterMessage("attempt").All()
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, line := range lines {
		got := line.ContextMap()
		for _, name := range []string{
			"service", "account_id", "webhook_id", "notification_id", "event_id", "event_name", "attempt", "outcome", "reason",
			"http_status", "duration_ms", "next_attempt_at", "url_host", "trace_id",
		} {
			if _, there := got[name]; !there {
				t.Errorf("line %d has no %s", i, name)
			}
		}
		if (got["next_attempt_at"] == nil) != (i == 1) {
			t.Errorf("line %d: next_attempt_at is %v", i, got["next_attempt_at"])
		}
		if text := fmt.Sprint(got); strings.Contains(text, "/path") || strings.Contains(text, "query") {
			t.Errorf("line %d: %s", i, text)
		}
	}
}

func TestDelivers(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL+"/hook", nil)
	r.start()
	id := r.notify(w, 7)
	last := r.state(id, notification.Delivered)
	if got := rc.attempts(id); !slices.Equal(got, []string{"1"}) {
		t.Errorf("attempts: got %v, want one", got)
	}
	if rc.bodies[0] != `{"i": 7 }` {
		t.Errorf("body: got %q", rc.bodies[0])
	}
	if last.Attempt == nil || last.Attempt.HTTPStatus != 200 || last.AttemptsDone != 1 {
		t.Errorf("record: got %+v", last)
	}
}

func TestSixAttemptsThenPermanentlyFailed(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	rc := newReceiver(t, fails)
	w := r.webhook(rc.URL, nil)
	r.start()
	var ids []string
	for i := range 20 {
		ids = append(ids, r.notify(w, i))
	}
	for _, id := range ids {
		last := r.state(id, notification.PermanentlyFailed)
		if got := rc.attempts(id); !slices.Equal(got, []string{"1", "2", "3", "4", "5", "6"}) {
			t.Errorf("attempts: got %v, want 1 to 6", got)
		}
		if last.Reason != "status_5xx" || last.AttemptsDone != 6 {
			t.Errorf("record: got %+v", last)
		}
		var numbers []int // newest first; records of a parking on the way stand between them
		for h, err := range journal.History(t.Context(), r.bus, last) {
			if err != nil {
				t.Fatal(err)
			}
			if h.Attempt != nil {
				numbers = append(numbers, h.Attempt.Number)
			}
		}
		if !slices.Equal(numbers, []int{6, 5, 4, 3, 2, 1}) {
			t.Errorf("the history has the attempts %v, want 6 to 1", numbers)
		}
		r.until("its payload is kept", func() bool {
			n, err := lane.Failed(t.Context(), r.bus, "acme", w.ID, id)
			return err == nil && len(n.Body) > 0
		})
	}
}

func TestRetriesUntilDelivered(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	rc := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		if attempt < "4" {
			fails(attempt, w)
		}
	})
	w := r.webhook(rc.URL, nil)
	r.start()
	id := r.notify(w, 1)
	r.state(id, notification.Delivered)
	if got := rc.attempts(id); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
		t.Errorf("attempts: got %v, want 1 to 4", got)
	}
}

// flag suspends the webhook's URL as the monitor would.
func (r *rig) flag(w *webhook.Webhook, until time.Time) suspension.Flag {
	r.t.Helper()
	f := suspension.Flag{Account: w.Account, URLKey: w.URLKey, State: suspension.Suspended, Trip: "trip-1", Since: time.Now(), Until: until, Trips: 1}
	body, err := json.Marshal(f)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.flags.Put(r.t.Context(), f.Key().String(), body); err != nil {
		r.t.Fatal(err)
	}
	return f
}

func TestParksForSuspendedURLAndReleasesInOrder(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, func(c *Config) { c.MaxInFlightPerURL = 1 }) // order is kept up to the requests in flight
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, nil)
	f := r.flag(w, time.Time{})
	r.start()
	var ids []string
	var want []string
	for i := range 30 {
		ids = append(ids, r.notify(w, i))
		want = append(want, fmt.Sprintf(`{"i": %d }`, i))
		if last := r.state(ids[i], notification.Parked); last.Reason != notification.Suspended || last.AttemptsDone != 0 {
			t.Fatalf("record: got %+v", last)
		}
	}
	if n := rc.total(); n != 0 {
		t.Fatalf("a suspended URL got %d requests", n)
	}
	if err := r.flags.Delete(t.Context(), f.Key().String(), 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		r.state(id, notification.Delivered)
	}
	rc.mu.Lock()
	defer rc.mu.Unlock()
	if !slices.Equal(rc.bodies, want) {
		t.Fatalf("got %v, want %v", rc.bodies, want)
	}
}

func TestProbe(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, nil)
	var mu sync.Mutex
	healthy := false
	rc := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		mu.Lock()
		defer mu.Unlock()
		if !healthy {
			fails(attempt, w)
		}
	})
	w := r.webhook(rc.URL, nil)
	f := r.flag(w, time.Now().Add(time.Hour))
	r.start()
	var ids []string
	for i := range 10 {
		ids = append(ids, r.notify(w, i))
		r.state(ids[i], notification.Parked)
	}
	r.flag(w, time.Now()) // its time has come
	r.until("one probe", func() bool { return rc.total() == 1 })
	last := r.state(ids[0], notification.Retrying) // it counts as an attempt of the oldest
	if !last.Probe || last.Trip != f.Trip || last.AttemptsDone != 1 {
		t.Errorf("record of the probe: got %+v", last)
	}
	entry, err := r.flags.Get(t.Context(), f.Key().String())
	var claimed suspension.Flag
	if err != nil || json.Unmarshal(entry.Value, &claimed) != nil || claimed.State != suspension.Probing {
		t.Errorf("flag while probing: got %s, %v", entry.Value, err)
	}
	if n := rc.total(); n != 1 {
		t.Errorf("got %d requests before the verdict, want 1", n)
	}
	mu.Lock()
	healthy = true
	mu.Unlock()
	r.flag(w, time.Now()) // the verdict: failed, suspended again, and due again
	for _, id := range ids[1:2] {
		r.state(id, notification.Delivered)
	}
	if err := r.flags.Delete(t.Context(), f.Key().String(), 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		r.state(id, notification.Delivered)
	}
}

func TestWebhookGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, nil)
	if _, err := r.webhooks.Put(t.Context(), w.Key(), registry.SignDeletion(r.keys, w)); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.state(r.notify(w, 1), notification.Cancelled)
	if rc.total() != 0 {
		t.Error("a deleted webhook got a request")
	}
}

// TestDeletedDuringAnAttempt: row 90 of the bad inputs. The attempt under way ends as it would; no other follows.
func TestDeletedDuringAnAttempt(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer int
		want   notification.State
	}{
		"that fails":    {http.StatusInternalServerError, notification.Cancelled},
		"that succeeds": {http.StatusOK, notification.Delivered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *Config) { c.Delivery.Timeout = 30 * time.Second })
			deleted := make(chan struct{})
			rc := newReceiver(t, func(_ string, w http.ResponseWriter) {
				<-deleted
				w.WriteHeader(tc.answer)
			})
			w, other := r.webhook(rc.URL, nil), r.webhook(newReceiver(t, ok).URL, nil)
			release := sync.OnceFunc(func() { close(deleted) })
			defer release()
			r.start()
			id := r.notify(w, 1)
			r.until("the attempt is under way", func() bool { return rc.total() == 1 })
			revision, err := r.webhooks.Put(t.Context(), w.Key(), registry.SignDeletion(r.keys, w))
			if err != nil {
				t.Fatal(err)
			}
			watching, end := context.WithCancel(t.Context())
			_ = r.webhooks.Watch(watching, func(e bus.Entry) { // until the dispatcher should know, too
				if e.Revision == revision {
					end()
				}
			}, nil)
			early := 0 // sent all the same, because the dispatcher did not know yet
			for i, known := 2, false; !known; i++ {
				later := r.notify(w, i)
				r.until("what comes after the deletion is cancelled", func() bool {
					last, err := journal.Last(t.Context(), r.bus, "acme", later)
					known = err == nil && last.State == notification.Cancelled
					return known || rc.total() > 1+early
				})
				if early = rc.total() - 1; early > 6 { // one more would wait for a slot
					t.Fatalf("%d notifications were sent after the deletion", early)
				}
			}
			release()
			if last := r.end(id); last.State != tc.want || last.AttemptsDone != 1 {
				t.Errorf("it ended %s after %d attempts, want %s after one", last.State, last.AttemptsDone, tc.want)
			}
			r.state(r.notify(other, 3), notification.Delivered) // the others go on
			if got := rc.attempts(id); !slices.Equal(got, []string{"1"}) || rc.total() != 1+early {
				t.Errorf("attempts: got %v of %d requests, want one of %d", got, rc.total(), 1+early)
			}
		})
	}
}

// TestRebinding: row 28 of the bad inputs. A name that leads to a forbidden address, at once or from the second
// look-up on, costs its notification six attempts and the address no connection.
func TestRebinding(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	const open, closed = "127.0.0.2", "127.0.0.3"
	var lookups atomic.Int32
	dns := nameServer(t, func(name string) string {
		if name == "rebinding.test." && lookups.Add(1) == 1 {
			return open
		}
		return closed
	})
	r := newRig(t, func(c *Config) { c.Egress.AllowCIDRs, c.Egress.DNSServer = []string{open + "/32"}, dns })
	sink, err := net.Listen("tcp4", "0.0.0.0:0") // whatever it is called
	if err != nil {
		t.Fatal(err)
	}
	var connections sync.Map // by the address they came to
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close") // so that each attempt looks the name up
	}), ConnState: func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			host, _, _ := net.SplitHostPort(c.LocalAddr().String())
			connections.Store(host, true)
		}
	}}
	go func() { _ = srv.Serve(sink) }()
	t.Cleanup(func() { _ = srv.Close() })
	_, port, _ := net.SplitHostPort(sink.Addr().String())
	fixed, rebinding := r.webhook("http://fixed.test:"+port, nil), r.webhook("http://rebinding.test:"+port, nil)
	r.start()
	r.state(r.notify(rebinding, 1), notification.Delivered) // as long as the name leads where it may
	for i, w := range []*webhook.Webhook{fixed, rebinding} {
		last := r.state(r.notify(w, 10+i), notification.PermanentlyFailed)
		if last.Reason != string(delivery.BlockedAddress) || last.AttemptsDone != notification.MaxAttempts {
			t.Errorf("%s: %d attempts, reason %s; want 6 and blocked_address", w.URL, last.AttemptsDone, last.Reason)
		}
	}
	if _, reached := connections.Load(closed); reached {
		t.Error("the forbidden address got a connection")
	}
}

// nameServer answers every question for an address with what answer says.
func nameServer(t *testing.T, answer func(name string) string) string {
	t.Helper()
	return dnstest.Start(t, func(q dnsmessage.Question, m *dnsmessage.Message) bool {
		if q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{dnstest.Address(q, netip.MustParseAddr(answer(q.Name.String())).As4())}
		}
		return true
	})
}

// TestLoopIsBounded: a receiver that answers each notification with two more events. The loop grows to the URL's
// share and not beyond, others are delivered at the same time, and it ends with its webhook.
func TestLoopIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	const share = 4
	r := newRig(t, func(c *Config) { c.MaxInFlightPerURL = share })
	var next, now, most atomic.Int32
	var w *webhook.Webhook
	loop := newReceiver(t, func(string, http.ResponseWriter) {
		n := now.Add(1)
		defer now.Add(-1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		for range 2 {
			eventID := event.ID("acme", "crm_deal_created", fmt.Sprint("loop", next.Add(1)))
			_ = lane.Notify(r.bus, &notification.Notification{
				Account: "acme", ID: event.NotificationID(eventID, w.UUID), WebhookID: w.ID, EventID: eventID, EventName: "crm_deal_created",
				EventTime: time.Now(), Send: 1, Body: []byte(`{}`),
			}).Wait(context.Background())
		}
	})
	w = r.webhook(loop.URL, nil)
	other := r.webhook(newReceiver(t, ok).URL, nil)
	r.start()
	r.notify(w, 0)
	r.until("the loop runs", func() bool { return loop.total() > 300 })
	var beside []string
	for i := range 20 {
		beside = append(beside, r.notify(other, 1+i))
	}
	for _, id := range beside {
		r.state(id, notification.Delivered)
	}
	if n := most.Load(); n > share {
		t.Errorf("%d requests at once, want at most %d", n, share)
	}
	if _, err := r.webhooks.Put(t.Context(), w.Key(), registry.SignDeletion(r.keys, w)); err != nil {
		t.Fatal(err)
	}
	r.state(r.notify(w, 9999), notification.Cancelled) // it is known
	r.until("what is under way has ended", func() bool { return now.Load() == 0 })
	ended := loop.total()
	r.state(r.notify(other, 9999), notification.Delivered)
	if n := loop.total(); n > ended+share {
		t.Errorf("%d more requests after the webhook was deleted", n-ended)
	}
}

// TestForgedAttempts: row 62 of the bad inputs, in both lanes. What claims attempts that cannot be leads to no
// request, and the notification behind it is delivered.
func TestForgedAttempts(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, nil)
	js := r.broker.JetStream()
	var forged uint64
	for _, bad := range [][2]string{
		{"Attempts-Done", "6"},
		{"Attempts-Done", "7"},
		{"Attempts-Done", "-1"},
		{"Attempts-Done", `"1"`},
		{"Attempts-Done", "1.0"},
		{"Attempts-Done", "9999999999999999999999"},
		{"Send", "0"},
		{"Send", "-1"},
		{"Send", ""},
	} {
		eventID := event.ID(w.Account, "crm_deal_created", fmt.Sprint("forged", forged))
		id := event.NotificationID(eventID, w.UUID)
		h := nats.Header{
			"Gancho-Schema": {"1"}, "Gancho-Account": {w.Account}, "Gancho-Event-Name": {"crm_deal_created"}, "Gancho-Event-Id": {eventID},
			"Gancho-Webhook-Id": {w.ID}, "Gancho-Notification-Id": {id}, "Gancho-Send": {"1"},
		}
		h["Gancho-"+bad[0]] = []string{bad[1]}
		for _, subject := range []string{"gancho.notifications.acme." + id, "gancho.retries.due.acme." + w.ID + "." + id} {
			if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: h, Data: []byte(`{"forged":true}`)}); err != nil {
				t.Fatal(err)
			}
			forged++
		}
	}
	r.start()
	r.state(r.notify(w, 1), notification.Delivered)
	r.until("all forged ones are set aside", func() bool {
		s, err := js.Stream(t.Context(), topology.Quarantine)
		return err == nil && s.CachedInfo().State.Msgs == forged
	})
	if rc.total() != 1 {
		t.Errorf("%d requests, want the good one's only", rc.total())
	}
}

func TestDisabledIsParkedUntilActive(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, func(w *webhook.Webhook) { w.Status = webhook.Disabled })
	r.start()
	id := r.notify(w, 1)
	if last := r.state(id, notification.Parked); last.Reason != notification.Disabled {
		t.Errorf("record: got %+v", last)
	}
	r.put(w, func(w *webhook.Webhook) { w.Status = webhook.Active })
	r.state(id, notification.Delivered)
}

func TestSaturatedIsParkedAndDelivered(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.MaxInFlightPerURL = 2 })
	gate := make(chan struct{})
	rc := newReceiver(t, func(string, http.ResponseWriter) { <-gate })
	w := r.webhook(rc.URL, nil)
	r.start()
	var ids []string
	for i := range 20 {
		ids = append(ids, r.notify(w, i))
	}
	r.until("something is saturated", func() bool {
		backlogs, err := lane.Backlogs(t.Context(), r.bus, "acme")
		return err == nil && len(backlogs) == 1 && backlogs[0].Messages > 0
	})
	close(gate)
	for _, id := range ids {
		r.state(id, notification.Delivered)
		// On a busy machine those held back may have timed out before something was parked.
		if got := rc.attempts(id); len(got) < 1 || len(got) > 2 {
			t.Errorf("attempts: got %v, want one, or two of what was held back", got)
		}
	}
}

func TestExpiresWhileSuspended(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.ParkedMaxAge = 500 * time.Millisecond })
	rc := newReceiver(t, ok)
	w := r.webhook(rc.URL, nil)
	r.flag(w, time.Now().Add(time.Hour))
	r.start()
	id := r.notify(w, 1)
	last := r.state(id, notification.PermanentlyFailed)
	if last.Reason != "expired_while_suspended" || rc.total() != 0 {
		t.Errorf("record: got %+v, %d requests", last, rc.total())
	}
	r.until("its payload is kept", func() bool {
		_, err := lane.Failed(t.Context(), r.bus, "acme", w.ID, id)
		return err == nil
	})
}

func TestPanickingNotificationIsQuarantined(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, nil)
	r.run = func(ctx context.Context, cfg Config, proc *service.Process) error {
		return run(ctx, cfg, proc, nil) // every attempt dereferences a nil sender
	}
	rc := newReceiver(t, ok)
	w, gone := r.webhook(rc.URL, nil), r.webhook(rc.URL+"/gone", nil)
	if _, err := r.webhooks.Put(t.Context(), gone.Key(), registry.SignDeletion(r.keys, gone)); err != nil {
		t.Fatal(err)
	}
	r.start()
	id := r.notify(w, 1)
	last := r.state(id, notification.PermanentlyFailed)
	if last.Reason != string(delivery.InternalError) || last.AttemptsDone != 0 {
		t.Errorf("record: got %+v", last)
	}
	r.until("its payload is kept", func() bool {
		_, err := lane.Failed(t.Context(), r.bus, "acme", w.ID, id)
		return err == nil
	})
	r.state(r.notify(gone, 2), notification.Cancelled) // the dispatcher goes on
}

// TestJournalDecides plays what a crash leaves behind: the notification is delivered again, and the journal
// tells what was done.
func TestJournalDecides(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		record notification.Record // what the dispatcher wrote before it died; Send 0: nothing
		want   notification.State
		sent   []string // attempts that follow
	}{
		"before the attempt":              {want: notification.Delivered, sent: []string{"1"}},
		"after the record of a success":   {record: notification.Record{State: notification.Delivered, Send: 1, AttemptsDone: 1}, want: notification.Delivered},
		"after the record of a failure":   {record: notification.Record{State: notification.Retrying, Send: 1, AttemptsDone: 1}, want: notification.Delivered, sent: []string{"2"}},
		"after the record of the last":    {record: notification.Record{State: notification.PermanentlyFailed, Send: 1, AttemptsDone: 6}, want: notification.PermanentlyFailed},
		"after the record of parking":     {record: notification.Record{Kind: notification.KindParked, State: notification.Parked, Reason: notification.Saturated, Send: 1}, want: notification.Delivered, sent: []string{"1"}},
		"of a send that is over":          {record: notification.Record{State: notification.Delivered, Send: 2, AttemptsDone: 1}, want: notification.Delivered},
		"of a message that has moved on":  {record: notification.Record{State: notification.Retrying, Send: 1, AttemptsDone: 2, Moves: 1}, want: notification.Retrying},
		"of a send that follows a failed": {record: notification.Record{State: notification.PermanentlyFailed, AttemptsDone: 6}, want: notification.Delivered, sent: []string{"1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *Config) { c.Delivery.Timeout = 100 * time.Millisecond })
			rc := newReceiver(t, ok)
			w := r.webhook(rc.URL, nil)
			first, err := lane.First(t.Context(), r.bus, r.cfg.ackWait())
			if err != nil {
				t.Fatal(err)
			}
			id := r.notify(w, 1)
			var dead *lane.Delivery // it was handed to a dispatcher that died with it
			for dead == nil {
				if _, err := first.Pull(t.Context(), 1, bus.Unbounded, func(d *lane.Delivery) { dead = d }); err != nil {
					t.Fatal(err)
				}
			}
			if rec := tc.record; rec.State != "" {
				rec.Kind = cmp.Or(rec.Kind, notification.KindAttempt)
				rec.At, rec.Account, rec.WebhookID, rec.NotificationID, rec.URLKey = time.Now(), w.Account, w.ID, id, w.URLKey
				rec.EventID, rec.EventName = dead.EventID, dead.EventName
				if _, err := journal.Write(t.Context(), r.bus, &rec); err != nil {
					t.Fatal(err)
				}
			}
			dead.NakAfter(time.Millisecond) // the ack wait, shortened
			r.start()
			if tc.sent != nil {
				r.until("the attempts that follow", func() bool { return slices.Equal(rc.attempts(id), tc.sent) })
			}
			r.until("the broker holds nothing of it any more", func() bool {
				n, err := first.AckPending(t.Context())
				return err == nil && n == 0
			})
			r.state(id, tc.want)
			if got := rc.attempts(id); !slices.Equal(got, tc.sent) {
				t.Errorf("attempts: got %v, want %v", got, tc.sent)
			}
		})
	}
}

// TestReleasesInOrderOfEvents: notifications that were attempted before the suspension are parked when they fall due,
// after those that came during it, and are released before them.
func TestReleasesInOrderOfEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) {
		c.MaxInFlightPerURL = 1 // order is kept up to the requests in flight
		c.RetryDelays = slices.Repeat([]time.Duration{time.Hour}, 5)
	})
	rc := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		if attempt == "1" {
			fails(attempt, w)
		}
	})
	w := r.webhook(rc.URL, nil)
	r.start()
	var older []string
	for i := range 5 {
		older = append(older, r.notify(w, i))
		r.state(older[i], notification.Retrying)
	}
	f := r.flag(w, time.Time{})
	r.until("the dispatcher knows", func() bool {
		id := r.notify(w, 100+rc.total())
		parked := false
		r.until("it is parked or failed", func() bool {
			last, err := journal.Last(t.Context(), r.bus, "acme", id)
			parked = err == nil && last.State == notification.Parked
			return parked || err == nil && last.State == notification.Retrying
		})
		return parked
	})
	before := rc.total()
	for i, id := range older { // the hour passes
		x, err := lane.Scheduled(t.Context(), r.bus, "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		due := x.Notification
		due.Moves++
		if err := lane.Schedule(t.Context(), r.bus, &due, time.Now()); err != nil {
			t.Fatal(err)
		}
		r.state(older[i], notification.Parked)
	}
	backlogs, err := lane.Backlogs(t.Context(), r.bus, "acme")
	if err != nil || len(backlogs) != 1 || backlogs[0].Lane != w.URLKey || backlogs[0].Messages < 6 {
		t.Fatalf("backlogs: %+v, %v", backlogs, err)
	}
	if err := r.flags.Delete(t.Context(), f.Key().String(), 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range older {
		r.state(id, notification.Delivered)
	}
	r.until("the others are sent", func() bool { return rc.total() > before+5 })
	rc.mu.Lock()
	defer rc.mu.Unlock()
	for i := range 5 {
		if want := fmt.Sprintf(`{"i": %d }`, i); rc.bodies[before+i] != want {
			t.Errorf("request %d after the release: got %s, want %s", i, rc.bodies[before+i], want)
		}
	}
}
