package management_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"gancho/pkg/seal"
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

// TestUnsubscribeIsRecorded: whom a link takes off a list, once, and the address that it was.
func TestUnsubscribeIsRecorded(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	keys, _, err := seal.Load(s.cfg.EncryptionKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	notify := map[string]any{"emails": []string{"ana@example.com", "bia@example.com"}}
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/in", "notify", notify)).want(http.StatusCreated).id()
	s.do(operator, "PUT", "/crm/v2/accounts/acme", map[string]any{"notify": notify}).want(http.StatusOK)
	link := func(hook string) string {
		return keys.Seal(fmt.Appendf(nil, `{"a":"acme","w":%q,"e":"ana@example.com"}`, hook), []byte("gancho notices unsubscribe"))
	}
	b := s.browser("en")
	for _, hook := range []string{id, ""} {
		for range 2 { // the second time there is nothing to change
			b.get("/unsubscribe?from=" + url.QueryEscape(link(hook))).want(http.StatusOK).has("ana@example.com")
			b.post("/unsubscribe", "from", link(hook)).want(http.StatusOK)
		}
	}
	got := s.changes(acme, "?action=unsubscribe")
	if len(got) != 2 {
		t.Fatalf("%d records, want 2: %v", len(got), got)
	}
	for i, want := range []struct{ kind, id string }{{"account", "acme"}, {"webhook", id}} {
		r := got[i]
		if member(r["object"], "kind") != want.kind || member(r["object"], "id") != want.id || member(r["actor"], "kind") != "email" ||
			member(r["actor"], "name") != "ana@example.com" || member(r["actor"], "address") != "127.0.0.1" {
			t.Errorf("record %d: %v", i, r)
		}
		before, after := fmt.Sprint(member(member(r["before"], "notify"), "emails")), fmt.Sprint(member(member(r["after"], "notify"), "emails"))
		if before != "[ana@example.com bia@example.com]" || after != "[bia@example.com]" {
			t.Errorf("record %d: from %s to %s", i, before, after)
		}
	}
	if n := len(s.changes(acme, "?actor="+url.QueryEscape("ana@example.com"))); n != 2 {
		t.Errorf("%d records of ana's", n)
	}
	s.signedIn(acme, "en").get("/audit?action=unsubscribe").want(http.StatusOK).has("ana@example.com", "/webhooks/"+id)
}
