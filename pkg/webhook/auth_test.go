package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"gancho/pkg/seal"
	"gancho/pkg/tlstest"
	"gancho/pkg/wireversion"
)

func TestCheckCertificate(t *testing.T) {
	t.Parallel()
	now := time.Now()
	good, key := tlstest.Client(t, "client", now.Add(-time.Hour), now.Add(time.Hour))
	_, otherKey := tlstest.Client(t, "other", now.Add(-time.Hour), now.Add(time.Hour))
	ended, endedKey := tlstest.Client(t, "ended", now.Add(-2*time.Hour), now.Add(-time.Minute))
	later, laterKey := tlstest.Client(t, "later", now.Add(time.Hour), now.Add(2*time.Hour))
	encrypted := strings.ReplaceAll(key, "PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
	for _, tc := range []struct{ name, certificate, key, field, code string }{
		{"good", good, key, "", ""},
		{"with an authority", good + ended[:0] + good, key, "", ""},
		{"with white space", "\n" + good + "\r\n", key + "\n\n", "", ""},
		{"no certificate", "", key, "certificate", "required"},
		{"no key", good, "", "private_key", "required"},
		{"key of another", good, otherKey, "private_key", "key_mismatch"},
		{"ended", ended, endedKey, "certificate", "certificate_ended"},
		{"an authority that ended", good + ended, key, "certificate", "certificate_ended"},
		{"not yet", later, laterKey, "certificate", "certificate_not_yet"},
		{"text", "canary", key, "certificate", "bad_certificate"},
		{"text after it", good + "canary", key, "certificate", "bad_certificate"},
		{"garbage in PEM", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n", key, "certificate", "bad_certificate"},
		{"key as certificate", key, key, "certificate", "bad_certificate"},
		{"both in one", good + key, key, "certificate", "bad_certificate"},
		{"certificate as key", good, good, "private_key", "bad_private_key"},
		{"key is text", good, "canary", "private_key", "bad_private_key"},
		{"passphrase", good, encrypted, "private_key", "bad_private_key"},
		{"two keys", good, key + otherKey, "private_key", "bad_private_key"},
		{"garbage as key", good, "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n", "private_key", "bad_private_key"},
		{"large", good + strings.Repeat("\n", MaxPEMBytes), key, "certificate", "bad_certificate"},
		{"large key", good, key + strings.Repeat("\n", MaxPEMBytes), "private_key", "bad_private_key"},
	} {
		p := CheckCertificate(tc.certificate, tc.key, now)
		switch {
		case tc.code == "" && p != nil:
			t.Errorf("%s: %+v", tc.name, p)
		case tc.code != "" && (p == nil || p.Field != "auth/"+tc.field || p.Code != tc.code):
			t.Errorf("%s: got %+v, want %s %s", tc.name, p, tc.field, tc.code)
		case p != nil && strings.Contains(p.Detail, "canary"):
			t.Errorf("%s: the problem repeats the value: %s", tc.name, p.Detail)
		}
	}
}

func TestCheckClient(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ id, secret, scope, audience, want string }{
		{"id", "secret", "", "", ""},
		{"id:é", `s"e\c ret`, "hooks.write read:all", "https://api.example.com/?x=1", ""},
		{"", "secret", "", "", "client_id"},
		{"id", "", "", "", "client_secret"},
		{"i\nd", "secret", "", "", "client_id"},
		{"id", "se\x7fcret", "", "", "client_secret"},
		{"id", "secret", `a"b`, "", "scope"},
		{"id", "secret", "é", "", "scope"},
		{"id", "secret", "", strings.Repeat("a", MaxClientBytes+1), "audience"},
	} {
		var got []string
		for _, p := range CheckClient(tc.id, tc.secret, tc.scope, tc.audience) {
			got = append(got, strings.TrimPrefix(p.Field, "auth/"))
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// TestAuthIsBound: the secret of an Auth opens for its webhook, the origin of its URL and that of its token server
// only.
func TestAuthIsBound(t *testing.T) {
	t.Parallel()
	keys := seal.New()
	secret := []byte("s3cret")
	for _, typ := range []string{OAuth2, MTLS} {
		w := &Webhook{Account: "acme", ID: "11111111-1111-4111-8111-111111111111", URL: "https://a.example.com/", Version: 1}
		w.Auth = &Auth{Type: typ, TokenURL: "https://auth.example.com/token"}
		w.SealAuth(keys, secret)
		for name, tc := range map[string]struct {
			opens  bool
			change func(*Webhook)
		}{
			"as it is":          {true, func(*Webhook) {}},
			"another path":      {true, func(w *Webhook) { w.URL += "x"; w.Auth.TokenURL += "x" }},
			"another origin":    {false, func(w *Webhook) { w.URL = "https://b.example.com/" }},
			"another server":    {typ == MTLS, func(w *Webhook) { w.Auth.TokenURL = "https://evil.example.com/token" }},
			"another webhook":   {false, func(w *Webhook) { w.ID = "22222222-2222-4222-8222-222222222222" }},
			"another account":   {false, func(w *Webhook) { w.Account = "umbrella" }},
			"as another secret": {false, func(w *Webhook) { w.Auth, w.AuthKey = nil, w.Auth.ClientSecret+w.Auth.PrivateKey }},
		} {
			other, auth := *w, *w.Auth
			other.Auth = &auth
			tc.change(&other)
			if c, err := other.Open(keys, time.Now()); (err == nil) != tc.opens || err == nil && !bytes.Equal(c.Auth, secret) {
				t.Errorf("%s, %s: opened %q, %v", typ, name, c.Auth, err)
			}
		}
		again, err := w.Reseal(seal.New(), time.Now())
		if err == nil {
			t.Errorf("%s: sealed again without the key: %+v", typ, again)
		}
		if again, err = w.Reseal(keys, time.Now()); err != nil || SameAuth(w, again) || again.Version != 2 {
			t.Fatalf("%s: %+v, %v", typ, again, err)
		}
		if c, err := again.Open(keys, time.Now()); err != nil || !bytes.Equal(c.Auth, secret) {
			t.Errorf("%s: sealed again it opens as %q, %v", typ, c.Auth, err)
		}
		if ids, err := again.KeyIDs(time.Now()); err != nil || len(ids) != 1 || ids[0] != keys.Current() {
			t.Errorf("%s: keys %v, %v", typ, ids, err)
		}
	}
}

// TestAuthNeedsThisVersion: a service that does not know auth would send without it, so it must not read such a record.
func TestAuthNeedsThisVersion(t *testing.T) {
	t.Parallel()
	w := &Webhook{Account: "acme", ID: "11111111-1111-4111-8111-111111111111", URL: "https://a.example.com/", Version: 1}
	schema := func() (s struct{ Schema int }) {
		t.Helper()
		body, err := w.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(body, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if got := schema().Schema; got != 0 {
		t.Errorf("without auth: schema %d", got)
	}
	w.Auth = &Auth{Type: OAuth2, TokenURL: "https://auth.example.com/token", ClientID: "id", ClientSecret: "sealed"}
	if got := schema().Schema; got != schemaAuth || got <= schemaConditions {
		t.Errorf("with auth: schema %d, want %d", got, schemaAuth)
	}
	body, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if read, err := Decode(body); err != nil || !SameAuth(read, w) {
		t.Errorf("read %+v, %v", read, err)
	}
	w.Auth = &Auth{Type: "dpop"}
	if body, err = w.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(body); !errors.Is(err, wireversion.ErrNewer) {
		t.Errorf("an unknown type: %v", err)
	}
}
