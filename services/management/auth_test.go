package management_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"gancho/pkg/seal"
	"gancho/pkg/tlstest"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// TestAuthOfWebhooks: who may set auth and how, that its secret shows nowhere, and that it goes to no other origin.
func TestAuthOfWebhooks(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	keys, _, err := seal.Load(s.cfg.EncryptionKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := s.bus.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	certificate, key := tlstest.Client(t, "crm", now.Add(-time.Hour), now.Add(90*24*time.Hour))
	_, otherKey := tlstest.Client(t, "other", now.Add(-time.Hour), now.Add(time.Hour))
	ended, endedKey := tlstest.Client(t, "ended", now.Add(-2*time.Hour), now.Add(-time.Hour))
	client := func(change ...any) map[string]any {
		m := map[string]any{
			"type": "oauth2", "token_url": "https://Auth.example.com/token?tenant=t3nant", "client_id": "crm", "client_secret": "s3cret-one", "scope": "hooks", "audience": "https://api.example.com/",
		}
		for i := 0; i < len(change); i += 2 {
			name := fmt.Sprint(change[i])
			if m[name] = change[i+1]; change[i+1] == nil {
				delete(m, name)
			}
		}
		return m
	}
	mutual := func(certificate, key string) map[string]any {
		return map[string]any{"type": "mtls", "certificate": certificate, "private_key": key}
	}
	opened := func(id string) string {
		t.Helper()
		e, err := bucket.Get(t.Context(), "acme."+id)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(e.Value), "s3cret") || strings.Contains(string(e.Value), "PRIVATE KEY") {
			t.Errorf("the secret is stored: %s", e.Value)
		}
		w, err := webhook.Decode(e.Value)
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.Open(keys, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return string(c.Auth)
	}

	created := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/in", "auth", client())).want(http.StatusCreated)
	id := created.id()
	path := "/crm/v2/webhooks/" + id
	got := s.do(acme, "GET", path, nil).want(http.StatusOK)
	want := map[string]any{"type": "oauth2", "token_url": "https://Auth.example.com/token?tenant=t3nant", "client_id": "crm", "scope": "hooks", "audience": "https://api.example.com/"}
	if shown := fmt.Sprint(got.data()["auth"]); shown != fmt.Sprint(want) || fmt.Sprint(created.data()["auth"]) != shown {
		t.Errorf("auth = %s, want %s", shown, want)
	}
	if opened(id) != "s3cret-one" {
		t.Error("the client secret does not open")
	}
	unchanged := func(name string, body map[string]any) {
		t.Helper()
		if same := s.do(acme, "PUT", path, body).want(http.StatusOK); same.header.Get("ETag") != s.do(acme, "GET", path, nil).header.Get("ETag") || same.header.Get("ETag") != got.header.Get("ETag") {
			t.Errorf("%s changes the webhook", name)
		}
	}
	unchanged("what GET gave", got.data())
	unchanged("the same again", map[string]any{"auth": client()})

	for _, tc := range []struct {
		code, pointer string
		body          map[string]any
	}{
		{"required", "/data/auth/type", map[string]any{"auth": map[string]any{}}},
		{"bad_auth_type", "/data/auth/type", map[string]any{"auth": map[string]any{"type": "dpop"}}},
		{"required", "/data/auth/token_url", map[string]any{"auth": client("token_url", nil)}},
		{"url_forbidden_scheme", "/data/auth/token_url", map[string]any{"auth": client("token_url", "http://auth.example.com/")}},
		{"url_forbidden_address", "/data/auth/token_url", map[string]any{"auth": client("token_url", "https://10.0.0.1/")}},
		{"url_userinfo", "/data/auth/token_url", map[string]any{"auth": client("token_url", "https://u:p@auth.example.com/")}},
		{"required", "/data/auth/client_id", map[string]any{"auth": client("client_id", "")}},
		{"required", "/data/auth/client_secret", map[string]any{"auth": client("client_secret", nil, "client_id", "another")}},
		{"required", "/data/auth/client_secret", map[string]any{"auth": client("client_secret", nil, "token_url", "https://evil.example.com/token")}},
		{"bad_scope", "/data/auth/scope", map[string]any{"auth": client("scope", "a\"b")}},
		{"wrong_member", "/data/auth/certificate", map[string]any{"auth": client("certificate", certificate)}},
		{"wrong_member", "/data/auth/client_id", map[string]any{"auth": map[string]any{"type": "mtls", "client_id": "x", "certificate": certificate, "private_key": key}}},
		{"required", "/data/auth/certificate", map[string]any{"auth": mutual("", key)}},
		{"key_mismatch", "/data/auth/private_key", map[string]any{"auth": mutual(certificate, otherKey)}},
		{"certificate_ended", "/data/auth/certificate", map[string]any{"auth": mutual(ended, endedKey)}},
		{"auth_collides", "/data/auth", map[string]any{"auth_header": "authorization", "auth_key": "Bearer x"}},
		{"auth_required", "/data/auth", map[string]any{"url": "https://evil.example.com/in"}},
		{"required", "/data/auth/client_secret", map[string]any{"url": "https://evil.example.com/in", "auth": client("client_secret", nil)}},
	} {
		s.do(acme, "PUT", path, tc.body).refused(422, tc.code, tc.pointer)
	}
	unchanged("what was refused", map[string]any{})

	// The client stays, and so does its secret; another header is no obstacle.
	s.do(acme, "PUT", path, map[string]any{"auth": client("client_secret", nil, "scope", "hooks more"), "auth_header": "X-Key", "auth_key": "k"}).want(http.StatusOK)
	if opened(id) != "s3cret-one" {
		t.Error("the kept secret does not open")
	}
	s.do(acme, "PUT", path, map[string]any{"auth": client("client_secret", "s3cret-two")}).want(http.StatusOK)
	if opened(id) != "s3cret-two" {
		t.Error("the rotated secret does not open")
	}
	s.do(acme, "PUT", path, map[string]any{"url": "https://two.example.com/in", "auth": client("client_secret", "s3cret-two"), "auth_header": nil}).want(http.StatusOK)
	if opened(id) != "s3cret-two" {
		t.Error("the secret does not open for the new origin")
	}

	// A client certificate, next to a header.
	s.do(acme, "PUT", path, map[string]any{"auth": mutual(certificate, key), "auth_header": "Authorization", "auth_key": "Bearer x"}).want(http.StatusOK)
	got = s.do(acme, "GET", path, nil).want(http.StatusOK)
	want = map[string]any{"type": "mtls", "subject": "CN=crm", "expires_at": now.Add(90 * 24 * time.Hour).UTC().Truncate(time.Second).Format(time.RFC3339)}
	if shown := fmt.Sprint(got.data()["auth"]); shown != fmt.Sprint(want) {
		t.Errorf("auth = %s, want %s", shown, want)
	}
	if opened(id) != key {
		t.Error("the private key does not open")
	}
	unchanged("what GET gave of a certificate", got.data())
	unchanged("the same certificate", map[string]any{"auth": mutual(certificate, key)})
	s.do(acme, "PUT", path, map[string]any{"auth": map[string]any{"type": "mtls", "subject": "CN=evil"}}).refused(422, "read_only", "/data/auth/subject")
	s.do(acme, "PUT", path, map[string]any{"url": "https://three.example.com/in", "auth_key": "Bearer x", "auth": got.data()["auth"]}).refused(422, "required", "/data/auth/certificate")

	// The older API does not know it, and takes nothing away.
	older := s.do(acme, "GET", "/api/v1/webhooks/"+id, nil).want(http.StatusOK)
	if older.json["auth"] != nil {
		t.Errorf("the older API shows it: %s", older.raw)
	}
	s.do(acme, "PUT", "/api/v1/webhooks/"+id, `{"http_method":"PUT"}`).want(http.StatusOK)
	if opened(id) != key {
		t.Error("a change by the older API took it away")
	}

	// Console.
	b := s.signedIn(acme, "en")
	b.get("/webhooks/"+id).want(http.StatusOK).has("CN=crm", "Client certificate (mTLS)").lacks("PRIVATE KEY")
	b.get("/webhooks/"+id+"/edit").want(http.StatusOK).has(`<option value="mtls" selected>`, "Leave certificate and key empty to keep them.").lacks("BEGIN")
	form := []string{"name", "in the console", "event_name", "crm_deal_created", "url", "https://two.example.com/in", "auth_header", "Authorization", "status", "active"}
	b.post("/webhooks/"+id, append(form, "auth_type", "mtls")...).want(http.StatusSeeOther)
	if opened(id) != key {
		t.Error("the form does not keep the key")
	}
	b.post("/webhooks/"+id, append(form, "auth_type", "oauth2", "auth_token_url", "https://auth.example.com/", "auth_client_id", "crm", "auth_client_secret", "s3cret-three")...).
		want(http.StatusUnprocessableEntity).has("oauth2 sets the header Authorization").lacks("s3cret-three")
	form[7] = "X-Key"
	b.post("/webhooks/"+id, append(form, "auth_type", "oauth2", "auth_token_url", "ftp://auth.example.com/", "auth_client_id", "crm", "auth_client_secret", "s3cret-three")...).
		want(http.StatusUnprocessableEntity).has(`id="p-auth_token_url"`, `value="ftp://auth.example.com/"`).lacks("s3cret-three")
	b.post("/webhooks/"+id, append(form, "auth_type", "oauth2", "auth_token_url", "https://auth.example.com/", "auth_client_id", "crm", "auth_client_secret", "s3cret-three")...).want(http.StatusSeeOther)
	if opened(id) != "s3cret-three" {
		t.Error("the form does not set a client")
	}
	b.post("/webhooks/"+id, form...).want(http.StatusSeeOther) // an older page, without these fields
	if s.do(acme, "GET", path, nil).data()["auth"] == nil {
		t.Error("a form that does not ask takes it away")
	}
	b.post("/webhooks/"+id, append(form, "auth_type", "")...).want(http.StatusSeeOther)
	if s.do(acme, "GET", path, nil).data()["auth"] != nil {
		t.Error("the form does not take it away")
	}
	b.post("/webhooks", "event_name", "crm_deal_updated", "url", "https://two.example.com/new", "auth_type", "mtls", "auth_certificate", certificate, "auth_private_key", key).want(http.StatusSeeOther)
	b.post("/webhooks", "event_name", "crm_deal_deleted", "url", "https://two.example.com/new", "auth_type", "").want(http.StatusSeeOther)

	// Audit.
	records, err := json.Marshal(s.changes(acme, "?page[size]=200"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"s3cret", "BEGIN", "t3nant"} {
		if strings.Contains(string(records), secret) {
			t.Errorf("the audit log holds %s: %s", secret, records)
		}
	}
	if !strings.Contains(string(records), `"subject":"CN=crm"`) {
		t.Errorf("the audit log lacks the certificate: %s", records)
	}
}
