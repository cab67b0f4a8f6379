package dispatcher

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// TestMissingKey: a secret sealed under a key that is not there is named before anything is to be sent, and once a
// minute however many notifications wait for it.
func TestMissingKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	core, logs := observer.New(zapcore.WarnLevel)
	r.log = zap.New(core)
	file := filepath.Join(t.TempDir(), "keys") // of the machine that the backup came from
	if err := os.WriteFile(file, []byte("elsewhere:"+strings.Repeat("A", 43)+"=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	elsewhere, _, err := seal.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	sealedBy := func(keys *seal.Keyring) func(*webhook.Webhook) {
		return func(w *webhook.Webhook) {
			w.Secrets = []webhook.Secret{{Sealed: keys.Seal([]byte("0123456789abcdef0123456789abcdef"), w.SealContext("secret"))}}
		}
	}
	w := r.webhook("http://127.0.0.1:1/", sealedBy(elsewhere))
	r.start()
	const want = `keys: the credentials of 1 webhooks do not open: its key is not in ENCRYPTION_KEY_FILE; add the line again: "elsewhere"`
	r.until(want, func() bool { return strings.Join(r.health.State().Degraded, "") == want })
	for i := range 20 {
		r.notify(w, i)
	}
	r.until("they were met", func() bool { return logs.FilterMessage("credentials do not open: their notifications wait").Len() > 0 })
	r.until("all wait", func() bool {
		state, err := r.bus.StreamState(t.Context(), topology.Retries)
		return err == nil && state.Messages == 20
	})
	if n := logs.Len(); n != 1 {
		t.Errorf("%d lines, want 1: %v", n, logs.All())
	}
	r.put(w, sealedBy(r.keys))
	r.until("nothing is missing", func() bool { return len(r.health.State().Degraded) == 0 })
}
