package management_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gancho/pkg/topology"
)

// changes returns the records that a token sees, newest first, and whether there are more.
func (s *instance) changes(token, query string, headers ...string) []map[string]any {
	s.t.Helper()
	var out []map[string]any
	raw := s.do(token, "GET", "/crm/v2/audit"+query, nil, headers...).want(http.StatusOK).raw
	var page struct{ Data []map[string]any }
	if err := json.Unmarshal(raw, &page); err != nil {
		s.t.Fatal(err)
	}
	return append(out, page.Data...)
}

// member is that of an object; nil when it is none.
func member(v any, name string) any {
	object, _ := v.(map[string]any)
	return object[name]
}

// TestAudit: each change by the API, the older API and the console has one record, of who made it and what it was
// before and after, without secrets; an account sees its own, an operator those of all.
func TestAudit(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const secretQuery, secretKey = "s3cr3tquery", "s3cr3tk3y"
	id := s.do(acme, "POST", "/crm/v2/webhooks", map[string]any{
		"event_name": "crm_deal_created", "url": "https://hooks.example.com/x?token=" + secretQuery, "auth_header": "X-Key", "auth_key": secretKey,
	}).want(http.StatusCreated).id()
	created := s.changes(acme, "")[0]
	s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"name": "second"}).want(http.StatusOK)
	s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"name": ""}).want(http.StatusUnprocessableEntity) // no change
	s.do(acme, "POST", "/crm/v2/webhooks/"+id+"/rotate_secret", nil).want(http.StatusOK)
	older := s.do(acme, "POST", "/api/v1/webhooks", `{"event_type":"crm_deal_updated","http_method":"POST","url":"https://hooks.example.com/old"}`).want(http.StatusOK)
	s.do(acme, "DELETE", "/api/v1/webhooks/"+fmt.Sprint(older.json["uuid"]), nil).want(http.StatusNoContent)
	s.do(operator, "PUT", "/crm/v2/accounts/umbrella", map[string]any{"share": 0.5}).want(http.StatusOK)
	b := s.browser("en")
	b.post("/sign-in", "token", acme)
	b.post("/webhooks/" + id + "/delete")

	got := s.changes(acme, "")
	var actions []string
	for _, r := range got {
		actor := r["actor"]
		actions = append(actions, fmt.Sprint(member(actor, "kind"), " ", r["action"], " ", member(r["object"], "kind")))
		if r["account_id"] != "acme" || !strings.HasPrefix(fmt.Sprint(member(actor, "name")), "tok_") || member(actor, "address") != "127.0.0.1" {
			t.Errorf("record %v", r)
		}
	}
	want := []string{
		"console deleteWebhook webhook", "token deleteWebhook webhook", "token createWebhook webhook", "token rotateSecret webhook", "token updateWebhook webhook", "token createWebhook webhook",
	}
	if fmt.Sprint(actions) != fmt.Sprint(want) {
		t.Errorf("actions\n%q, want\n%q", actions, want)
	}
	update := got[4]
	if member(update["before"], "name") != "crm_deal_created" || member(update["after"], "name") != "second" {
		t.Errorf("the update is %v", update)
	}
	if created["before"] != nil || member(created["after"], "url") != "https://hooks.example.com/x?***" || got[0]["after"] != nil {
		t.Errorf("the first is %v, the last %v", created, got[0])
	}
	all := string(s.do(operator, "GET", "/crm/v2/audit", nil).want(http.StatusOK).raw)
	for _, secret := range []string{secretQuery, secretKey, "whsec_"} {
		if strings.Contains(all, secret) {
			t.Errorf("the records have %q", secret)
		}
	}
	if n := len(s.changes(operator, "")); n != len(want)+1 {
		t.Errorf("an operator sees %d, want %d", n, len(want)+1)
	}
	if r := s.changes(operator, "", "X-Account-Id", "umbrella"); len(r) != 1 || r[0]["action"] != "updateAccount" || member(r[0]["actor"], "kind") != "operator" {
		t.Errorf("umbrella's: %v", r)
	}
	if r := s.changes(other, ""); len(r) != 1 && len(r) != 0 {
		t.Errorf("another account sees %v", r)
	}

	// Filters, and pages.
	for query, n := range map[string]int{
		"?action=createWebhook": 2, "?object=" + id: 4, "?actor=nobody": 0, "?from=" + url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)): 0,
		"?to=" + url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)): 6, "?page[size]=4": 4,
	} {
		if r := s.changes(acme, query); len(r) != n {
			t.Errorf("%s: %d records, want %d", query, len(r), n)
		}
	}
	first := s.do(acme, "GET", "/crm/v2/audit?page[size]=4", nil).want(http.StatusOK)
	next := fmt.Sprint(member(first.json["links"], "next"))
	rest := s.do(acme, "GET", strings.TrimPrefix(next, s.url), nil).want(http.StatusOK)
	if len(rest.rows()) != 2 || rest.json["has_more"] != false {
		t.Errorf("the second page is %s", rest.raw)
	}
	s.do(acme, "GET", "/crm/v2/audit?page[after]=x", nil).refused(422, "bad_parameter", "?page[after]")

	page := b.get("/audit")
	if !strings.Contains(string(page.raw), "deleteWebhook") || strings.Contains(string(page.raw), secretQuery) {
		t.Errorf("the page is %s", page.raw)
	}

	today, before := time.Now().UTC(), time.Now().UTC().AddDate(0, 0, -2).Format(time.DateOnly)
	for filter, shown := range map[string]bool{
		query("since", today.AddDate(0, 0, -1).Format(time.DateOnly)): true, query("until", today.AddDate(0, 0, 1).Format(time.DateOnly)): true,
		query("until", before): false, query("action", "deleteWebhook", "since", before, "until", before): false, query("since", "soon"): true,
	} {
		page := b.get("/audit" + filter).want(http.StatusOK)
		if got := strings.Contains(string(page.raw), `class="object first"`); got != shown || strings.Contains(string(page.raw), "No notification matches") == shown {
			t.Errorf("%s shows records: %v, want %v", filter, got, shown)
		}
	}

	// Records that are not ours are not shown; a change goes on without the stream.
	js := s.nats.JetStream()
	if _, err := js.Publish(t.Context(), topology.SubjectAudit("acme"), []byte(`{"stream":"CRM_EVENTS","seq":3}`)); err != nil {
		t.Fatal(err)
	}
	if n := len(s.changes(acme, "")); n != len(want) {
		t.Errorf("%d records with a forged one, want %d", n, len(want))
	}
	stream, err := js.Stream(t.Context(), topology.Audit)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.MaxMsgSize = 10
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/unrecorded")).want(http.StatusCreated)
}
