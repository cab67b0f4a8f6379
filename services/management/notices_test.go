package management_test

import (
	"net/http"
	"strings"
	"testing"
)

// TestNotify holds who may be named for notices, and that nothing of what carries them shows.
func TestNotify(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	notify := map[string]any{"emails": []string{"ana@example.com", "bia@example.com"}, "url": "https://Ops.example.com/notices", "language": "pt-BR"}
	created := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/in", "notify", notify)).want(http.StatusCreated)
	path := "/crm/v2/webhooks/" + created.id()
	if secret := text(created.data(), "notify_secret"); !strings.HasPrefix(secret, "whsec_") || secret == created.data()["signing_secret"] {
		t.Errorf("notify_secret = %q", secret)
	}
	got := s.do(acme, "GET", path, nil).want(http.StatusOK)
	shown, ok := got.data()["notify"].(map[string]any)
	if !ok || shown["url"] != "https://Ops.example.com/notices" || shown["language"] != "pt-BR" || got.data()["notify_secret"] != nil {
		t.Errorf("notify = %s", got.raw)
	}
	if same := s.do(acme, "PUT", path, got.data()).want(http.StatusOK); same.header.Get("ETag") != got.header.Get("ETag") || same.data()["notify_secret"] != nil {
		t.Error("what GET gave changes the webhook")
	}
	for pointer, bad := range map[string]map[string]any{
		"/data/notify/emails/0": {"emails": []string{"Ana <ana@example.com>"}},
		"/data/notify/emails/1": {"emails": []string{"ana@example.com", "x@example.com\r\nBcc: y@example.com"}},
		"/data/notify/emails":   {"emails": strings.Split("a@b.c d@b.c e@b.c f@b.c g@b.c h@b.c i@b.c j@b.c k@b.c l@b.c m@b.c", " ")},
		"/data/notify/language": {"emails": []string{"ana@example.com"}, "language": "de"},
		"/data/notify/url":      {"url": "http://10.0.0.1/"},
	} {
		if r := s.do(acme, "PUT", path, map[string]any{"notify": bad}); r.status != 422 || !strings.Contains(string(r.raw), `"`+pointer+`"`) {
			t.Errorf("%s: %d %s", pointer, r.status, r.raw)
		}
	}
	s.do(acme, "PUT", path, map[string]any{"notify": map[string]any{"url": "https://hooks.example.com/in"}}).refused(422, "same_url", "/data/notify/url")
	s.do(acme, "PUT", path, map[string]any{"url": "https://ops.example.com/notices"}).refused(422, "same_url", "/data/notify/url")
	page := s.signedIn(acme, "en").get("/webhooks/"+created.id()).want(http.StatusOK).has("ana@example.com", "https://Ops.example.com/notices")
	page.lacks("whsec_")

	// A whole account's.
	account := s.do(operator, "PUT", "/crm/v2/accounts/acme", map[string]any{"notify": map[string]any{"url": "https://ops.example.com/all"}}).want(http.StatusOK)
	if !strings.HasPrefix(text(account.data(), "notify_secret"), "whsec_") {
		t.Errorf("account = %s", account.raw)
	}
	if list := s.do(acme, "GET", "/crm/v2/webhooks", nil).want(http.StatusOK); strings.Count(string(list.raw), `"event_name"`) != 1 {
		t.Errorf("the list shows what carries notices: %s", list.raw)
	}
	s.do(operator, "PUT", "/crm/v2/accounts/acme", s.do(operator, "GET", "/crm/v2/accounts/acme", nil).want(http.StatusOK).data()).want(http.StatusOK)
	if gone := s.do(operator, "PUT", "/crm/v2/accounts/acme", map[string]any{"notify": nil}).want(http.StatusOK); gone.data()["notify"] != nil {
		t.Errorf("account = %s", gone.raw)
	}
	if gone := s.do(acme, "PUT", path, map[string]any{"notify": nil}).want(http.StatusOK); gone.data()["notify"] != nil {
		t.Errorf("webhook = %s", gone.raw)
	}
	b := s.browser("en")
	b.get("/unsubscribe?from=x").want(http.StatusForbidden)
	b.post("/unsubscribe", "from", "x").want(http.StatusForbidden)
}
