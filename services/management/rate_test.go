package management_test

import (
	"strings"
	"testing"

	"gancho/pkg/notification"
	"gancho/pkg/webhook"
)

// TestMaxPerMinute: a limit is kept, changed and taken away, and a notification that waits for its turn says so. The
// lowest limit of the URL's webhooks is named.
func TestMaxPerMinute(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const url = "https://hooks.example.com/limited"
	w := s.do(acme, "POST", "/crm/v2/webhooks", hook(url, "max_per_minute", 60000)).want(201)
	id := w.id()
	path := "/crm/v2/webhooks/" + id
	if got := w.data()["max_per_minute"]; got != 60000.0 {
		t.Errorf("registered with 60000: %v", got)
	}
	s.do(acme, "PUT", path, map[string]any{"name": "other"}).want(200)
	read := s.do(acme, "GET", path, nil).want(200).data()
	if got := read["max_per_minute"]; got != 60000.0 {
		t.Errorf("after another change: %v", got)
	}
	s.do(acme, "PUT", path, read).want(200) // what GET gave
	if got := s.do(acme, "PUT", path, map[string]any{"max_per_minute": nil}).want(200).data()["max_per_minute"]; got != nil {
		t.Errorf("taken away: %v", got)
	}
	if got := s.do(acme, "PUT", path, map[string]any{"max_per_minute": 90}).want(200).data()["max_per_minute"]; got != 90.0 {
		t.Errorf("set to 90: %v", got)
	}
	s.do(acme, "POST", "/crm/v2/webhooks", hook(url, "event_name", "crm_deal_deleted", "max_per_minute", 30)).want(201)

	n := s.parked(id, webhook.URLKey(url), `{"transaction_uuid":"waits"}`, notification.Saturated)
	at := "/crm/v2/notifications/" + n.ID
	s.until("the lowest limit is known", func() bool {
		return strings.Contains(text(object(s.do(acme, "GET", at, nil).want(200).data(), "explain"), "text"), "at most 30 requests per minute")
	})
	e := object(s.do(acme, "GET", at, nil).want(200).data(), "explain")
	if next := text(e, "next"); e["reason"] != "url_saturated" || !strings.Contains(next, "wait for this URL: 1.") || !strings.Contains(next, " UTC, oldest first") {
		t.Errorf("it waits for its turn: %v", e)
	}
	r := s.do(acme, "GET", at, nil, "Accept-Language", "pt-BR")
	if why := text(object(r.want(200).data(), "explain"), "text"); !strings.Contains(why, "no máximo 30 requisições por minuto") {
		t.Errorf("in Portuguese: %s", why)
	}
}

// TestConsoleMaxPerMinute: the form sets and removes a limit, and explains a wrong one.
func TestConsoleMaxPerMinute(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	b := s.signedIn(acme, "en")
	form := func(limit ...string) []string {
		return append([]string{"name", "x", "event_name", "crm_deal_updated", "url", "https://hooks.example.com/c"}, limit...)
	}
	b.post("/webhooks", form("max_per_minute", "many")...).want(422).safe("en").has("A limit is a number from 1 to 60,000", `value="many"`, `id="p-max_per_minute"`)
	path := b.post("/webhooks", form("max_per_minute", " 1200 ")...).leads("/webhooks/")
	limit := func() any { return s.do(acme, "GET", "/crm/v2"+path, nil).want(200).data()["max_per_minute"] }
	if limit() != 1200.0 {
		t.Errorf("registered with %v", limit())
	}
	b.get(path).want(200).safe("en").has("Most requests per minute", "1,200")
	s.signedIn(acme, "pt-BR").get(path+"/edit").want(200).safe("pt-BR").has("Máximo de requisições por minuto", `value="1200"`)
	b.post(path, form()...).leads(path) // a form of an older page
	if limit() != 1200.0 {
		t.Errorf("after a form without the field: %v", limit())
	}
	b.post(path, form("max_per_minute", "")...).leads(path)
	if limit() != nil {
		t.Errorf("after an empty field: %v", limit())
	}
	b.get(path).want(200).safe("en").has("As many as it answers well.")
}
