package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/services/internal/testsystem"
)

// TestDiskFull fills the broker's disk under load: publishers get an error, services say that they are not
// ready, and once there is room and the broker was restarted everything that was acknowledged is delivered,
// without a restart of anything of ours. The disk is a small tmpfs, where this process may mount one; the
// broker's own limit, which is reached in the same way, is tried everywhere.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	t.Run("limit of the broker", func(t *testing.T) {
		t.Parallel()
		s := newSystemWith(t, testsystem.Options{MaxStore: "12MB", Sync: "always"})
		s.fillDisk(func() { s.LimitStore("1GB") })
	})
	if os.Geteuid() != 0 {
		return
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=12m"); err != nil {
		t.Logf("no tmpfs can be mounted here (%v): the broker's limit alone is tried", err)
		return
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount the tmpfs: %v", err)
		}
	})
	t.Run("full file system", func(t *testing.T) {
		t.Parallel()
		s := newSystemWith(t, testsystem.Options{Store: disk, MaxStore: "1GB", Sync: "always"})
		s.fillDisk(func() {
			if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT, "size=200m"); err != nil {
				t.Fatalf("make the tmpfs larger: %v", err)
			}
		})
	})
}

// fillDisk publishes until the broker refuses, frees space, restarts the broker and compares.
func (s *system) fillDisk(free func()) {
	s.t.Helper()
	rc, flaky := newReceiver(s.t, succeed), newReceiver(s.t, func(w http.ResponseWriter, attempt string) {
		if attempt < "3" {
			fail(w, attempt)
		}
	})
	good, retried := s.register(dealCreated, rc.URL), s.register(dealCreated, flaky.URL)
	s.settle()
	filler := strings.Repeat("x", 32<<10)
	var acknowledged []string
	var refusal error
	refused := 0
	s.Until("the broker refuses", func() bool { // again and again: a single one may be chance
		id := uuid.NewString()
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
		defer cancel()
		_, err := s.js.Publish(ctx, "crm.events."+account+"."+dealCreated,
			fmt.Appendf(nil, `{"document":{"id":"`+documentID+`","filler":%q},"transaction_uuid":%q}`, filler, id), jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0))
		if err == nil {
			acknowledged, refused = append(acknowledged, id), 0
			return false
		}
		refusal = err
		refused++
		return refused == 5
	})
	s.t.Logf("refused after %d events: %v", len(acknowledged), refusal)
	if len(acknowledged) < 20 {
		s.t.Fatalf("only %d events were taken before the disk was full: nothing is proven", len(acknowledged))
	}
	status, err := s.try(http.MethodPost, "/crm/v2/events/"+dealCreated, []byte(`{"document":{}}`), nil)
	if err != nil || status != http.StatusServiceUnavailable {
		s.t.Errorf("HTTP ingest on a full disk: status %d, %v", status, err)
	}
	for _, p := range s.Services() {
		s.t.Logf("%s: %s", p.Name, s.readiness(p))
	}
	s.t.Logf("broker: %s", s.Broker.Output())
	free()
	s.Broker.Kill()
	s.StartBroker()
	began := time.Now()
	s.WaitReady()
	s.t.Logf("ready %v after the broker's restart", time.Since(began).Round(time.Millisecond))
	acknowledged = append(acknowledged, s.publish(dealCreated))
	s.waitAll(ids(dealCreated, good, acknowledged), "delivered")
	s.waitAll(ids(dealCreated, retried, acknowledged), "delivered")
	s.t.Logf("%d events delivered twice each %v after the broker's restart", len(acknowledged), time.Since(began).Round(time.Millisecond))
	s.waitBooks(`gancho_unaccounted_notifications{}`, 0)
}

// readiness is what a service's /readyz says.
func (s *system) readiness(p *testsystem.Process) string {
	s.t.Helper()
	resp, err := http.Get(s.Ops(p) + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var b strings.Builder
	_ = resp.Write(&b)
	status, body, _ := strings.Cut(b.String(), "\r\n\r\n")
	first, _, _ := strings.Cut(status, "\r\n")
	return first + " " + strings.TrimSpace(body)
}
