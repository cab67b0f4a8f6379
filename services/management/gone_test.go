package management_test

import (
	"slices"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/services/management"
)

// TestGone: a receiver that answers 410 to all six attempts of a send disables its webhook. Other answers in between do
// not, nor attempts that began before the webhook's last change. Status active undoes it.
func TestGone(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.RedisURL = "redis://" + miniredis.RunT(t).Addr() })
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/gone")).want(201).id()
	path := "/crm/v2/webhooks/" + id
	answers := func(n *notification.Notification, statuses ...int) {
		t.Helper()
		for _, status := range statuses {
			s.attemptedWith(n, delivery.Status4xx, func(a *notification.Attempt) { a.HTTPStatus = status })
		}
	}
	failed := func(n *notification.Notification) {
		t.Helper()
		s.until("the failure is listed", func() bool {
			ids, partial := s.ids(path + "/notifications?state=permanently_failed")
			return slices.Contains(ids, n.ID) && !partial
		})
	}
	mixed := s.matched("acme", id, `{"event_name":"crm_deal_created","transaction_uuid":"mixed"}`)
	answers(mixed, 410, 410, 404, 410, 410, 410)
	failed(mixed)
	early := s.matched("acme", id, `{"event_name":"crm_deal_created","transaction_uuid":"early"}`)
	answers(early, 410, 410)
	s.do(acme, "PUT", path, map[string]any{"name": "changed meanwhile"}).want(200)
	answers(early, 410, 410, 410, 410)
	failed(early)

	all := s.matched("acme", id, `{"event_name":"crm_deal_created","transaction_uuid":"all"}`)
	answers(all, 410, 410, 410, 410, 410)
	if w := s.do(acme, "GET", path, nil).want(200).data(); w["status"] != "active" || w["disabled_reason"] != nil {
		t.Fatalf("before the sixth: %v, %v", w["status"], w["disabled_reason"])
	}
	answers(all, 410)
	s.until("the webhook is disabled", func() bool { return text(s.do(acme, "GET", path, nil).want(200).data(), "status") == "disabled" })
	w := s.do(acme, "GET", path, nil).want(200).data()
	if w["disabled_reason"] != "gone" {
		t.Errorf("disabled_reason is %v", w["disabled_reason"])
	}
	s.do(acme, "PUT", path, w).want(200) // what GET gave
	s.do(acme, "PUT", path, map[string]any{"disabled_reason": nil}).refused(422, "read_only", "/data/disabled_reason")
	w = s.do(acme, "PUT", path, map[string]any{"status": "active"}).want(200).data()
	if w["status"] != "active" || w["disabled_reason"] != nil {
		t.Errorf("made active: %v, %v", w["status"], w["disabled_reason"])
	}
	w = s.do(acme, "PUT", path, map[string]any{"status": "disabled"}).want(200).data()
	if w["status"] != "disabled" || w["disabled_reason"] != nil {
		t.Errorf("disabled by hand: %v, %v", w["status"], w["disabled_reason"])
	}
}
