package management_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gancho/pkg/delivery"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/services/management"
)

func TestWebhookLife(t *testing.T) {
	t.Parallel()
	s := start(t, nil)

	created := s.do(acme, "POST", "/crm/v2/webhooks", hook("HTTPS://Hooks.Example.com./deals", "auth_header", "X-Api-Key", "auth_key", "s3cret")).want(http.StatusCreated)
	w := created.data()
	if w["url"] != "HTTPS://Hooks.Example.com./deals" || w["status"] != "active" || w["auth_header"] != "X-Api-Key" || w["suspension"] != nil {
		t.Errorf("created = %s", created.raw)
	}
	if _, err := delivery.ParseSecret(text(w, "signing_secret")); err != nil {
		t.Errorf("signing_secret: %v", err)
	}
	id, etag := created.id(), created.header.Get("ETag")

	got := s.do(acme, "GET", "/crm/v2/webhooks/"+id, nil).want(http.StatusOK)
	for _, hidden := range []string{"s3cret", "auth_key", "signing_secret", "whsec_", "sealed"} {
		if strings.Contains(string(got.raw), hidden) {
			t.Errorf("the answer holds %q: %s", hidden, got.raw)
		}
	}
	if got.header.Get("ETag") != etag || etag == "" {
		t.Errorf("ETag = %q after %q", got.header.Get("ETag"), etag)
	}

	changed := s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"name": "Novo nome"}, "If-Match", etag).want(http.StatusOK)
	if changed.data()["name"] != "Novo nome" || changed.data()["url"] != w["url"] {
		t.Errorf("changed = %s", changed.raw)
	}
	s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"name": "Outro"}, "If-Match", etag).refused(412, "changed_meanwhile", "")
	s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"auth_header": nil, "auth_key": nil}).want(http.StatusOK)
	if r := s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"status": "disabled"}).want(http.StatusOK); r.data()["status"] != "disabled" || r.data()["auth_header"] != nil {
		t.Errorf("disabled = %s", r.raw)
	}
	rotated := s.do(acme, "POST", "/crm/v2/webhooks/"+id+"/rotate_secret", nil).want(http.StatusOK)
	if rotated.data()["signing_secret"] == w["signing_secret"] {
		t.Error("the secret was not rotated")
	}

	// Five rotations within a day: the three newest old secrets sign along until a day after each was replaced.
	for range 4 {
		s.do(acme, "POST", "/crm/v2/webhooks/"+id+"/rotate_secret", `{"data":null}`).want(http.StatusOK)
	}
	bucket, err := s.bus.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	e, err := bucket.Get(t.Context(), "acme."+id)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := webhook.Decode(e.Value)
	if err != nil {
		t.Fatal(err)
	}
	if len(stored.Secrets) != 4 || !stored.Secrets[0].ExpiresAt.IsZero() {
		t.Fatalf("secrets = %+v", stored.Secrets)
	}
	for _, old := range stored.Secrets[1:] {
		if left := time.Until(old.ExpiresAt); left < 23*time.Hour || left > 24*time.Hour {
			t.Errorf("an old secret signs along for %v, want 24 h", left)
		}
	}
	keys, _, err := seal.Load(s.cfg.EncryptionKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := stored.Open(keys, time.Now()); err != nil || len(c.Secrets) != 4 {
		t.Errorf("%d secrets open, %v", len(c.Secrets), err)
	}

	s.do(acme, "POST", "/crm/v2/webhooks/"+id+"/rotate_secret", map[string]any{"immediately": true}).want(http.StatusOK)
	if e, err = bucket.Get(t.Context(), "acme."+id); err != nil {
		t.Fatal(err)
	}
	if stored, err = webhook.Decode(e.Value); err != nil || len(stored.Secrets) != 1 {
		t.Errorf("after an immediate rotation: %d secrets, %v", len(stored.Secrets), err)
	}

	s.do(other, "GET", "/crm/v2/webhooks/"+id, nil).refused(404, "not_found", "")
	s.do(other, "DELETE", "/crm/v2/webhooks/"+id, nil).refused(404, "not_found", "")
	s.do(acme, "DELETE", "/crm/v2/webhooks/"+id, nil).want(http.StatusNoContent)
	s.do(acme, "GET", "/crm/v2/webhooks/"+id, nil).refused(404, "not_found", "")
	s.do(acme, "DELETE", "/crm/v2/webhooks/"+id, nil).refused(404, "not_found", "")
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/deals")).want(http.StatusCreated)
}

func TestSameDestinationTwice(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	second := s.run()
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		statuses = map[int]int{}
	)
	for i := range 20 {
		wg.Go(func() {
			base := []string{s.url, second}[i%2]
			r := s.at(base, acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/same"))
			mu.Lock()
			defer mu.Unlock()
			statuses[r.status]++
		})
	}
	wg.Wait()
	if statuses[201] != 1 || statuses[409] != 19 {
		t.Errorf("20 equal registrations on two replicas: %v, want one 201 and 19 409", statuses)
	}
	a := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/a")).want(201).id()
	s.do(acme, "PUT", "/crm/v2/webhooks/"+a, map[string]any{"url": "https://hooks.example.com/same#x"}).refused(409, "webhook_exists", "")
	s.do(acme, "PUT", "/crm/v2/webhooks/"+a, map[string]any{"url": "https://hooks.example.com/b"}).want(200)
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/a")).want(201)
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/b")).refused(409, "webhook_exists", "")
	s.do(other, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/same")).want(201)
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/same", "event_name", "crm_deal_*")).want(201)
}

// TestConcurrentChangesMerge: row 89 of the bad inputs, on two replicas. Of many changes to one revision one wins
// and the others learn of it; changes without a condition lose nothing of each other, nor of those with one.
func TestConcurrentChangesMerge(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	bases := []string{s.url, s.run()}
	r := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201)
	path, etag := "/crm/v2/webhooks/"+r.id(), r.header.Get("ETag")
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		won  []string
		tags = map[string]bool{}
	)
	for i := range 50 {
		wg.Go(func() {
			name := fmt.Sprint("n", i)
			r := s.at(bases[i%2], acme, "PUT", path, map[string]any{"name": name}, "If-Match", etag)
			if r.status != 200 {
				r.refused(412, "changed_meanwhile", "")
				return
			}
			mu.Lock()
			defer mu.Unlock()
			won = append(won, name)
		})
	}
	wg.Wait()
	if now := s.do(acme, "GET", path, nil).want(200).data()["name"]; len(won) != 1 || now != won[0] {
		t.Fatalf("%q won with the same If-Match, and the name is %v", won, now)
	}

	// Each of 20 appends a letter to the name it has read, until no other was faster; each of 30 sets another member.
	const letters = 20
	s.do(acme, "PUT", path, map[string]any{"name": "n"}).want(200)
	merged := []map[string]any{{"http_method": "PATCH"}, {"event_name": "crm_deal_*"}, {"auth_header": "X-Key", "auth_key": "s3cret"}}
	for i := range letters {
		wg.Go(func() {
			for {
				before := s.at(bases[i%2], acme, "GET", path, nil).want(200)
				name := text(before.data(), "name") + string(rune('a'+i))
				r := s.at(bases[i%2], acme, "PUT", path, map[string]any{"name": name}, "If-Match", before.header.Get("ETag"))
				if r.status != 200 {
					r.refused(412, "changed_meanwhile", "")
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if tag := r.header.Get("ETag"); tags[tag] {
					t.Errorf("two changes have the revision %s", tag)
				} else {
					tags[tag] = true
				}
				return
			}
		})
	}
	for i := range 30 {
		wg.Go(func() { s.at(bases[i%2], acme, "PUT", path, merged[i%len(merged)]).want(200) })
	}
	wg.Wait()
	s.do(acme, "PUT", path, map[string]any{"stale": "skip"}).want(200) // a replica has then seen all changes before
	now := s.do(acme, "GET", path, nil).want(200).data()
	name := strings.Split(strings.TrimPrefix(text(now, "name"), "n"), "")
	slices.Sort(name)
	if got := strings.Join(name, ""); got != "abcdefghijklmnopqrst" {
		t.Errorf("the name has the letters %q, want each of %d once", got, letters)
	}
	if now["http_method"] != "PATCH" || now["event_name"] != "crm_deal_*" || now["auth_header"] != "X-Key" {
		t.Errorf("merged = %v", now)
	}
}

func TestWebhooksPerAccount(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.WebhooksPerAccount = 2 })
	first := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example/1")).want(http.StatusCreated)
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example/2")).want(http.StatusCreated)
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example/3")).refused(http.StatusUnprocessableEntity, "too_many_webhooks", "")
	s.do(other, "POST", "/crm/v2/webhooks", hook("https://ok.example/1")).want(http.StatusCreated)
	s.do(acme, "PUT", "/crm/v2/webhooks/"+first.id(), map[string]any{"name": "changed"}).want(http.StatusOK)
	s.do(acme, "DELETE", "/crm/v2/webhooks/"+first.id(), nil).want(http.StatusNoContent)
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example/3")).want(http.StatusCreated)
}

// TestSignature changes a webhook from a secret to key pairs and back. Each change is a rotation.
func TestSignature(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	created := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/deals", "signature", "ed25519")).want(http.StatusCreated)
	path := "/crm/v2/webhooks/" + created.id()
	seen := map[any]bool{}
	pair := func(r reply) {
		t.Helper()
		key := text(r.data(), "public_key")
		if _, err := delivery.ParsePublicKey(key); err != nil || seen[key] || r.data()["signing_secret"] != nil || r.data()["signature"] != "ed25519" {
			t.Errorf("%v: %s", err, r.raw)
		}
		seen[key] = true
	}
	pair(created)
	got := s.do(acme, "GET", path, nil).want(http.StatusOK)
	if got.data()["public_key"] != created.data()["public_key"] {
		t.Errorf("GET answers another public key: %s", got.raw)
	}
	if same := s.do(acme, "PUT", path, got.data()).want(http.StatusOK); same.header.Get("ETag") != got.header.Get("ETag") {
		t.Error("what GET gave changes the webhook")
	}
	pair(s.do(acme, "POST", path+"/rotate_secret", nil).want(http.StatusOK))
	s.do(acme, "PUT", path, map[string]any{"public_key": created.data()["public_key"]}).refused(422, "read_only", "/data/public_key")
	s.do(acme, "PUT", path, map[string]any{"signature": "rsa"}).refused(422, "bad_signature", "/data/signature")

	back := s.do(acme, "PUT", path, map[string]any{"signature": "hmac"}).want(http.StatusOK)
	if _, err := delivery.ParseSecret(text(back.data(), "signing_secret")); err != nil || back.data()["public_key"] != nil {
		t.Errorf("%v: %s", err, back.raw)
	}
	if again := s.do(acme, "PUT", path, map[string]any{"signature": "hmac"}).want(http.StatusOK); again.data()["signing_secret"] != nil {
		t.Error("setting the signature it has makes a new secret")
	}
	pair(s.do(acme, "PUT", path, map[string]any{"signature": "ed25519"}).want(http.StatusOK))
}
