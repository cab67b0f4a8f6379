package webhook

import (
	"bytes"
	"crypto/ed25519"
	"testing"
	"time"

	"gancho/pkg/seal"
)

// TestSigningKeys holds a webhook in the middle of a change from a secret to a key pair.
func TestSigningKeys(t *testing.T) {
	t.Parallel()
	now := time.Now()
	keys := seal.New()
	w := &Webhook{Account: "acme", ID: "11111111-1111-4111-8111-111111111111", URL: "https://a.example.com/", Signature: Ed25519}
	seed, secret := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	old := w.SealSecret(keys, secret, HMAC)
	old.ExpiresAt = now.Add(time.Hour)
	w.Secrets = []Secret{w.SealSecret(keys, seed, Ed25519), old}

	check := func(name string, w *Webhook, now time.Time, hmacs int) {
		t.Helper()
		c, err := w.Open(keys, now)
		if err != nil || len(c.Ed25519) != 1 || len(c.Secrets) != hmacs {
			t.Fatalf("%s: %d key pairs, %d secrets, %v", name, len(c.Ed25519), len(c.Secrets), err)
		}
		if !ed25519.Verify(w.PublicKey(), []byte("x"), ed25519.Sign(c.Ed25519[0], []byte("x"))) {
			t.Errorf("%s: the public key does not verify", name)
		}
		if hmacs > 0 && !bytes.Equal(c.Secrets[0], secret) {
			t.Errorf("%s: another secret opens", name)
		}
	}
	check("as sealed", w, now, 1)
	check("an hour later", w, now.Add(time.Hour), 0)
	again, err := w.Reseal(keys, now)
	if err != nil {
		t.Fatal(err)
	}
	check("sealed again", again, now, 1)
	if w = (&Webhook{Secrets: []Secret{old}}); w.PublicKey() != nil || w.Signs() != HMAC {
		t.Error("a webhook of an earlier version does not sign with HMAC")
	}
}
