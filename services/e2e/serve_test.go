package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"gancho/pkg/event"
	"gancho/services/internal/testsystem"

	"github.com/google/uuid"
)

// TestServeKeepsEverythingOverARestart runs all services in one process, with a receiver that is down until
// after the restart.
func TestServeKeepsEverythingOverARestart(t *testing.T) {
	t.Parallel()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	p := testsystem.NewProcess(t, "gancho serve", []string{
		"DATA_DIR=" + t.TempDir(), "NATS_LISTEN=127.0.0.1:0", "HTTP_ADDR=127.0.0.1:0", "OPS_ADDR=127.0.0.1:0", "NATS_URL=", "REDIS_URL=",
		"ALLOW_HTTP_URLS=true", "EGRESS_ALLOW_CIDRS=127.0.0.0/8", "EGRESS_ALLOW_PORTS=*", "RETRY_DELAYS=3s,3s,3s,3s,3s",
		"ENCRYPTION_KEY_FILE=", "API_TOKENS=", "API_TOKENS_FILE=",
	}, filepath.Join(dir, "gancho"), "serve")
	t.Cleanup(p.Kill)
	start := func() *system {
		p.Start()
		return &system{t: t, System: testsystem.Attach(t, p)}
	}
	s := start()
	s.token = p.Find(`export GANCHO_TOKEN=(\S+)`)
	rc := newReceiver(t, fail)
	good := newReceiver(t, succeed)
	h, other := s.register(dealCreated, rc.URL), s.register(dealCreated, good.URL)
	tx := uuid.NewString()
	body := `{"event_name":"crm_deal_created","document":{},"transaction_uuid":"` + tx + `"}`
	if status := s.call(http.MethodPost, "/crm/v2/events/crm_deal_created", []byte(body), nil); status != http.StatusAccepted {
		t.Fatalf("ingest: status %d", status)
	}
	id := func(h hook) string {
		return event.NotificationID(event.ID("demo", dealCreated, tx), uuid.MustParse(h.ID))
	}
	s.waitAll([]string{id(other)}, "delivered")
	s.waitAll([]string{id(h)}, "retrying")
	s.stopCleanly(p)
	rc.become(succeed) // before the start, which may take as long as all its attempts
	token := s.token
	s = start()
	s.token = token
	if strings.Contains(p.Output(), "GANCHO_TOKEN") {
		t.Error("the token is printed again")
	}
	s.waitAll([]string{id(other), id(h)}, "delivered")
	if n := len(good.snapshot()[id(other)]); n != 1 {
		t.Errorf("the delivered one was sent %d times", n)
	}
	if n := len(rc.snapshot()[id(h)]); n > 6 {
		t.Errorf("the failing one was tried %d times", n)
	}
}
