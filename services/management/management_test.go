package management_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
	"gancho/services/management"
)

// The tokens of the tests.
const (
	acme     = "acme-token-1"
	acmeRead = "acme-read-token"
	other    = "globex-token-1"
	operator = "operator-token"
)

// instance is a running management with its broker.
type instance struct {
	t    *testing.T
	nats *bustest.Server
	bus  *bus.Bus // of the test, with every stream
	cfg  management.Config
	url  string
}

// start runs management on a broker of its own. change may alter the configuration.
func start(t *testing.T, change func(*management.Config)) *instance {
	t.Helper()
	s := &instance{t: t, nats: bustest.Start(t)}
	s.bus = s.nats.Topology(bustest.Limits())
	keyFile := filepath.Join(t.TempDir(), "keys")
	if err := seal.New().Write(keyFile); err != nil {
		t.Fatal(err)
	}
	var cfg management.Config
	problems := service.Load(&cfg, []string{
		"NATS_URL=" + s.nats.URL(), "ENCRYPTION_KEY_FILE=" + keyFile, "REDIS_URL=redis://127.0.0.1:1", "API_RATE_LIMIT=100000",
		"API_TOKENS=acme:" + acme + ",acme:" + acmeRead + ":read,globex:" + other + ",*:" + operator,
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if change != nil {
		change(&cfg)
	}
	s.cfg = cfg
	s.url = s.run()
	return s
}

// run starts one replica for the rest of the test and returns its address.
func (s *instance) run() string {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	url, done := s.runUntil(ctx)
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
	})
	return url
}

// runUntil starts one replica that stops with ctx. done gives what Run returned.
func (s *instance) runUntil(ctx context.Context) (url string, done <-chan error) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := s.cfg
	cfg.Listener = l
	result := make(chan error, 1)
	go func() {
		result <- management.Run(ctx, cfg, &service.Process{
			Name: "management", Log: bustest.Logger(s.t), Metrics: prometheus.NewRegistry(), Health: service.NewHealth(),
		})
	}()
	url = "http://" + l.Addr().String()
	s.until("it serves", func() bool {
		resp, err := http.Get(url + "/crm/v2/openapi.json")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return url, result
}

// arrived counts the messages on NOTIFICATIONS.
func (s *instance) arrived() (uint64, error) {
	state, err := s.bus.StreamState(s.t.Context(), topology.Notifications)
	return state.Messages, err
}

// until waits for a condition.
func (s *instance) until(what string, done func() bool) {
	s.t.Helper()
	waittest.Until(s.t, what, done)
}

// reply is an answer of the API.
type reply struct {
	t      *testing.T
	status int
	header http.Header
	raw    []byte
	json   map[string]any
}

// do makes a request. body may be nil, a string (sent as it is) or a value for data.
func (s *instance) do(token, method, path string, body any, headers ...string) reply {
	s.t.Helper()
	return s.at(s.url, token, method, path, body, headers...)
}

func (s *instance) at(base, token, method, path string, body any, headers ...string) reply {
	s.t.Helper()
	var b io.Reader
	switch v := body.(type) {
	case nil:
	case string:
		b = strings.NewReader(v)
	default:
		text, err := json.Marshal(map[string]any{"data": v})
		if err != nil {
			s.t.Fatal(err)
		}
		b = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, base+path, b)
	if err != nil {
		s.t.Fatal(err)
	}
	if b != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			req.Host = headers[i+1] // the client does not look for it among the headers
		}
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	r := reply{t: s.t, status: resp.StatusCode, header: resp.Header}
	if r.raw, err = io.ReadAll(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && method != http.MethodHead {
		if err := json.Unmarshal(r.raw, &r.json); err != nil {
			s.t.Fatalf("%s %s: not JSON: %v\n%s", method, path, err, r.raw)
		}
	}
	return r
}

// want fails unless the answer has that status.
func (r reply) want(status int) reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("status = %d, want %d\n%s", r.status, status, r.raw)
	}
	return r
}

// refused fails unless the answer is an error with that status, code and pointer.
func (r reply) refused(status int, code, pointer string) {
	r.t.Helper()
	r.want(status)
	list, _ := r.json["errors"].([]any)
	if len(list) == 0 {
		r.t.Fatalf("no errors in %s", r.raw)
	}
	first, _ := list[0].(map[string]any)
	at, _ := first["pointer"].(string)
	if first["code"] != code || at != pointer || first["detail"] == "" {
		r.t.Fatalf("error = %v, want code %s at %q", first, code, pointer)
	}
}

// data returns the member data.
func (r reply) data() map[string]any {
	r.t.Helper()
	d, ok := r.json["data"].(map[string]any)
	if !ok {
		r.t.Fatalf("no data in %s", r.raw)
	}
	return d
}

func (r reply) id() string {
	r.t.Helper()
	return text(r.data(), "id")
}

// rows returns the members of a list.
func (r reply) rows() (rows []map[string]any) {
	r.t.Helper()
	if _, ok := r.json["data"].([]any); !ok {
		r.t.Fatalf("no list in %s", r.raw)
	}
	for _, row := range array(r.json, "data") {
		m, _ := row.(map[string]any)
		rows = append(rows, m)
	}
	return rows
}

// object returns a member that is an object, nil when it is none.
func object(m map[string]any, name string) map[string]any {
	o, _ := m[name].(map[string]any)
	return o
}

// array returns a member that is an array, nil when it is none.
func array(m map[string]any, name string) []any {
	a, _ := m[name].([]any)
	return a
}

// number returns a member that is a number, 0 when it is none.
func number(m map[string]any, name string) float64 {
	n, _ := m[name].(float64)
	return n
}

// text returns a member that is a string, "" when it is none.
func text(m map[string]any, name string) string {
	s, _ := m[name].(string)
	return s
}

// hook is a webhook to create.
func hook(url string, more ...any) map[string]any {
	m := map[string]any{"name": "Negócios para o ERP", "event_name": "crm_deal_created", "http_method": "POST", "url": url}
	for i := 0; i+1 < len(more); i += 2 {
		m[fmt.Sprint(more[i])] = more[i+1]
	}
	return m
}
