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
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/redistest"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/waittest"
	"gancho/services/dispatcher"
	"gancho/services/gancho"
	"gancho/services/management"
	"gancho/services/publisher"
	monitor "gancho/services/suspension-monitor"
)

// TestServicesUnderTheirUsers runs all services against the broker and the Redis of docker-compose.yml, each
// as its own user, takes notifications through every state and calls the API, and sees that neither broker
// nor Redis refused anything.
func TestServicesUnderTheirUsers(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	redis := redistest.StartShipped(t)
	defer func() { // also when a step below failed: a refusal is then the likely reason
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, line := range b.refused {
			t.Errorf("the broker refused: %s", line)
		}
		refused, err := redis.Client().ACLLog(context.WithoutCancel(t.Context()), 100).Result()
		if err != nil {
			t.Errorf("ask Redis what it refused: %v", err)
		}
		for _, r := range refused {
			t.Errorf("Redis refused %s %s (%s)", r.Username, r.Object, r.Reason)
		}
	}()

	// Receivers: one accepts, one fails until it is repaired.
	var accepted, failed atomic.Int64
	var repaired atomic.Bool
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/bad" && !repaired.Load() {
			failed.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		accepted.Add(1)
	}))
	t.Cleanup(receiver.Close)

	keys := filepath.Join(t.TempDir(), "keys")
	must(t, "key file", seal.New().Write(keys))
	const token = "operator-token"
	common := []string{
		"ENCRYPTION_KEY_FILE=" + keys, "API_TOKENS=*:" + token, "ALLOW_HTTP_URLS=true", "EGRESS_ALLOW_CIDRS=127.0.0.0/8", "EGRESS_ALLOW_PORTS=*",
		"RETRY_DELAYS=100ms,100ms,100ms,100ms,100ms", "SUSPENSION_MIN_FAILURES=4", "SUSPENSION_MIN_SPAN=0s", "SUSPENSION_DURATION=1s",
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, "listen", err)
	shell, err := service.NewShell("warn", zapcore.AddSync(io.Discard))
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

	// call makes a request of the account acme and returns the status and what "data" holds.
	call := func(method, path string, body any) (int, json.RawMessage) {
		t.Helper()
		var text []byte
		if body != nil {
			text, err = json.Marshal(map[string]any{"data": body})
			must(t, "encode", err)
		}
		if raw, ok := body.(json.RawMessage); ok {
			text = raw
		}
		req, err := http.NewRequestWithContext(ctx, method, "http://"+listener.Addr().String()+"/crm/v2"+path, bytes.NewReader(text))
		must(t, "request", err)
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("X-Account-Id", "acme")
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, nil
		}
		defer resp.Body.Close()
		var answer struct {
			Data json.RawMessage `json:"data"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		return resp.StatusCode, answer.Data
	}
	want := func(status int, method, path string, body any) json.RawMessage {
		t.Helper()
		got, data := call(method, path, body)
		if got != status {
			t.Fatalf("%s %s: status %d, want %d: %s", method, path, got, status, data)
		}
		return data
	}
	id := func(data json.RawMessage) string {
		t.Helper()
		var v struct{ ID, Status, State string }
		must(t, "decode", json.Unmarshal(data, &v))
		return v.ID
	}
	field := func(data json.RawMessage, name string) string {
		var v map[string]any
		_ = json.Unmarshal(data, &v)
		return fmt.Sprint(v[name])
	}

	waittest.Until(t, "management serves", func() bool { status, _ := call("GET", "/webhooks", nil); return status == http.StatusOK })
	good := id(want(http.StatusCreated, "POST", "/webhooks", map[string]any{"name": "good", "event_name": "crm_deal_*", "url": receiver.URL + "/good"}))
	bad := id(want(http.StatusCreated, "POST", "/webhooks", map[string]any{
		"name": "bad", "event_name": "crm_deal_updated", "url": receiver.URL + "/bad", "auth_header": "X-Key", "auth_key": "secret",
	}))
	want(http.StatusConflict, "POST", "/webhooks", map[string]any{"name": "twice", "event_name": "crm_deal_*", "url": receiver.URL + "/good"})
	want(http.StatusOK, "PUT", "/webhooks/"+good, map[string]any{"name": "better"})

	// The CRM publishes; the bad URL fails until it is suspended, then what is new is parked.
	crmConn, err := nats.Connect(b.url(userCRM), nats.CustomInboxPrefix("_INBOX_crm"))
	must(t, "crm connects", err)
	t.Cleanup(crmConn.Close)
	crm, err := jetstream.New(crmConn)
	must(t, "crm's JetStream", err)
	began := time.Now()
	published := 0
	publish := func() {
		t.Helper()
		published++
		_, err := crm.Publish(ctx, "crm.events.acme.crm_deal_updated", fmt.Appendf(nil, `{"document":{},"transaction_uuid":"t-%d"}`, published))
		must(t, "crm publishes", err)
	}
	_, err = crm.Publish(ctx, "crm.events.acme.crm_deal_updated", []byte(`[]`)) // rejected
	must(t, "crm publishes what is no event", err)
	publish()
	waittest.Until(t, "the bad URL is suspended", func() bool {
		return field(want(http.StatusOK, "GET", "/webhooks/"+bad, nil), "status") == "suspended"
	})
	publish()
	publish()
	want(http.StatusAccepted, "POST", "/events/crm_deal_updated", json.RawMessage(`{"document":{},"transaction_uuid":"by-http"}`))
	waittest.Until(t, "the good receiver has all", func() bool { return accepted.Load() >= 4 })
	repaired.Store(true)
	waittest.Until(t, "a probe ends the suspension", func() bool {
		return field(want(http.StatusOK, "GET", "/webhooks/"+bad, nil), "status") == "active"
	})
	waittest.Until(t, "what was parked is released", func() bool { return accepted.Load() >= 7 })

	// By hand.
	if status, _ := call("POST", "/webhooks/"+bad+"/suspend", nil); status != http.StatusOK && status != http.StatusAccepted {
		t.Errorf("suspend: status %d", status)
	}
	waittest.Until(t, "it is suspended by hand", func() bool {
		return field(want(http.StatusOK, "GET", "/webhooks/"+bad, nil), "status") == "suspended"
	})
	publish()
	if status, _ := call("POST", "/webhooks/"+bad+"/resume", nil); status != http.StatusOK && status != http.StatusAccepted {
		t.Errorf("resume: status %d", status)
	}
	want(http.StatusOK, "POST", "/webhooks/"+good+"/rotate_secret", nil)
	want(http.StatusOK, "PUT", "/webhooks/"+bad, map[string]any{"status": "disabled"})
	publish()
	want(http.StatusOK, "PUT", "/webhooks/"+bad, map[string]any{"status": "active"})

	// One notification, and the list.
	sent := id(want(http.StatusAccepted, "POST", "/webhooks/"+good+"/test", nil))
	waittest.Until(t, "the test is delivered", func() bool {
		status, data := call("GET", "/notifications/"+sent, nil)
		return status == http.StatusOK && field(data, "state") == "delivered"
	})
	want(http.StatusAccepted, "POST", "/notifications/"+sent+"/resend", nil)
	waittest.Until(t, "the list shows notifications", func() bool {
		status, data := call("GET", "/webhooks/"+good+"/notifications", nil)
		return status == http.StatusOK && len(data) > 2
	})
	for _, state := range []string{"pending", "retrying", "parked", "permanently_failed"} {
		want(http.StatusOK, "GET", "/webhooks/"+good+"/notifications?state="+state, nil)
	}

	// A replay of all that was published.
	replay := map[string]any{"from": began.Add(-time.Minute).UTC().Format(time.RFC3339), "to": time.Now().UTC().Format(time.RFC3339)}
	if status, data := call("POST", "/webhooks/"+good+"/replays", replay); status == http.StatusCreated || status == http.StatusAccepted || status == http.StatusOK {
		job := id(data)
		waittest.Until(t, "the replay has a preview", func() bool {
			status, _ := call("POST", "/replays/"+job+"/start", nil)
			return status == http.StatusOK || status == http.StatusAccepted
		})
		waittest.Until(t, "the replay is done", func() bool {
			return field(want(http.StatusOK, "GET", "/replays/"+job, nil), "state") == "done"
		})
		call("DELETE", "/replays/"+job, nil)
	} else if status != http.StatusNotFound {
		t.Errorf("replay: status %d: %s", status, data)
	}
	tail, stop := context.WithTimeout(ctx, time.Second)
	req, err := http.NewRequestWithContext(tail, http.MethodGet, "http://"+listener.Addr().String()+"/crm/v2/tail", http.NoBody)
	must(t, "request", err)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("X-Account-Id", "acme")
	if resp, err := http.DefaultClient.Do(req); err == nil {
		publish()
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	stop()
	want(http.StatusNoContent, "DELETE", "/webhooks/"+bad, nil)
	// The last: the services that run here do not have the new key.
	added, err := seal.Add(keys)
	must(t, "a new key", err)
	var report, problems strings.Builder
	if code := gancho.Reseal([]string{"NATS_URL=" + b.url(userManagement), "ENCRYPTION_KEY_FILE=" + keys}, false, &report, &problems); code != 0 ||
		!strings.Contains(report.String(), "Everything is sealed under "+added) {
		t.Errorf("gancho keys reseal: exit code %d\n%s%s", code, &report, &problems)
	}
}

// run starts one service with its own addresses.
func run[C any](t *testing.T, group *errgroup.Group, common []string, natsURL, redisURL string, start func(C) error) {
	t.Helper()
	var cfg C
	environ := append([]string{natsURL}, common...)
	if redisURL != "" {
		environ = append(environ, redisURL)
	}
	if problems := service.Load(&cfg, environ); len(problems) > 0 {
		t.Fatal(strings.Join(problems, "\n"))
	}
	group.Go(func() error { return start(cfg) })
}
