package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"gancho/pkg/event"
	"gancho/services/internal/testsystem"
)

// eventID is the id of an event of documentID.
func eventID(accountID, eventName, transaction string) string {
	return event.ID(accountID, eventName, transaction+"/"+documentID)
}

// ids returns the notification ids that events of documentID with these transaction_uuids have for the webhook.
func ids(eventName string, h hook, transactions []string) []string {
	var out []string
	for _, tx := range transactions {
		out = append(out, event.NotificationID(eventID(account, eventName, tx), uuid.MustParse(h.ID)))
	}
	return out
}

const dealCreated = "crm_deal_created"

func (s *system) publishMany(n int) []string {
	s.t.Helper()
	var txs []string
	for range n {
		txs = append(txs, s.publish(dealCreated))
	}
	return txs
}

func testDeliversByteForByte(t *testing.T, s *system) {
	rc := newReceiver(t, succeed)
	h := s.register(dealCreated, rc.URL+"/in")
	txs := s.publishMany(1)
	id := ids(dealCreated, h, txs)[0]
	n := s.waitAll([]string{id}, "delivered")[0]
	if len(n.Attempts) != 1 || n.Attempts[0].Outcome != "delivered" {
		t.Errorf("attempts: %+v", n.Attempts)
	}
	want := fmt.Sprintf(`{"event_name":"crm_deal_created","document":{"id":"67900a6e0000000000000001","amount_total":1200.50},"event_timestamp":"2026-01-21T20:58:22.000Z","transaction_uuid":%q}`, txs[0])
	if got := rc.bodies[id]; !slices.Equal(got, []string{want}) {
		t.Errorf("bodies:\n got %s\nwant %s", got, want)
	}

	// Rows 48, 52, 53 and 60 of the bad inputs, at the second attempt too.
	rc.become(func(w http.ResponseWriter, attempt string) {
		if attempt == "1" {
			fail(w, attempt)
		}
	})
	for i, body := range []string{
		`{"a":9007199254740993,"b":1e400,"c":-0,"d":1E+2,"e":1.50,"f":0.1e-7}`,
		"{\"a\":\"\xff\xfe\",\"b\":\"\\ud800\",\"c\":\"\\u0000\"}",
		`{"a":1,"a":2,"A":3}`,
		"\r\n {\t\"z\" : \"<script>&\\r\\n\\u001b[2J\u2028\x7f\" ,\n\"a\":[ ] }\n",
		`{"a":"` + strings.Repeat("é", (1<<20-8)/2) + `"}`, // exactly EVENT_MAX_BYTES
	} {
		key := fmt.Sprint("bytes-", i)
		if _, err := s.js.PublishMsg(t.Context(), &nats.Msg{
			Subject: event.Subject(account, dealCreated), Data: []byte(body), Header: nats.Header{event.HeaderMsgID: {key}},
		}); err != nil {
			t.Fatal(err)
		}
		id := event.NotificationID(event.ID(account, dealCreated, key), uuid.MustParse(h.ID)) // no transaction, no document
		s.waitAll([]string{id}, "delivered")
		rc.mu.Lock()
		if got := rc.bodies[id]; !slices.Equal(got, []string{body, body}) {
			t.Errorf("body %d: %d requests, the first with %.100q; want two with %d bytes %.100q", i, len(got), got[0], len(body), body)
		}
		rc.mu.Unlock()
	}
}

// checkSix asserts that each notification was tried six times, plus at most one for each kill that hit it
// in mid-attempt, that no attempt was skipped, and that it is permanently failed.
func checkSix(t *testing.T, s *system, rc *receiver, notifications []string, kills int) {
	t.Helper()
	ended := s.waitAll(notifications, "permanently_failed")
	seen := rc.snapshot()
	if len(seen) != len(notifications) {
		t.Errorf("the receiver saw %d notifications, want %d", len(seen), len(notifications))
	}
	extra := 0
	for i, id := range notifications {
		attempts := seen[id]
		distinct := slices.Compact(slices.Sorted(slices.Values(attempts)))
		if !slices.Equal(distinct, []string{"1", "2", "3", "4", "5", "6"}) {
			t.Errorf("notification %s was tried %v: an attempt is missing", id, attempts)
		}
		if len(attempts) > 6+kills {
			t.Errorf("notification %s was tried %d times with %d kills", id, len(attempts), kills)
		}
		extra += len(attempts) - 6
		if n := ended[i]; len(n.Attempts) != 6 {
			t.Errorf("notification %s has %d recorded attempts, want 6", id, len(n.Attempts))
		}
	}
	if extra > mostRepeated*kills {
		t.Errorf("%d attempts were repeated after %d kills", extra, kills)
	}
	t.Logf("%d notifications, %d repeated attempts after %d kills", len(notifications), extra, kills)
}

func testKillDispatcherUnderFailingNotifications(t *testing.T, s *system) {
	rc := newReceiver(t, slowly(10*time.Millisecond, fail))
	var hooks []hook
	for i := range 4 { // a URL that fails gets one request at a time
		hooks = append(hooks, s.register(dealCreated, fmt.Sprintf("%s/%d", rc.URL, i)))
	}
	txs := s.publishMany(50)
	var notifications []string
	for _, h := range hooks {
		notifications = append(notifications, ids(dealCreated, h, txs)...)
	}
	d := s.Dispatchers[0]
	for kill := range 5 {
		// Each kill comes after a fixed amount of progress, so it hits attempts in flight.
		want := 100 + kill*180
		s.Until(strconv.Itoa(want)+" requests", func() bool { return rc.total() >= want })
		d.Kill()
		d.Start()
	}
	checkSix(t, s, rc, notifications, 5)
}

func testKillPublisherInFanOut(t *testing.T, s *system) {
	rc := newReceiver(t, succeed)
	var hooks []hook
	for i := range 40 {
		hooks = append(hooks, s.register("crm_deal_*", fmt.Sprintf("%s/%d", rc.URL, i)))
	}
	var txs []string
	for round := range 4 {
		txs = append(txs, s.publishMany(25)...)
		want := 200 * (round + 1)
		s.Until("some of the fan-out", func() bool { return rc.total() >= want })
		s.Publisher.Kill()
		s.Publisher.Start()
	}
	for _, h := range hooks {
		s.waitListed(h, ids(dealCreated, h, txs), "delivered")
	}
	for id, attempts := range rc.snapshot() {
		if len(attempts) != 1 {
			t.Errorf("notification %s was sent %v; a crash of the publisher must not duplicate it", id, attempts)
		}
	}
}

func testKillBrokerUnderLoad(t *testing.T, s *system) {
	rc := newReceiver(t, succeed)
	flaky := newReceiver(t, func(w http.ResponseWriter, attempt string) {
		if attempt < "3" {
			fail(w, attempt)
		}
	})
	good, retried := s.register(dealCreated, rc.URL), s.register(dealCreated, flaky.URL)
	var txs []string
	for range 3 {
		txs = append(txs, s.publishMany(100)...)
		s.Broker.Kill()
		s.StartBroker()
	}
	txs = append(txs, s.publishMany(50)...)
	s.waitListed(good, ids(dealCreated, good, txs), "delivered")
	s.waitListed(retried, ids(dealCreated, retried, txs), "delivered")
	if got := len(rc.snapshot()); got != len(txs) {
		t.Errorf("the receiver saw %d notifications, want %d", got, len(txs))
	}
	for id, attempts := range flaky.snapshot() {
		if n := len(attempts); n < 3 || n > 3+6 {
			t.Errorf("notification %s was tried %v", id, attempts)
		}
	}
}

func testStopUnderLoad(t *testing.T, s *system) {
	rc := newReceiver(t, slowly(20*time.Millisecond, succeed))
	flaky := newReceiver(t, func(w http.ResponseWriter, attempt string) {
		if attempt < "4" {
			fail(w, attempt)
		}
	})
	good, retried := s.register(dealCreated, rc.URL), s.register(dealCreated, flaky.URL)
	var txs []string
	for _, p := range []*testsystem.Process{s.Dispatchers[0], s.Publisher, s.Monitor, s.Management, s.Dispatchers[0]} {
		seen := rc.total()
		txs = append(txs, s.publishMany(60)...)
		s.Until("deliveries go on", func() bool { return rc.total() > seen })
		s.stopCleanly(p)
		p.Start()
		s.WaitReady()
	}
	s.waitListed(good, ids(dealCreated, good, txs), "delivered")
	s.waitListed(retried, ids(dealCreated, retried, txs), "delivered")
	for id, attempts := range rc.snapshot() {
		if len(attempts) != 1 {
			t.Errorf("notification %s was sent %v; a clean stop must not duplicate it", id, attempts)
		}
	}
	for id, attempts := range flaky.snapshot() {
		if !slices.Equal(attempts, []string{"1", "2", "3", "4"}) {
			t.Errorf("notification %s was tried %v; a clean stop must neither repeat nor burn an attempt", id, attempts)
		}
	}
}
