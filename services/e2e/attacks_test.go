package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/event"
	"gancho/pkg/redistest"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/waittest"
	"gancho/services/dispatcher"
	"gancho/services/management"
	"gancho/services/publisher"
	monitor "gancho/services/suspension-monitor"
)

// TestOneAccountAttacksTheOthers runs all services under the users of accounts.conf and users.acl with small stores.
// An account each attacks the shared stores, the memory, the suspension guard and the sign-in, one after the other, and
// no attack is over before the last has begun. After each, the first attempts of another account arrive; in the end
// its URL that always fails was suspended, its permanent failure can be sent again and its token is let in. Then the
// attacks end, and every event of the attackers that was acknowledged comes to its end.
func TestOneAccountAttacksTheOthers(t *testing.T) {
	b, redis := startBroker(t), redistest.StartShipped(t)
	relented := make(chan struct{})
	relent := sync.OnceFunc(func() { close(relented) })
	var mu sync.Mutex
	got := map[string]bool{} // transactions that acme's good webhook received
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		kind, account, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		switch kind {
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "fail-until", "hang-until":
			select {
			case <-relented:
				return
			default:
			}
			if kind == "hang-until" {
				select {
				case <-relented:
				case <-r.Context().Done():
				}
			}
			w.WriteHeader(http.StatusInternalServerError)
		case "ok":
			var e struct {
				Transaction string `json:"transaction_uuid"`
			}
			if strings.HasPrefix(account, "acme") && json.Unmarshal(body, &e) == nil {
				mu.Lock()
				got[e.Transaction] = true
				mu.Unlock()
			}
		}
	}))
	t.Cleanup(receiver.Close)
	t.Cleanup(relent) // before Close, which waits for requests

	keys := filepath.Join(t.TempDir(), "keys")
	must(t, "key file", seal.New().Write(keys))
	const own = "token-of-acme-0123456789"
	tokens, attacker, foe := "acme:"+own, "", "" // the attacker of the moment and its token
	tokenOf := func(account string) string { return "token-of-" + account + "-0123456789" }
	for i := range 6 {
		account := fmt.Sprint("attacker", i)
		tokens += "," + account + ":" + tokenOf(account)
	}
	begin := func(i int) {
		attacker = fmt.Sprint("attacker", i)
		foe = tokenOf(attacker)
	}
	common := []string{
		"ENCRYPTION_KEY_FILE=" + keys, "API_TOKENS=" + tokens, "API_RATE_LIMIT=1000000",
		"ALLOW_HTTP_URLS=true", "EGRESS_ALLOW_CIDRS=127.0.0.0/8", "EGRESS_ALLOW_PORTS=*",
		"ATTEMPT_TIMEOUT=1s", "RETRY_DELAYS=200ms,200ms,200ms,200ms,200ms", "SUSPENSION_MIN_FAILURES=8", "SUSPENSION_MIN_SPAN=0s", "SUSPENSION_DURATION=1s", "SUSPENSION_MAX_DURATION=1s",
		"EVENTS_MAX_BYTES=67108864", "NOTIFICATIONS_MAX_BYTES=16777216", "RETRIES_MAX_BYTES=8388608", "PARKED_MAX_BYTES=4194304", "MAX_IN_FLIGHT_BYTES=16777216",
		"BODIES_MAX_BYTES=1", // notifications carry their bodies: with references these attacks would fill nothing
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, "listen", err)
	shell, err := service.NewShell("error", zapcore.AddSync(io.Discard))
	must(t, "shell", err)
	ctx, cancel := context.WithCancel(t.Context())
	group, ctx := errgroup.WithContext(ctx)
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("services: %v", err)
		}
	})
	run(t, group, common, "NATS_URL="+b.url(userPublisher), "", func(c publisher.Config) error {
		return publisher.Run(ctx, c, shell.Process(userPublisher))
	})
	run(t, group, common, "NATS_URL="+b.url(userDispatcher), "", func(c dispatcher.Config) error {
		return dispatcher.Run(ctx, c, shell.Process(userDispatcher))
	})
	run(t, group, common, "NATS_URL="+b.url(userMonitor), "REDIS_URL="+redis.URLOf(redistest.UserMonitor), func(c monitor.Config) error {
		return monitor.Run(ctx, c, shell.Process(userMonitor))
	})
	run(t, group, common, "NATS_URL="+b.url(userManagement), "REDIS_URL="+redis.URLOf(redistest.UserManagement), func(c management.Config) error {
		c.Listener = listener
		return management.Run(ctx, c, shell.Process(userManagement))
	})
	call := func(token, method, path, body string) (int, map[string]any) {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+listener.Addr().String()+"/crm/v2"+path, bytes.NewReader([]byte(body)))
		must(t, "request", err)
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, nil
		}
		defer resp.Body.Close()
		var answer struct{ Data map[string]any }
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		return resp.StatusCode, answer.Data
	}
	waittest.Until(t, "management serves", func() bool { status, _ := call(own, "GET", "/webhooks", ""); return status == http.StatusOK })
	register := func(token, name, path string) string {
		t.Helper()
		status, data := call(token, "POST", "/webhooks", fmt.Sprintf(`{"data":{"event_name":%q,"url":%q}}`, name, receiver.URL+path))
		if status != http.StatusCreated {
			t.Fatalf("register %s: status %d", path, status)
		}
		return fmt.Sprint(data["id"])
	}
	crmConn, err := nats.Connect(b.url(userCRM), nats.CustomInboxPrefix("_INBOX_crm"))
	must(t, "crm connects", err)
	t.Cleanup(crmConn.Close)
	crm, err := jetstream.New(crmConn)
	must(t, "crm's JetStream", err)
	publish := func(account, name string, size int) string {
		t.Helper()
		tx := uuid.NewString()
		_, err := crm.Publish(ctx, "crm.events."+account+"."+name, fmt.Appendf(nil, `{"document":{"filler":%q},"transaction_uuid":%q}`, strings.Repeat("x", size), tx))
		must(t, "the CRM publishes for "+account, err)
		return tx
	}
	notification := func(account, name, tx, hook string) string {
		return event.NotificationID(event.ID(account, name, tx), uuid.MustParse(hook))
	}
	state := func(token, id string) string {
		status, data := call(token, "GET", "/notifications/"+id, "")
		return fmt.Sprint(status, " ", data["state"])
	}

	const deal, task, lead = "crm_deal_created", "crm_task_created", "crm_lead_created"
	register(own, deal, "/ok/acme")
	bad := register(own, lead, "/fail/acme")
	waittest.Until(t, "the webhooks count", func() bool {
		publish("acme", deal, 10)
		mu.Lock()
		defer mu.Unlock()
		return len(got) > 0
	})
	history := notification("acme", lead, publish("acme", lead, 10), bad)
	waittest.Until(t, "a permanent failure of acme", func() bool { return state(own, history) == "200 permanently_failed" })

	owed := map[string]string{} // the token of the attacker that each notification was promised to
	flood := func(name string, events, size int, hooks ...string) {
		t.Helper()
		for range events {
			tx := publish(attacker, name, size)
			for _, h := range hooks {
				owed[notification(attacker, name, tx, h)] = foe
			}
		}
	}
	probe := func(attack string) {
		t.Helper()
		for range 5 {
			tx := publish("acme", deal, 10)
			waittest.Until(t, attack+": acme's first attempt", func() bool { mu.Lock(); defer mu.Unlock(); return got[tx] })
		}
	}
	hooksOf := func(name, kind string, n int) (all []string) {
		for i := range n {
			all = append(all, register(foe, name, fmt.Sprintf("/%s/attacker/%s/%d", kind, name, i)))
		}
		return all
	}

	begin(0)
	parked := hooksOf("crm_deal_deleted", "ok", 1)
	if status, _ := call(foe, "POST", "/webhooks/"+parked[0]+"/suspend", ""); status >= http.StatusBadRequest {
		t.Fatalf("suspend: status %d", status)
	}
	flood("crm_deal_deleted", 80, 60<<10, parked...)
	probe("PARKED full")

	begin(1)
	flood("crm_deal_updated", 6, 1000<<10, hooksOf("crm_deal_updated", "fail-until", 2)...)
	probe("RETRIES full")

	begin(2)
	flood("crm_contact_created", 40, 50<<10, hooksOf("crm_contact_created", "ok", 10)...)
	probe("NOTIFICATIONS full")

	begin(3)
	refused := false
	for i := 0; i < 80 && !refused; i++ {
		status, _ := call(foe, "POST", "/events/"+task, fmt.Sprintf(`{"document":{"filler":%q},"transaction_uuid":"h-%d"}`, strings.Repeat("x", 1000<<10), i))
		refused = status == http.StatusTooManyRequests
	}
	if !refused {
		t.Error("80 MB over HTTP fit into a fifth of 64 MB")
	}
	probe("CRM_EVENTS full")

	begin(4)
	flood("crm_contact_updated", 2, 1000<<10, hooksOf("crm_contact_updated", "hang-until", 8)...)
	probe("memory full")

	begin(5)
	flood("crm_contact_deleted", 2, 10, hooksOf("crm_contact_deleted", "fail-until", 30)...)
	waittest.Until(t, "acme's URL that always fails is suspended", func() bool {
		publish("acme", lead, 10)
		_, data := call(own, "GET", "/webhooks/"+bad, "")
		return data["status"] == "suspended"
	})
	probe("guard")

	locked := false
	for i := 0; i < 100 && !locked; i++ {
		status, _ := call(fmt.Sprintf("guess-%d", i), "GET", "/webhooks", "")
		locked = status == http.StatusTooManyRequests
	}
	if status, _ := call(own, "GET", "/webhooks", ""); !locked || status != http.StatusOK {
		t.Errorf("guessing: locked out %v, acme's token gets %d", locked, status)
	}
	if status, _ := call(own, "POST", "/notifications/"+history+"/resend", ""); status != http.StatusAccepted && status != http.StatusOK {
		t.Errorf("acme's permanent failure cannot be sent again: status %d", status)
	}
	probe("all at once")

	relent()
	begin(0)
	if status, _ := call(foe, "POST", "/webhooks/"+parked[0]+"/resume", ""); status >= http.StatusBadRequest {
		t.Errorf("resume: status %d", status)
	}
	for id, token := range owed {
		waittest.Until(t, "the end of "+id, func() bool {
			s := state(token, id)
			return s == "200 delivered" || s == "200 permanently_failed"
		})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.refused {
		t.Errorf("the broker refused: %s", line)
	}
}
