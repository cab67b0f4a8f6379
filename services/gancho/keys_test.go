package gancho

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

func reseal(s *bustest.Server, keys string, dryRun bool) command {
	return runCommand(s, func(e []string, o, x *strings.Builder) int { return Reseal(e, dryRun, o, x) }, "ENCRYPTION_KEY_FILE="+keys)
}

func loadKeys(t *testing.T, path string) *seal.Keyring {
	t.Helper()
	ring, _, err := seal.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// sealedWebhook is one with all that can be sealed: an auth key, a secret, the one before it and an expired one.
func sealedWebhook(keys *seal.Keyring, n int) *webhook.Webhook {
	w := &webhook.Webhook{
		ID: uuid.NewString(), Account: "acme", Name: "0", EventName: "*", Method: "POST", URL: fmt.Sprintf("https://ok.example/%d", n),
		AuthHeader: "X-Key", Status: webhook.Active, CreatedAt: time.Now().UTC(), UpdatedAt: time.Now().UTC(), Version: 1,
	}
	w.AuthKey = keys.Seal(fmt.Appendf(nil, "auth %d", n), w.SealContext("auth_key"))
	for i, end := range []time.Time{{}, time.Now().Add(time.Hour), time.Now().Add(-time.Hour)} {
		w.Secrets = append(w.Secrets, webhook.Secret{Sealed: keys.Seal(fmt.Appendf(nil, "secret %d %d", i, n), w.SealContext("secret")), ExpiresAt: end})
	}
	return w
}

// TestReseal rotates a key while the webhooks are changed: no change is lost, and in the end the new key alone
// opens everything.
func TestReseal(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	path := writeKeys(t, "old:"+strings.Repeat("A", 43)+"=\n")
	old := loadKeys(t, path)
	b := s.Topology(bustest.Limits())
	bucket, err := b.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	const count = 40
	var hooks []*webhook.Webhook
	for n := range count {
		w := sealedWebhook(old, n)
		put(t, bucket, old, w)
		hooks = append(hooks, w)
	}
	gone := sealedWebhook(old, count)
	put(t, bucket, old, gone)
	if _, err := bucket.Put(t.Context(), gone.Key(), registry.SignDeletion(old, gone)); err != nil {
		t.Fatal(err)
	}
	reseal(s, path, true).want(t, 0, `^40 webhooks\n  key \S+: 40 \(the first in the file\)\n`, `may be removed`)

	added, err := seal.Add(path)
	if err != nil {
		t.Fatal(err)
	}
	ring := loadKeys(t, path)
	if ring.Current() != added {
		t.Fatalf("the first key is %s, want %s", ring.Current(), added)
	}
	reseal(s, path, true).want(t, 1, `40 webhooks`, `key `+old.Current()+`: 40\n`, `key `+added+`: 0 \(the first`, `40 webhooks need another key`)

	// Owners change names meanwhile, as management does it, and one sets its auth key again.
	ctx, stop := context.WithCancel(t.Context())
	var changes [count]atomic.Int64
	var owners sync.WaitGroup
	for n, w := range hooks {
		owners.Go(func() {
			for ctx.Err() == nil {
				change(t, bucket, ring, w.Key(), func(w *webhook.Webhook) {
					before, _ := strconv.Atoi(w.Name)
					w.Name = strconv.Itoa(before + 1)
					if n == 0 {
						w.AuthKey = ring.Seal([]byte("auth 0"), w.SealContext("auth_key"))
					}
				})
				changes[n].Add(1)
			}
		})
	}
	got := reseal(s, path, false)
	stop()
	owners.Wait()
	got.want(t, 0, `40 sealed again`, `key `+added+`: 40 \(the first`, `Everything is sealed under `+added)
	reseal(s, path, false).want(t, 0, `^40 webhooks\n  key \S+: 40 \(the first in the file\)\nEverything`)
	e, err := bucket.Get(t.Context(), gone.Key())
	if err != nil || !strings.Contains(string(e.Value), added) {
		t.Errorf("the record of the deletion is %s, %v; want it under the new key", e.Value, err)
	}

	if err := seal.Remove(path, old.Current()); err != nil {
		t.Fatal(err)
	}
	ring = loadKeys(t, path)
	for n, before := range hooks {
		e, err := bucket.Get(t.Context(), before.Key())
		if err != nil {
			t.Fatal(err)
		}
		w, err := webhook.Decode(e.Value)
		if err != nil {
			t.Fatal(err)
		}
		open, err := w.Open(ring, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if open.AuthKey != fmt.Sprintf("auth %d", n) || len(open.Secrets) != 2 ||
			string(open.Secrets[0]) != fmt.Sprintf("secret 0 %d", n) || string(open.Secrets[1]) != fmt.Sprintf("secret 1 %d", n) {
			t.Errorf("webhook %d opens as %q", n, open)
		}
		if want := strconv.FormatInt(changes[n].Load(), 10); w.Name != want {
			t.Errorf("webhook %d is at change %s, want %s: one was lost", n, w.Name, want)
		}
		if len(w.Secrets) != 2 || !w.Secrets[1].ExpiresAt.Equal(before.Secrets[1].ExpiresAt) || !w.UpdatedAt.Equal(before.UpdatedAt) {
			t.Errorf("webhook %d is %+v, was %+v", n, w, before)
		}
	}
}

// TestResealNamesWhatDoesNotOpen: a webhook whose key is gone is named and left as it is, the others are sealed again.
func TestResealNamesWhatDoesNotOpen(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	a := "a:" + strings.Repeat("A", 43) + "=\n"
	b := "b:" + strings.Repeat("B", 42) + "A=\n"
	c := "c:" + strings.Repeat("C", 42) + "A=\n"
	conn := s.Topology(bustest.Limits())
	bucket, err := conn.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	keysA, keysB := loadKeys(t, writeKeys(t, a)), loadKeys(t, writeKeys(t, b))
	lost, fine := sealedWebhook(keysA, 1), sealedWebhook(keysB, 2)
	put(t, bucket, keysA, lost)
	put(t, bucket, keysB, fine)
	ring := writeKeys(t, c+b)
	reseal(s, ring, false).want(t, 1, `key b: 1\n`, `webhook acme.`+lost.ID+` is not used: its key is not in ENCRYPTION_KEY_FILE; .*"a"`, `1 webhooks do not open`)
	reseal(s, ring, true).want(t, 1, `key c: 1 \(the first`, `1 webhooks need another key`)
	e, err := bucket.Get(t.Context(), lost.Key())
	if err != nil {
		t.Fatal(err)
	}
	if w, err := webhook.Decode(e.Value); err != nil || w.AuthKey != lost.AuthKey {
		t.Errorf("what does not open was changed: %v", err)
	}
	reseal(s, writeKeys(t, c+b+a), false).want(t, 0, `1 sealed again`, `key c: 2 \(the first`, `Everything`)

	// Someone else's webhook under this key, as only an attacker would put it.
	if e, err = bucket.Get(t.Context(), fine.Key()); err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), "evil.one", e.Value); err != nil {
		t.Fatal(err)
	}
	reseal(s, ring, false).want(t, 1, `webhook evil.one is not used: its MAC is not management.s`)
	reseal(s, filepath.Join(t.TempDir(), "none"), false).want(t, 2, `ENCRYPTION_KEY_FILE`)
}

func writeKeys(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func put(t *testing.T, bucket *bus.Bucket, keys *seal.Keyring, w *webhook.Webhook) {
	t.Helper()
	value, err := registry.Sign(keys, w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), w.Key(), value); err != nil {
		t.Fatal(err)
	}
}

// change is a compare-and-set of a webhook that ends with one change made.
func change(t *testing.T, bucket *bus.Bucket, keys *seal.Keyring, key string, f func(*webhook.Webhook)) {
	for {
		e, err := bucket.Get(t.Context(), key)
		if err != nil {
			t.Error(err)
			return
		}
		w, err := webhook.Decode(e.Value)
		if err != nil {
			t.Error(err)
			return
		}
		f(w)
		w.Version++
		value, err := registry.Sign(keys, w)
		if err != nil {
			t.Error(err)
			return
		}
		_, err = bucket.Update(t.Context(), key, value, e.Revision)
		if err == nil {
			return
		}
		if !errors.Is(err, bus.ErrConflict) {
			t.Error(err)
			return
		}
	}
}
