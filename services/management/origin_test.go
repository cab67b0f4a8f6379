package management_test

import (
	"net/http"
	"testing"
	"time"

	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// TestSecretsFollowTheOrigin: after a change of the URL to another origin the webhook's secrets open there, the signing
// secret being the same, and not at the one before.
func TestSecretsFollowTheOrigin(t *testing.T) {
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
	stored := func(id string) *webhook.Webhook {
		t.Helper()
		e, err := bucket.Get(t.Context(), "acme."+id)
		if err != nil {
			t.Fatal(err)
		}
		w, err := webhook.Decode(e.Value)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://one.example.com/x", "auth_header", "X-Key", "auth_key", "first")).want(http.StatusCreated).id()
	before := stored(id)
	opened, err := before.Open(keys, time.Now())
	if err != nil || opened.AuthKey != "first" {
		t.Fatalf("opened %q, %v", opened.AuthKey, err)
	}
	s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"url": "https://one.example.com/y"}).want(http.StatusOK) // the same origin
	if w := stored(id); w.AuthKey != before.AuthKey || w.Version != 2 {
		t.Errorf("version %d, sealed again: %v; want 2 and the same seal", w.Version, w.AuthKey != before.AuthKey)
	}
	s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"url": "https://two.example.com/x", "auth_header": "X-Key", "auth_key": "second"}).want(http.StatusOK)
	after := stored(id)
	moved, err := after.Open(keys, time.Now())
	if err != nil || moved.AuthKey != "second" || len(moved.Secrets) != 1 || string(moved.Secrets[0]) != string(opened.Secrets[0]) {
		t.Errorf("after the move: auth key %q, %d secrets, %v", moved.AuthKey, len(moved.Secrets), err)
	}
	after.URL = before.URL
	if _, err := after.Open(keys, time.Now()); err == nil {
		t.Error("the secrets of the second origin open for the first")
	}
}
