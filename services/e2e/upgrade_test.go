package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/event"
	"gancho/pkg/seal"
	"gancho/services/internal/testsystem"
)

// newest is one process of each service of a version yet to come, which writes a schema that the others do
// not know (build tag rehearsal).
type newest struct{ publisher, dispatcher, monitor *testsystem.Process }

func (n newest) all() []*testsystem.Process {
	return []*testsystem.Process{n.publisher, n.dispatcher, n.monitor}
}

func (s *system) startNewest(bin string) newest {
	s.t.Helper()
	n := newest{s.StartFrom(bin, "publisher"), s.StartFrom(bin, "dispatcher"), s.StartFrom(bin, "suspension-monitor")}
	s.t.Cleanup(func() {
		for _, p := range n.all() {
			if s.t.Failed() {
				s.t.Logf("last lines of the newer %s:\n%s", p.Name, p.Output())
			}
			p.Kill()
		}
	})
	return n
}

// count is the value of a counter, 0 while there is none.
func (s *system) count(p *testsystem.Process, series string) float64 {
	v, _ := s.metric(p, series)
	return v
}

// TestRollingUpgrade runs two versions side by side under load, goes back to the old one, and then forward for
// good. What the newer one wrote waits for it whenever an older process meets it: on NOTIFICATIONS, RETRIES and
// PARKED, in the journal and in the registry. Nothing is lost, sent twice, used up or set aside.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	const otherAccount, otherToken = "other", "test-token-of-other"
	s := newSystem(t, "API_TOKENS="+account+":"+token+","+otherAccount+":"+otherToken)
	next, err := newestBinaries()
	if err != nil {
		t.Fatal(err)
	}
	good, parked := newReceiver(t, succeed), newReceiver(t, succeed)
	flaky := newReceiver(t, func(w http.ResponseWriter, attempt string) {
		if attempt < "6" {
			fail(w, attempt)
		}
	})
	hooks := []hook{s.register(dealCreated, good.URL), s.register(dealCreated, flaky.URL), s.register(dealCreated, parked.URL)}
	s.token = otherToken
	others := s.register(dealCreated, good.URL)
	s.token = token
	old := s.Dispatchers[0]

	// Old and new side by side.
	txs := s.publishMany(10)
	newer := s.startNewest(next)
	s.suspendByHand(hooks[2])
	for s.count(newer.dispatcher, `gancho_attempts_total{outcome="delivered",reason=""}`) < 5 ||
		s.count(old, `gancho_attempts_total{outcome="delivered",reason=""}`) < 15 ||
		s.count(old, `gancho_newer_messages_total{stream="NOTIFICATIONS"}`) < 5 || s.count(old, `gancho_newer_messages_total{stream="RETRIES"}`) < 5 {
		txs = append(txs, s.publishMany(5)...)
	}
	s.Until("something of the newer version is parked", func() bool {
		return s.count(newer.dispatcher, `gancho_notifications_parked_total{reason="suspended"}`) > 0
	})

	// Back to the old version: what the newer one wrote waits, the rest goes on.
	for _, p := range newer.all() {
		s.stopCleanly(p)
	}
	alone := s.publishMany(10)
	s.waitAll(ids(dealCreated, hooks[0], alone), "delivered")
	s.waitAll(ids(dealCreated, hooks[1], alone), "delivered")
	s.call(http.MethodPost, "/crm/v2/webhooks/"+hooks[2].ID+"/resume", nil, nil)
	s.waitAll(ids(dealCreated, hooks[2], alone), "delivered")
	txs = append(txs, alone...)
	s.raiseSchema(otherAccount, others)
	notTold := s.publishAs(otherAccount)
	s.Until("the old publisher leaves an event to the newer one", func() bool {
		return s.count(s.Publisher, `gancho_newer_messages_total{stream="CRM_EVENTS"}`) > 0
	})
	waiting := 0
	for _, id := range ids(dealCreated, hooks[0], txs) {
		if s.notification(id).State != "delivered" {
			waiting++
		}
	}
	t.Logf("%d events, of which %d wait for the newer version at %v", len(txs), waiting, time.Now().Format(time.TimeOnly))

	// Forward for good.
	newer = s.startNewest(next)
	for _, p := range []*testsystem.Process{s.Publisher, old, s.Monitor} {
		txs = append(txs, s.publishMany(5)...)
		s.stopCleanly(p)
	}
	s.Monitor = newer.monitor
	txs = append(txs, s.publishMany(5)...)
	for _, h := range hooks {
		s.waitAll(ids(dealCreated, h, txs), "delivered")
	}
	told := event.NotificationID(eventID(otherAccount, dealCreated, notTold), uuid.MustParse(others.ID))
	s.Until("the event that waited in CRM_EVENTS is told", func() bool { return len(good.snapshot()[told]) > 0 })
	for name, seen := range map[string]map[string][]string{"good": good.snapshot(), "parked": parked.snapshot()} {
		for id, attempts := range seen {
			if !slices.Equal(attempts, []string{"1"}) {
				t.Errorf("%s: notification %s was sent %v", name, id, attempts)
			}
		}
	}
	for id, attempts := range flaky.snapshot() {
		if !slices.Equal(attempts, []string{"1", "2", "3", "4", "5", "6"}) {
			t.Errorf("notification %s was tried %v", id, attempts)
		}
	}
	quarantine, err := s.js.Stream(t.Context(), "QUARANTINE")
	if err != nil {
		t.Fatal(err)
	}
	if n := quarantine.CachedInfo().State.Msgs; n != 0 {
		t.Errorf("%d messages were set aside", n)
	}
	s.waitBooks(`gancho_notifications{state="delivered"}`, float64(3*len(txs)+1))
	s.waitBooks(`gancho_unaccounted_notifications{}`, 0)
}

// suspendByHand suspends the webhook's URL and waits until the dispatchers know.
func (s *system) suspendByHand(h hook) {
	s.t.Helper()
	s.call(http.MethodPost, "/crm/v2/webhooks/"+h.ID+"/suspend", nil, nil)
	s.Until("it is suspended", func() bool {
		var got hook
		s.call(http.MethodGet, "/crm/v2/webhooks/"+h.ID, nil, &got)
		return got.Status == "suspended"
	})
}

// raiseSchema rewrites the webhook as the newer version would that uses something new.
func (s *system) raiseSchema(account string, h hook) {
	s.t.Helper()
	bucket, err := s.js.KeyValue(s.t.Context(), "WEBHOOKS")
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := bucket.Get(s.t.Context(), account+"."+h.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	var w map[string]any
	if err := json.Unmarshal(e.Value(), &w); err != nil {
		s.t.Fatal(err)
	}
	delete(w, "mac")
	version, _ := w["version"].(float64)
	w["schema"], w["version"] = 4, version+1
	body, err := json.Marshal(w)
	if err != nil {
		s.t.Fatal(err)
	}
	keys, _, err := seal.Load(filepath.Join(filepath.Dir(s.Broker.Args[2]), "encryption.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	body = body[:len(body)-1] // as management signs a record, see package registry
	value := fmt.Appendf(nil, `%s,"mac":%q}`, body, keys.MAC("registry record", fmt.Appendf(nil, "%s\x00%s", e.Key(), body)))
	if _, err := bucket.Put(s.t.Context(), e.Key(), value); err != nil {
		s.t.Fatal(err)
	}
	s.registered.Store(time.Now().UnixNano())
}

// publishAs publishes one event of another account.
func (s *system) publishAs(account string) string {
	s.t.Helper()
	s.settle()
	id := uuid.NewString()
	if _, err := s.js.Publish(s.t.Context(), "crm.events."+account+"."+dealCreated, fmt.Appendf(nil, `{"document":{"id":"`+documentID+`"},"transaction_uuid":%q}`, id), jetstream.WithMsgID(id)); err != nil {
		s.t.Fatal(err)
	}
	return id
}
