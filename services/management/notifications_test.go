package management_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bodies"
	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/services/management"
)

// matched stores an event and its notification for the webhook, as the publisher would.
func (s *instance) matched(account, webhookID, body string) *notification.Notification {
	s.t.Helper()
	const name = "crm_deal_created"
	at, err := eventstream.Publish(s.t.Context(), s.bus, event.Subject(account, name), uuid.NewString(), nil, []byte(body))
	if err != nil {
		s.t.Fatal(err)
	}
	m, err := eventstream.At(s.t.Context(), s.bus, at.Sequence)
	if err != nil {
		s.t.Fatal(err)
	}
	ev, rejected := event.Parse(m.Message)
	if rejected != nil {
		s.t.Fatal(rejected)
	}
	n := &notification.Notification{
		Account: account, ID: event.NotificationID(ev.ID, uuid.MustParse(webhookID)), WebhookID: webhookID,
		EventID: ev.ID, EventName: name, EventSequence: at.Sequence, EventTime: m.StoredAt, Send: 1, Body: ev.Body,
	}
	if err := lane.Notify(s.bus, n).Wait(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// parked stores an event and its notification for acme's webhook, and parks it for a reason, as a dispatcher would.
func (s *instance) parked(webhookID, urlKey, body, reason string) *notification.Notification {
	s.t.Helper()
	n := s.matched("acme", webhookID, body)
	n.Moves = 1
	if err := lane.Park(s.bus, n, urlKey).Wait(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if _, err := journal.Write(s.t.Context(), s.bus, &notification.Record{
		Kind: notification.KindParked, At: time.Now().UTC(), Account: "acme", WebhookID: webhookID, NotificationID: n.ID, EventID: n.EventID,
		EventName: n.EventName, Send: 1, State: notification.Parked, Reason: reason,
	}); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// attempted records an attempt on top of the journal, as a dispatcher would. reason "" means delivered.
func (s *instance) attempted(n *notification.Notification, reason delivery.Reason) *notification.Record {
	s.t.Helper()
	return s.attemptedWith(n, reason, func(*notification.Attempt) {})
}

// attemptedWith is attempted with more said of the attempt.
func (s *instance) attemptedWith(n *notification.Notification, reason delivery.Reason, more func(*notification.Attempt)) *notification.Record {
	s.t.Helper()
	r := &notification.Record{
		Kind: notification.KindAttempt, At: time.Now().UTC(), Account: n.Account, WebhookID: n.WebhookID, NotificationID: n.ID,
		EventID: n.EventID, EventName: n.EventName, EventSequence: n.EventSequence, URLKey: "k", URLHost: "hooks.example.com",
		Send: n.Send, AttemptsDone: n.AttemptsDone + 1, Previous: n.Journal, Replay: n.Replay,
		Attempt: &notification.Attempt{
			Number: n.AttemptsDone + 1, Send: n.Send, StartedAt: time.Now().UTC(), DurationMS: 12.5,
			RequestHeaders: map[string]string{"X-Api-Key": "***"}, ResponseHeaders: map[string]string{"Server": "x"}, ResponseBody: "ok",
		},
	}
	switch reason {
	case "":
		r.State, r.Attempt.Outcome, r.Attempt.HTTPStatus = notification.Delivered, notification.OutcomeDelivered, 200
	default:
		r.State, r.Reason = notification.Retrying, string(reason)
		r.Attempt.Outcome, r.Attempt.Reason, r.Attempt.HTTPStatus = notification.OutcomeFailed, reason, 500
		r.NextAttemptAt = time.Now().Add(time.Minute).UTC()
		if r.AttemptsDone == notification.MaxAttempts {
			r.State, r.NextAttemptAt = notification.PermanentlyFailed, time.Time{}
		}
	}
	more(r.Attempt)
	seq, err := journal.Write(s.t.Context(), s.bus, r)
	if err != nil {
		s.t.Fatal(err)
	}
	n.AttemptsDone, n.Journal = r.AttemptsDone, seq
	if r.State == notification.PermanentlyFailed {
		kept := *n
		kept.AttemptsDone-- // as the message of the last attempt had it
		if err := lane.Fail(s.t.Context(), s.bus, &kept, "[]"); err != nil {
			s.t.Fatal(err)
		}
	}
	return r
}

func TestNotificationStates(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	n := s.matched("acme", hookID, `{"event_name":"crm_deal_created","transaction_uuid":"t-1"}`)
	path := "/crm/v2/notifications/" + n.ID

	show := func(state, reason string, attempts int) map[string]any {
		t.Helper()
		d := s.do(acme, "GET", path, nil).want(200).data()
		explain := object(d, "explain")
		if d["state"] != state || explain["reason"] != reason || len(array(d, "attempts")) != attempts || explain["next"] == "" {
			t.Fatalf("state %v, explain %v, %d attempts; want %s, %s, %d", d["state"], explain, len(array(d, "attempts")), state, reason, attempts)
		}
		return d
	}
	show("pending", "waiting_for_first_attempt", 0)
	s.do(other, "GET", path, nil).refused(404, "not_found", "")
	s.do(acme, "POST", path+"/resend", nil).refused(409, "still_on_its_way", "")
	for i := range 5 {
		s.attempted(n, delivery.Status5xx)
		if d := show("retrying", "attempt_failed", i+1); d["next_attempt_at"] == nil || d["reason"] != "status_5xx" {
			t.Errorf("retrying = %v", d)
		}
	}
	s.do(acme, "POST", path+"/resend", nil).refused(409, "still_on_its_way", "")
	s.attempted(n, delivery.Timeout)
	show("permanently_failed", "retries_exhausted", 6)

	// A resend opens the next send, once, and carries the same bytes.
	if d := s.do(acme, "POST", path+"/resend", nil).want(http.StatusAccepted).data(); d["state"] != "pending" || d["sends"] != 2.0 {
		t.Errorf("resend = %v", d)
	}
	s.do(acme, "POST", path+"/resend", `{"data":{}}`).refused(409, "still_on_its_way", "")
	again, err := lane.Pending(t.Context(), s.bus, "acme", n.ID)
	if err != nil {
		t.Fatal(err)
	}
	if again.Send != 2 || again.AttemptsDone != 0 || again.Journal != n.Journal || string(again.Body) != string(n.Body) {
		t.Errorf("sent again: %+v", again)
	}
	s.attempted(again, "")
	if d := show("delivered", "delivered", 7); d["sends"] != 2.0 || d["attempts_made"] != 1.0 {
		t.Errorf("delivered = %v", d)
	}
	// A delivered one is read back from the events.
	s.do(acme, "POST", path+"/resend", nil).want(202)
	again, err = lane.Pending(t.Context(), s.bus, "acme", n.ID)
	if err != nil || again.Send != 3 || string(again.Body) != string(n.Body) {
		t.Fatalf("third send: %+v, %v", again, err)
	}
	// Its webhook goes while it is on its way.
	s.do(acme, "DELETE", "/crm/v2/webhooks/"+hookID, nil).want(204)
	show("cancelled", "webhook_deleted", 7)
	s.do(acme, "POST", path+"/resend", nil).refused(409, "webhook_deleted", "")
}

// TestReferredBody: a notification whose event's body is stored once shows its payload and is sent again, as long as
// anything has the bytes.
func TestReferredBody(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	body := `{"event_name":"crm_deal_created","transaction_uuid":"t-1","n":1.50}`
	n := s.matched("acme", hookID, body)
	ref, err := bodies.NewStore(s.bus, nil, 0).Put(t.Context(), &event.Event{ID: n.EventID, Account: "acme", Name: n.EventName, Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	n.Ref, n.Send = ref, 2 // another send, so that the broker does not take it for the first
	if err := lane.Notify(s.bus, n).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := "/crm/v2/notifications/" + n.ID
	b := s.signedIn(acme, "en")
	payload := func() { t.Helper(); b.get("/notifications/" + n.ID).want(200).has("1.50") }
	payload()
	for range notification.MaxAttempts {
		s.attempted(n, delivery.Status5xx)
	}
	drop := func(stream string) {
		t.Helper()
		state, err := s.bus.StreamState(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.bus.Purge(t.Context(), stream, state.Last); err != nil {
			t.Fatal(err)
		}
	}
	drop(topology.Notifications)
	drop(topology.Events)
	payload() // as FAILED has it
	s.do(acme, "POST", path+"/resend", nil).want(202)
	again, err := lane.Pending(t.Context(), s.bus, "acme", n.ID)
	if err != nil || again.Send != 3 || again.Ref == nil || *again.Ref != *ref {
		t.Fatalf("sent again: %+v, %v", again, err)
	}
	s.attempted(again, "")
	s.do(acme, "POST", path+"/resend", nil).want(202) // a settled message keeps no body
	if again, err = lane.Pending(t.Context(), s.bus, "acme", n.ID); err != nil || again.Send != 4 || again.Ref != nil || string(again.Body) != body {
		t.Fatalf("sent again: %+v, %v", again, err)
	}
	s.attempted(again, "")
	drop(topology.Notifications)
	drop(topology.Bodies)
	s.do(acme, "POST", path+"/resend", nil).refused(409, "event_expired", "")
}

// While RETRIES holds twice its limit, no first attempts are made.
func TestExplainPausedFirstAttempts(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.Limits.RetriesMaxBytes = 1024 })
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	first := s.matched("acme", hookID, `{"transaction_uuid":"t-1"}`)
	path := "/crm/v2/notifications/" + first.ID
	reason := func() string { return text(object(s.do(acme, "GET", path, nil).want(200).data(), "explain"), "reason") }
	if got := reason(); got != "waiting_for_first_attempt" {
		t.Errorf("before: %s", got)
	}
	n := s.matched("acme", hookID, `{"transaction_uuid":"t-2","document":{"x":"`+strings.Repeat("x", 2048)+`"}}`)
	n.Moves, n.AttemptsDone = 1, 1
	if err := lane.Schedule(t.Context(), s.bus, n, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := reason(); got != "first_attempts_paused" {
		t.Errorf("with a full store: %s", got)
	}
}

func TestSendTest(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for pattern, sample := range map[string]string{
		"crm_task_updated": "crm_task_updated", "*": "crm_deal_created", "crm_*_deleted": "crm_campaign_deleted", "crm_visit_*": "crm_visit_created",
	} {
		hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x", "event_name", pattern)).want(201).id()
		d := s.do(acme, "POST", "/crm/v2/webhooks/"+hookID+"/test", nil).want(202).data()
		if d["state"] != "pending" || d["event_name"] != sample || d["webhook_id"] != hookID {
			t.Errorf("test of %s: %v", pattern, d)
		}
		m, err := lane.Pending(t.Context(), s.bus, "acme", text(d, "id"))
		if err != nil || m.EventSequence != 0 || m.Send != 1 {
			t.Errorf("message: %+v, %v", m, err)
		}
		s.do(acme, "GET", "/crm/v2/notifications/"+text(d, "id"), nil).want(200)
	}
}

func TestIngest(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const path, body = "/crm/v2/events/crm_deal_updated", " {\"event_name\":\"crm_deal_updated\", \"transaction_uuid\":\"tx-9\",\"n\":1.50}\n"
	first := s.do(acme, "POST", path, body).want(202).data()
	if first["duplicate"] != false || first["stream"] != "CRM_EVENTS" || first["event_id"] != event.ID("acme", "crm_deal_updated", "tx-9") {
		t.Errorf("first = %v", first)
	}
	m, err := eventstream.At(t.Context(), s.bus, uint64(number(first, "sequence")))
	if err != nil || string(m.Body) != body || m.Subject != "crm.events.acme.crm_deal_updated" {
		t.Errorf("stored %q on %s, %v", m.Body, m.Subject, err)
	}
	if again := s.do(acme, "POST", path, body).want(202).data(); again["duplicate"] != true || again["sequence"] != first["sequence"] {
		t.Errorf("again = %v", again)
	}
	if elsewhere := s.do(operator, "POST", path, body, "X-Account-Id", "globex").want(202).data(); elsewhere["duplicate"] != false {
		t.Errorf("another account's event was swallowed: %v", elsewhere)
	}
	// What the API says the id is, is what the publisher will make of the stored message.
	for name, headers := range map[string][]string{"no id at all": nil, "ce-id": {"ce-id", "abc"}} {
		d := s.do(acme, "POST", path, `{"a":1}`, headers...).want(202).data()
		stored, err := eventstream.At(t.Context(), s.bus, uint64(number(d, "sequence")))
		if err != nil {
			t.Fatal(err)
		}
		if ev, rejected := event.Parse(stored.Message); rejected != nil || ev.ID != d["event_id"] {
			t.Errorf("%s: event_id %v, the publisher says %s (%v)", name, d["event_id"], ev.ID, rejected)
		}
		if want := event.ID("acme", strings.TrimPrefix(path, "/crm/v2/events/"), "abc"); headers != nil && d["event_id"] != want {
			t.Errorf("event_id %v, want %s, as on NATS", d["event_id"], want)
		}
	}
	// Two documents of one bulk change, and what a CloudEvents SDK sends by default.
	for i, documents := range []string{`"d1"`, `"d2"`, `"d1"`} {
		d := s.do(acme, "POST", path, `{"transaction_uuid":"bulk","document":{"id":`+documents+`}}`).want(202).data()
		if d["duplicate"] != (i == 2) || d["event_id"] != event.ID("acme", "crm_deal_updated", "bulk/"+strings.Trim(documents, `"`)) {
			t.Errorf("document %s: %v", documents, d)
		}
	}
	wrapper := `{"specversion":"1.0","id":"ce-5","source":"/crm","type":"crm_deal_updated","data":{"n":1.50}}`
	for i, kind := range []string{"application/cloudevents+json; charset=utf-8", "application/json"} {
		d := s.do(acme, "POST", path, wrapper, "Content-Type", kind, "Gancho-Changed", "amount, name", "Gancho-Origin", "app:7").want(202).data()
		stored, err := eventstream.At(t.Context(), s.bus, uint64(number(d, "sequence")))
		if err != nil {
			t.Fatal(err)
		}
		ev, rejected := event.Parse(stored.Message)
		if rejected != nil || ev.ID != d["event_id"] || ev.ID != event.ID("acme", "crm_deal_updated", "ce-5") || string(ev.Body) != `{"n":1.50}` ||
			strings.Join(ev.Changed, "|") != "amount|name" || ev.Origin != "app:7" || d["duplicate"] != (i == 1) {
			t.Errorf("%s: %v became %+v, %v", kind, d, ev, rejected)
		}
	}
	s.do(acme, "POST", path, `{"data":{"n":1}}`, "Content-Type", "application/cloudevents+json").want(202)
	s.do(acme, "POST", path, `{"n":1}`, "Content-Type", "application/cloudevents+json").refused(400, "not_object", "")
	s.do(acme, "POST", path, `{}`, "Gancho-Origin", "a b").refused(422, "bad_origin", "")
	s.do(acme, "POST", path, `{}`, "Gancho-Changed", strings.Repeat("a,", 1025)).refused(422, "bad_changed", "")
	s.do(acme, "POST", path, `{"event_name":"crm_deal_updated","event_name":"crm_deal_updated"}`).refused(400, "bad_json", "")
	s.do(acme, "POST", path, `{"event_name":"crm_deal_created"}`).refused(422, "event_name_mismatch", "/event_name")
	s.do(acme, "POST", path, `{"transaction_uuid":7}`).refused(422, "bad_transaction_uuid", "/transaction_uuid")
	s.do(acme, "POST", path, `{"a":`).refused(400, "bad_json", "")
	s.do(acme, "POST", path, `[1]`).refused(400, "not_object", "")
	s.do(acme, "POST", "/crm/v2/events/Deal", `{}`).refused(422, "bad_event_name", "")
	s.do(acme, "POST", path, `{}`, "ce-type", "crm_deal_created").refused(422, "event_name_mismatch", "/event_name")
}
