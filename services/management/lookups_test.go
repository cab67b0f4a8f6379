package management_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/redistest"
	"gancho/services/management"
)

// published stores an event of the account and returns it with the time at which it was stored.
func (s *instance) published(account, name, body string, headers map[string]string) (event.Event, time.Time) {
	s.t.Helper()
	ack, err := eventstream.Publish(s.t.Context(), s.bus, event.Subject(account, name), uuid.NewString(), headers, []byte(body))
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := eventstream.At(s.t.Context(), s.bus, ack.Sequence)
	if err != nil {
		s.t.Fatal(err)
	}
	ev, rejected := event.Parse(e.Message)
	if rejected != nil {
		s.t.Fatal(rejected)
	}
	return ev, e.StoredAt
}

// notified stores the event's notification for the webhook, as the publisher would.
func (s *instance) notified(ev event.Event, at time.Time, webhookID string) *notification.Notification {
	s.t.Helper()
	n := notification.First(&ev, at, uuid.MustParse(webhookID))
	if err := lane.Notify(s.bus, &n).Wait(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return &n
}

// cancelled records that the notification ended because its webhook was deleted.
func (s *instance) cancelled(n *notification.Notification, at time.Time) {
	s.t.Helper()
	r := &notification.Record{
		Kind: notification.KindCancelled, State: notification.Cancelled, At: at, Account: n.Account, WebhookID: n.WebhookID, NotificationID: n.ID,
		EventID: n.EventID, EventName: n.EventName, EventSequence: n.EventSequence, URLKey: "k", URLHost: "hooks.example.com",
		Send: n.Send, AttemptsDone: n.AttemptsDone, Previous: n.Journal,
	}
	if _, err := journal.Write(s.t.Context(), s.bus, r); err != nil {
		s.t.Fatal(err)
	}
}

func query(pairs ...string) string {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	return "?" + q.Encode()
}

// TestLookUps asks what a support desk asks, with an index that holds all, and with one that holds nothing, so that the
// streams are read.
func TestLookUps(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	s := start(t, func(c *management.Config) { c.RedisURL = redis.URL() })
	create := func(url string, more ...any) string {
		return s.do(acme, "POST", "/crm/v2/webhooks", hook(url, more...)).want(201).id()
	}
	deals := create("https://hooks.example.com/deals")
	everything := create("https://hooks.example.com/all", "event_name", "*")
	tasks := create("https://hooks.example.com/tasks", "event_name", "crm_task_created")
	rich := create("https://hooks.example.com/rich", "conditions", []map[string]any{{"path": "document.amount", "op": "gt", "value": 1000}})
	off := create("https://hooks.example.com/off")
	s.do(acme, "PUT", "/crm/v2/webhooks/"+off, `{"data":{"status":"disabled"}}`).want(200)
	gone := create("https://hooks.example.com/gone")

	began := time.Now().UTC().Add(-time.Second).Format(time.RFC3339)
	var ids []string                  // of events
	started := map[string]time.Time{} // first attempts of notifications whose webhook is deleted
	for i := range 12 {
		name := []string{"crm_deal_created", "crm_deal_updated"}[i%2]
		ev, at := s.published("acme", name, fmt.Sprintf(`{"event_name":%q,"transaction_uuid":"t-%d","document":{"id":"d-%d","amount":10}}`, name, i/4, i%3),
			map[string]string{event.HeaderChanged: "amount", event.HeaderOrigin: "erp"})
		ids = append(ids, ev.ID)
		s.attempted(s.notified(ev, at, everything), "")
		if i%2 == 0 {
			s.attempted(s.notified(ev, at, deals), delivery.Status5xx)
			n := s.notified(ev, at, gone)
			started[n.ID] = s.attempted(n, delivery.Timeout).Attempt.StartedAt.Truncate(time.Millisecond)
			s.attempted(n, delivery.Status5xx)
			s.cancelled(n, started[n.ID].Add(time.Second))
		}
	}
	foreign, at := s.published("globex", "crm_deal_created", `{"transaction_uuid":"t-0","document":{"id":"d-0"}}`, nil)
	s.notified(foreign, at, uuid.NewString())
	s.do(acme, "DELETE", "/crm/v2/webhooks/"+gone, nil).want(204)
	later := create("https://hooks.example.com/later")

	const path = "/crm/v2/notifications"
	check := func(when string) {
		t.Helper()
		for name, tc := range map[string]struct {
			query string
			want  int
		}{
			"all":                 {query("page[size]", "5"), 24},
			"state":               {query("state", "retrying"), 6},
			"webhook":             {query("webhook_id", deals, "page[size]", "4"), 6},
			"a deleted webhook's": {query("webhook_id", gone), 6},
			"event name":          {query("event_name", "crm_deal_updated"), 6},
			"event":               {query("event_id", ids[0]), 3},
			"document":            {query("document_id", "d-0"), 8}, // events 0, 3, 6 and 9
			"transaction":         {query("transaction_uuid", "t-1"), 8},
			"document, state":     {query("document_id", "d-0", "state", "retrying"), 2},
			"all together": {query("document_id", "d-0", "transaction_uuid", "t-0", "state", "delivered", "webhook_id", everything,
				"event_name", "crm_deal_created", "event_id", ids[0], "from", began), 1},
			"no such document": {query("document_id", "d-9"), 0},
			"another's event":  {query("event_id", foreign.ID), 0},
			"before":           {query("to", began), 0},
		} {
			got, partial := s.ids(path + tc.query)
			if unique := slices.Compact(slices.Sorted(slices.Values(got))); len(got) != tc.want || len(unique) != len(got) || partial {
				t.Errorf("%s: %s: %d notifications (%d different), want %d; partial %v", when, name, len(got), len(unique), tc.want, partial)
			}
		}
		for filter, want := range map[string]int{ // of one webhook: the same filters
			query("event_name", "crm_deal_updated"): 0, query("document_id", "d-0"): 2, query("transaction_uuid", "t-1", "state", "retrying"): 2,
			query("event_id", ids[0], "from", began): 1, query("event_id", ids[1]): 0,
		} {
			if got, partial := s.ids("/crm/v2/webhooks/" + deals + "/notifications" + filter); len(got) != want || partial {
				t.Errorf("%s: of the webhook, %s: %d notifications, want %d; partial %v", when, filter, len(got), want, partial)
			}
		}
		// An event: its fate, and why it has no more notifications.
		r := s.do(acme, "GET", "/crm/v2/events/"+ids[0], nil).want(200).data()
		if r["event_name"] != "crm_deal_created" || r["transaction_uuid"] != "t-0" || r["document_id"] != "d-0" || r["origin"] != "erp" || len(array(r, "changed")) != 1 {
			t.Errorf("%s: event %v", when, r)
		}
		if n := len(array(r, "notifications")); n != 3 {
			t.Errorf("%s: %d notifications of the event, want 3", when, n)
		}
		rows, _ := s.rows(path + query("webhook_id", gone))
		for _, n := range array(r, "notifications") {
			if n, _ := n.(map[string]any); n["webhook_id"] == gone {
				rows = append(rows, n)
			}
		}
		if len(rows) != 7 {
			t.Errorf("%s: %d notifications of the deleted webhook, want 7", when, len(rows))
		}
		for _, n := range rows {
			last := object(n, "last_attempt")
			if at := started[text(n, "id")].Format(time.RFC3339Nano); n["state"] != "cancelled" || n["created_at"] != at || last["number"] != 2.0 || last["reason"] != "status_5xx" {
				t.Errorf("%s: %v of a deleted webhook, created at %v, last attempt %v; want cancelled, %v and the second", when, n["state"], n["created_at"], last, at)
			}
		}
		why := map[string]string{}
		for _, u := range array(r, "unmatched") {
			u, _ := u.(map[string]any)
			why[text(u, "webhook_id")] = text(u, "why")
			if u["why"] == "condition" && (text(object(u, "condition"), "path") != "document.amount" || u["found"] != 10.0) {
				t.Errorf("%s: the condition %v", when, u)
			}
		}
		want := map[string]string{tasks: "other_name", rich: "condition", off: "disabled", later: "registered_later"}
		for id, reason := range want {
			if why[id] != reason {
				t.Errorf("%s: webhook %s is unmatched for %q, want %q", when, id, why[id], reason)
			}
		}
		if len(why) != len(want) {
			t.Errorf("%s: unmatched %v", when, why)
		}
		for name, tc := range map[string]struct {
			query string
			want  []string
		}{
			"transaction": {query("transaction_uuid", "t-2", "page[size]", "3"), []string{ids[11], ids[10], ids[9], ids[8]}},
			"document":    {query("document_id", "d-1", "event_name", "crm_deal_updated"), []string{ids[7], ids[1]}},
			"time":        {query("from", began, "document_id", "d-2", "transaction_uuid", "t-0"), []string{ids[2]}},
			"before":      {query("to", began), nil},
		} {
			if got, _ := s.ids("/crm/v2/events" + tc.query); !slices.Equal(got, tc.want) {
				t.Errorf("%s: %s: events %v, want %v", when, name, got, tc.want)
			}
		}
		s.do(other, "GET", "/crm/v2/events/"+ids[0], nil).refused(404, "not_found", "")
		if got := s.do(other, "GET", path+query("document_id", "d-1"), nil).want(200).rows(); len(got) != 0 {
			t.Errorf("%s: another account finds %v", when, got)
		}
	}
	s.until("all is indexed", func() bool {
		got, partial := s.ids(path + query("page[size]", "200"))
		events, _ := s.ids("/crm/v2/events" + query("page[size]", "200"))
		return len(got) == 24 && len(events) == 12 && !partial
	})
	check("in the index")

	// Blocks up to the next one were dropped, as when there is no room for them: all is found in the streams.
	for _, key := range []string{"gancho:log:n:low", "gancho:log:e:low"} {
		if err := redis.Client().HSet(t.Context(), key, "acme", 1).Err(); err != nil {
			t.Fatal(err)
		}
	}
	check("in the streams")

	s.do(acme, "GET", "/crm/v2/events/"+uuid.NewString(), nil).refused(404, "not_found", "")
	s.do(acme, "GET", "/crm/v2/events/crm_deal_created", nil).refused(404, "not_found", "")
	for q, pointer := range map[string]string{
		"webhook_id=x": "?webhook_id", "event_id=x": "?event_id", "event_name=Deal": "?event_name", "document_id=": "?document_id",
		"page[after]=0": "?page[after]", "state=lost": "?state",
	} {
		s.do(acme, "GET", path+"?"+q, nil).refused(422, "bad_parameter", pointer)
	}
	s.do(acme, "GET", "/crm/v2/events?state=delivered", nil).refused(400, "unknown_parameter", "?state")
}

// TestLookUpsBeforeTheFirstEvent asks while CRM_EVENTS has never held a message.
func TestLookUpsBeforeTheFirstEvent(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	s := start(t, func(c *management.Config) { c.RedisURL = redis.URL() })
	s.do(acme, "GET", "/crm/v2/events/"+uuid.NewString(), nil).refused(404, "not_found", "")
	for _, path := range []string{"/crm/v2/events", "/crm/v2/notifications"} {
		if r := s.do(acme, "GET", path, nil).want(200); len(r.rows()) > 0 || r.json["has_more"] != false {
			t.Errorf("%s: %s", path, r.raw)
		}
	}
}
