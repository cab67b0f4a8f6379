package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// quickly makes suspensions a matter of seconds.
var quickly = []string{
	"SUSPENSION_WINDOW=1m", "SUSPENSION_MIN_FAILURES=10", "SUSPENSION_MIN_SPAN=500ms", "SUSPENSION_DURATION=1s", "SUSPENSION_MAX_DURATION=2s",
	"RETRY_DELAYS=400ms,400ms,400ms,10s,10s", // so that some attempts are left when the receiver is back
}

// hook asks the API for a webhook.
func (s *system) hook(id string) hook {
	s.t.Helper()
	var h hook
	if _, err := s.try(http.MethodGet, "/crm/v2/webhooks/"+id, nil, &h); err != nil {
		h.Status = err.Error()
	}
	return h
}

func (s *system) waitStatus(id, want string) hook {
	s.t.Helper()
	var h hook
	s.Until("the webhook is "+want, func() bool { h = s.hook(id); return h.Status == want })
	return h
}

// suspendByFailing publishes until the failing receiver's URL is suspended and returns the transactions.
func (s *system) suspendByFailing(h hook) []string {
	s.t.Helper()
	var txs []string
	s.Until("the failing URL is suspended", func() bool {
		if s.hook(h.ID).Status == "suspended" {
			return true
		}
		if len(txs) < 30 {
			txs = append(txs, s.publish(dealCreated))
		}
		return false
	})
	return txs
}

// settled waits until each notification has ended, and checks the ledger: delivered ones were accepted by
// the receiver, permanently failed ones were tried six times, and attempts came in order.
func (s *system) settled(rc *receiver, notifications []string, extra int) {
	s.t.Helper()
	var ends []note
	for _, id := range notifications {
		var n note
		s.Until("notification "+id+" has ended", func() bool {
			n = s.notification(id)
			return n.State == "delivered" || n.State == "permanently_failed" || n.State == "cancelled"
		})
		ends = append(ends, n)
	}
	seen := rc.snapshot()
	repeated := 0
	for i, n := range ends {
		attempts := seen[notifications[i]]
		distinct := slices.Compact(slices.Sorted(slices.Values(attempts)))
		repeated += len(attempts) - len(distinct)
		if len(distinct) != len(n.Attempts) && n.State != "cancelled" {
			s.t.Errorf("notification %s: the receiver saw attempts %v, recorded are %d", notifications[i], attempts, len(n.Attempts))
		}
		if n.State == "permanently_failed" && len(n.Attempts) != 6 {
			s.t.Errorf("notification %s is permanently failed after %d attempts", notifications[i], len(n.Attempts))
		}
	}
	if repeated > extra {
		s.t.Errorf("%d attempts were repeated, at most %d can be", repeated, extra)
	}
}

// statusEvents returns the events of WEBHOOK_STATUS for the webhook, in order.
func (s *system) statusEvents(id string) []string {
	s.t.Helper()
	stream, err := s.js.Stream(s.t.Context(), "WEBHOOK_STATUS")
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := stream.OrderedConsumer(s.t.Context(), jetstream.OrderedConsumerConfig{FilterSubjects: []string{"gancho.webhooks." + account + "." + id + ".*"}})
	if err != nil {
		s.t.Fatal(err)
	}
	batch, err := c.FetchNoWait(1000)
	if err != nil {
		s.t.Fatal(err)
	}
	var events []string
	for m := range batch.Messages() {
		var status struct {
			Schema    int    `json:"schema"`
			Event     string `json:"event"`
			WebhookID string `json:"webhook_id"`
			AccountID string `json:"account_id"`
			URLHost   string `json:"url_host"`
		}
		if err := json.Unmarshal(m.Data(), &status); err != nil || status.Schema != 1 || status.WebhookID != id || status.AccountID != account || status.URLHost == "" {
			s.t.Errorf("status event %s: %v", m.Data(), err)
		}
		var fields map[string]any
		if err := json.Unmarshal(m.Data(), &fields); err != nil {
			s.t.Error(err)
		}
		for _, name := range []string{"schema", "event", "account_id", "webhook_id", "url_host", "at", "until", "reason", "evidence"} {
			if _, there := fields[name]; !there {
				s.t.Errorf("status event %s has no %s", m.Data(), name)
			}
		}
		if !strings.HasSuffix(m.Subject(), "."+status.Event) {
			s.t.Errorf("status event %s on subject %s", status.Event, m.Subject())
		}
		events = append(events, status.Event)
	}
	return events
}

func testSuspendedURLIsSilentAndRecovers(t *testing.T, s *system) {
	rc := newReceiver(t, fail)
	h := s.register(dealCreated, rc.URL+"/dead")
	txs := s.suspendByFailing(h)
	got := s.hook(h.ID)
	if got.Suspension == nil || got.Suspension.Reason == "" {
		t.Errorf("suspension of the webhook: %+v", got.Suspension)
	}
	more := s.publishMany(40)
	s.waitAll(ids(dealCreated, h, more[len(more)-5:]), "parked")
	// Silent: from here on only probes, so no more requests than probe results are recorded.
	before := rc.total()
	s.Until("two probes", func() bool { return rc.total() >= before+2 })
	events := s.statusEvents(h.ID)
	if probes := count(events, "probing"); rc.total()-before > probes+1 {
		t.Errorf("%d requests to a suspended URL, %d probes are told", rc.total()-before, probes)
	}
	rc.become(succeed)
	s.settled(rc, ids(dealCreated, h, append(txs, more...)), 0)
	s.waitStatus(h.ID, "active")
	s.Until("the resume is told", func() bool { return slices.Contains(s.statusEvents(h.ID), "resumed") })
	events = s.statusEvents(h.ID)
	if count(events, "at_risk") != 1 || events[0] != "at_risk" || !slices.Contains(events, "suspended") || !slices.Contains(events, "probing") {
		t.Errorf("status events: %v", events)
	}
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

func testParkedArriveOldestFirst(t *testing.T, s *system) {
	rc := newReceiver(t, succeed)
	h := s.register(dealCreated, rc.URL)
	s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/suspend", nil, nil)
	s.waitStatus(h.ID, "suspended")
	want := ids(dealCreated, h, s.publishMany(50))
	s.waitAll(want, "parked")
	if n := rc.total(); n != 0 {
		t.Fatalf("a URL suspended by hand got %d requests", n)
	}
	s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/resume", nil, nil)
	s.waitAll(want, "delivered")
	rc.mu.Lock()
	defer rc.mu.Unlock()
	if !slices.Equal(rc.order, want) {
		t.Errorf("order of arrival:\n got %v\nwant %v", rc.order, want)
	}
}

func testReleaseByThreeDispatchers(t *testing.T, s *system) {
	s.AddDispatcher()
	s.AddDispatcher()
	rc := newReceiver(t, succeed)
	h := s.register(dealCreated, rc.URL)
	s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/suspend", nil, nil)
	s.waitStatus(h.ID, "suspended")
	want := ids(dealCreated, h, s.publishMany(200))
	s.waitAll(want[199:], "parked")
	s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/resume", nil, nil)
	s.waitListed(h, want, "delivered")
	for id, attempts := range rc.snapshot() {
		if len(attempts) != 1 {
			t.Errorf("notification %s was sent %v", id, attempts)
		}
	}
}

func testRedisLostDuringSuspension(t *testing.T, s *system) {
	rc, good := newReceiver(t, fail), newReceiver(t, succeed)
	h := s.register(dealCreated, rc.URL)
	healthy := s.register(dealCreated, good.URL)
	txs := s.suspendByFailing(h)
	client := s.redis.Client()
	flags := func() int {
		keys, err := client.Keys(context.Background(), "gancho:suspension:*").Result()
		if err != nil {
			return -1
		}
		return len(keys)
	}
	for round, lose := range []func(){
		func() { client.FlushAll(context.Background()) },
		func() { s.redis.Kill(); txs = append(txs, s.publishMany(5)...); s.redis.Restart() },
	} {
		lose()
		txs = append(txs, s.publishMany(5)...)
		s.Until(fmt.Sprintf("the flag is back in Redis, round %d", round), func() bool { return flags() == 1 })
		if status := s.hook(h.ID).Status; status != "suspended" {
			t.Errorf("round %d: the webhook is %s", round, status)
		}
	}
	s.waitAll(ids(dealCreated, healthy, txs), "delivered") // others have not noticed
	rc.become(succeed)
	s.settled(rc, ids(dealCreated, h, txs), 0)
}

func testKillMonitorAtEachStep(t *testing.T, s *system) {
	rc := newReceiver(t, fail)
	h := s.register(dealCreated, rc.URL)
	restart := func() { s.Monitor.Kill(); s.Monitor.Start() }
	txs := s.publishMany(8) // before the decision
	restart()
	txs = append(txs, s.suspendByFailing(h)...)
	restart() // suspended
	txs = append(txs, s.publishMany(10)...)
	before := rc.total()
	s.Until("a probe", func() bool { return rc.total() > before })
	restart() // with the probe's result on its way
	s.Monitor.Kill()
	txs = append(txs, s.publishMany(10)...) // without a monitor nothing is lost, and nothing is decided
	rc.become(succeed)
	s.Monitor.Start()
	s.settled(rc, ids(dealCreated, h, txs), 0)
	s.waitStatus(h.ID, "active")
	s.Until("the resume is told", func() bool { return slices.Contains(s.statusEvents(h.ID), "resumed") })
	if events := s.statusEvents(h.ID); count(events, "suspended") == 0 {
		t.Errorf("status events: %v", events)
	}
}

func testTwoMonitorsDecideOnce(t *testing.T, s *system) {
	second := *s.Monitor
	second.Start()
	t.Cleanup(second.Kill)
	rc := newReceiver(t, fail)
	h := s.register(dealCreated, rc.URL)
	s.suspendByFailing(h)
	s.Until("the suspension is told", func() bool { return slices.Contains(s.statusEvents(h.ID), "suspended") })
	if events := s.statusEvents(h.ID); count(events, "suspended") != 1 || count(events, "at_risk") > 1 {
		t.Errorf("status events: %v", events)
	}
}

func testFrozenProbingDispatcher(t *testing.T, s *system) {
	rc := newReceiver(t, fail)
	h := s.register(dealCreated, rc.URL)
	txs := s.suspendByFailing(h)
	txs = append(txs, s.publishMany(10)...)
	frozen := s.Dispatchers[0]
	var once sync.Once
	stopped := make(chan struct{})
	rc.become(func(w http.ResponseWriter, attempt string) { // the next request is a probe
		once.Do(func() {
			frozen.Signal(syscall.SIGSTOP)
			close(stopped)
		})
		succeed(w, attempt)
	})
	<-stopped
	s.AddDispatcher() // takes over when the frozen one's claim and lease have run out
	s.waitStatus(h.ID, "active")
	frozen.Signal(syscall.SIGCONT)
	// The frozen dispatcher's probe was accepted and is repeated by the other one: one attempt, twice.
	s.settled(rc, ids(dealCreated, h, txs), 1+10)
}

func testByHand(t *testing.T, s *system) {
	rc := newReceiver(t, fail) // notifications before the flag are parked at their retry
	var closed atomic.Bool
	moved := newReceiver(t, func(w http.ResponseWriter, attempt string) {
		if closed.Load() {
			fail(w, attempt)
		}
	})
	h, other := s.register(dealCreated, rc.URL), s.register("crm_deal_*", rc.URL)
	for range 2 { // idempotent
		if status := s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/suspend", nil, nil); status/100 != 2 {
			t.Fatalf("suspend: status %d", status)
		}
	}
	got := s.waitStatus(h.ID, "suspended")
	if got.Suspension == nil || !got.Suspension.Until.IsZero() {
		t.Errorf("suspension by hand: %+v", got.Suspension)
	}
	s.waitStatus(other.ID, "suspended") // the URL is, so every webhook of it is
	txs := s.publishMany(5)
	s.waitAll(ids(dealCreated, h, txs), "parked")
	s.waitAll(ids(dealCreated, other, txs), "parked")
	s.Until("the parked ones are counted", func() bool {
		now := s.hook(h.ID)
		return now.Suspension != nil && now.Suspension.Parked == 5
	})
	// Parked notifications follow a changed URL.
	if status := s.call(http.MethodPut, "/crm/v2/webhooks/"+h.ID, map[string]any{"url": moved.URL + "/new"}, nil); status != http.StatusOK {
		t.Fatalf("PUT: status %d", status)
	}
	s.waitAll(ids(dealCreated, h, txs), "delivered")
	if n := moved.total(); n != 5 {
		t.Errorf("the new URL got %d requests, want 5", n)
	}
	// Row 91 of the bad inputs: resumed by many at once, and again, what is parked is released once.
	s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/suspend", nil, nil)
	s.waitStatus(h.ID, "suspended")
	closed.Store(true) // as above
	held := ids(dealCreated, h, s.publishMany(5))
	s.waitAll(held, "parked")
	before := moved.snapshot()
	closed.Store(false)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if status, err := s.try(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/resume", nil, nil); err != nil || status/100 != 2 {
				t.Errorf("resume: status %d, %v", status, err)
			}
		})
	}
	wg.Wait()
	s.waitAll(held, "delivered")
	if status := s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/resume", nil, nil); status != http.StatusOK {
		t.Errorf("resume of an active one: status %d", status)
	}
	s.waitAll(ids(dealCreated, h, s.publishMany(1)), "delivered")
	seen := moved.snapshot()
	for _, id := range held {
		if len(seen[id]) != len(before[id])+1 {
			t.Errorf("notification %s was sent %v, and %v before it was parked: want once more", id, seen[id], before[id])
		}
	}
	s.call(http.MethodPost, "/crm/v2/webhooks/"+other.ID+"/suspend", nil, nil)
	s.waitStatus(other.ID, "suspended")
	late := s.publishMany(3)
	s.waitAll(ids(dealCreated, other, late), "parked") // an event matched after the deletion makes no notification
	// A deleted webhook's notifications are cancelled: the API says so at once, and they are taken out.
	if status := s.call(http.MethodDelete, "/crm/v2/webhooks/"+other.ID, nil, nil); status != http.StatusNoContent {
		t.Fatalf("DELETE: status %d", status)
	}
	s.waitAll(ids(dealCreated, other, late), "cancelled")
	s.Until("nothing is parked", func() bool { return s.parked() == 0 })
}

// parked is how many messages are on PARKED.
func (s *system) parked() int {
	s.t.Helper()
	stream, err := s.js.Stream(s.t.Context(), "PARKED")
	if err != nil {
		s.t.Fatal(err)
	}
	return int(stream.CachedInfo().State.Msgs)
}

func TestHangingURLsDoNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "MAX_IN_FLIGHT=128", "ATTEMPT_TIMEOUT=2s")
	release := make(chan struct{})
	hanging := newReceiver(t, func(http.ResponseWriter, string) { <-release })
	t.Cleanup(func() { close(release) })
	good := newReceiver(t, succeed)
	var healthy []hook
	for i := range 6 {
		s.register(dealCreated, fmt.Sprintf("%s/hang/%d", hanging.URL, i))
	}
	for i := range 4 {
		healthy = append(healthy, s.register(dealCreated, fmt.Sprintf("%s/ok/%d", good.URL, i)))
	}
	// 6 x 200 requests that hang for 2 s each would fill 128 places for 19 s if they shared them.
	txs := s.publishMany(200)
	began := time.Now()
	for _, h := range healthy {
		s.waitListed(h, ids(dealCreated, h, txs), "delivered")
	}
	t.Logf("the healthy webhooks' last delivery was seen %v after publishing ended; %d requests hung", time.Since(began).Round(time.Millisecond), hanging.total())
	if n := hanging.total(); n > 6*64 {
		t.Errorf("%d requests hang before the healthy ones are done", n)
	}
	if s.parked() == 0 {
		t.Error("nothing of the hanging URLs is parked")
	}
}
