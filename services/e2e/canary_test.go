package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/services/internal/testsystem"
)

// canaries are texts that must not come out where they do not belong, by their kind.
type canaries map[string]string

// find reports which of them text holds, raw or in base64.
func (c canaries) find(text []byte) []string {
	var out []string
	for what, secret := range c {
		if bytes.Contains(text, []byte(secret)) {
			out = append(out, what)
		}
	}
	return out
}

// addSecret adds a signing secret in each form it has: as the API gives it, its base64, its bytes.
func (c canaries) addSecret(t *testing.T, what, whsec string) {
	t.Helper()
	encoded, ok := strings.CutPrefix(whsec, "whsec_")
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(raw) < 24 {
		t.Fatalf("not a signing secret: %v", err)
	}
	c[what+" (whsec)"], c[what+" (base64)"], c[what+" (bytes)"] = whsec, encoded, string(raw)
}

// raw makes a request and returns the answer's status, headers and body as text.
func (s *system) raw(method, path, bearer string, body any) (int, string) {
	s.t.Helper()
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(map[string]any{"data": body})
		if err != nil {
			s.t.Fatal(err)
		}
		payload = bytes.NewReader(text)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, path, payload)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	var headers strings.Builder
	_ = resp.Header.Write(&headers) // a builder does not fail
	return resp.StatusCode, headers.String() + string(text)
}

// TestSecretsStayInside lets everything happen to webhooks whose auth keys, signing secrets, URLs and events
// carry marks, with receivers that repeat all they get, and then looks for the marks in every output:
// logs of all services (at level debug), metrics, answers of the API, the broker's files and Redis's.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	const otherToken = "CANARY-token-of-another-account"
	s := newSystem(t, "LOG_LEVEL=debug", "API_TOKENS="+account+":"+token+",other:"+otherToken)

	// A receiver repeats all it gets: in its status, its headers and its body.
	echo := func(status int) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body) // the first part is enough
			for k, v := range r.Header {
				w.Header()["Echo-"+k] = v
			}
			w.Header().Set("Location", r.URL.String())
			w.Header().Set("Www-Authenticate", `Token realm="`+r.Header.Get("X-Api-Key")+`"`)
			w.WriteHeader(status)
			fmt.Fprintf(w, "key=%s, quoted=%q, base64=%s, query=%s\n%s", r.Header.Get("X-Api-Key"), r.Header.Get("X-Api-Key"),
				base64.StdEncoding.EncodeToString([]byte(r.Header.Get("X-Api-Key"))), r.URL.RawQuery, body)
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()

	secrets := canaries{"API token": token, "other API token": otherToken} // nowhere
	private := canaries{                                                   // not in logs, metrics and Redis
		"query": "CANARY-query", "path": "CANARY-path", "payload": "CANARY-payload", "webhook name": "CANARY-name",
	}
	keyFile, err := os.ReadFile(filepath.Join(filepath.Dir(s.Broker.Args[2]), "encryption.key"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(keyFile)) {
		if _, key, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && !strings.HasPrefix(line, "#") {
			secrets["encryption key"] = key
		}
	}
	if len(secrets["encryption key"]) < 40 {
		t.Fatal("no encryption key found")
	}

	var answers []string // of the API, but those that must carry a secret
	ask := func(method, path string, body any, want int) string {
		t.Helper()
		status, text := s.raw(method, s.APIURL+"/crm/v2"+path, token, body)
		if status != want {
			t.Fatalf("%s %s: status %d, want %d: %s", method, path, status, want, text)
		}
		return text
	}
	data := func(text string, out any) {
		t.Helper()
		_, body, _ := strings.Cut(text, "\r\n\r\n")
		if i := strings.Index(text, "{"); body == "" && i >= 0 {
			body = text[i:]
		}
		if err := json.Unmarshal([]byte(body), &struct{ Data any }{out}); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	type secretive struct {
		ID     string `json:"id"`
		Secret string `json:"signing_secret"`
	}
	var hooks []secretive
	for i, url := range []string{echo(http.StatusOK), echo(http.StatusInternalServerError), echo(http.StatusFound), closed.URL} {
		key := fmt.Sprintf("CANARY-auth-key-%d \"quoted\"", i)
		secrets[fmt.Sprint("auth key ", i)] = fmt.Sprintf("CANARY-auth-key-%d", i)
		secrets[fmt.Sprintf("auth key %d (base64)", i)] = base64.StdEncoding.EncodeToString([]byte(key))
		var h secretive
		data(ask(http.MethodPost, "/webhooks", map[string]any{
			"name": "CANARY-name", "event_name": dealCreated, "http_method": "POST",
			"url": url + "/CANARY-path?token=CANARY-query", "auth_header": "X-Api-Key", "auth_key": key,
		}, http.StatusCreated), &h)
		secrets.addSecret(t, fmt.Sprint("signing secret ", i), h.Secret)
		hooks = append(hooks, h)
	}
	s.registered.Store(time.Now().UnixNano())
	s.settle()
	publish := func() string {
		id := uuid.NewString()
		body := fmt.Sprintf(`{"event_name":%q,"document":{"id":"`+documentID+`","name":"CANARY-payload"},"transaction_uuid":%q}`, dealCreated, id)
		if _, err := s.js.Publish(t.Context(), "crm.events."+account+"."+dealCreated, []byte(body), jetstream.WithMsgID(id)); err != nil {
			t.Fatal(err)
		}
		return id
	}
	states := []string{"delivered", "permanently_failed", "permanently_failed", "permanently_failed"}
	first := publish()
	for i, h := range hooks {
		s.waitAll(ids(dealCreated, hook{ID: h.ID}, []string{first}), states[i])
	}
	for i, h := range hooks {
		var rotated secretive
		data(ask(http.MethodPost, "/webhooks/"+h.ID+"/rotate_secret", nil, http.StatusOK), &rotated)
		secrets.addSecret(t, fmt.Sprintf("signing secret %d, rotated", i), rotated.Secret)
		secrets[fmt.Sprint("auth key, changed ", i)] = fmt.Sprintf("CANARY-new-key-%d", i)
		answers = append(answers, ask(http.MethodPut, "/webhooks/"+h.ID, map[string]any{"auth_header": "X-Api-Key", "auth_key": fmt.Sprintf("CANARY-new-key-%d", i)}, http.StatusOK))
	}
	second := publish() // signed with two secrets
	for i, h := range hooks {
		s.waitAll(ids(dealCreated, hook{ID: h.ID}, []string{second}), states[i])
	}
	// What cannot be an event, and an unhappy client.
	if _, err := s.js.Publish(t.Context(), "crm.events."+account+"."+dealCreated, []byte("CANARY-payload, no JSON")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		method, path, bearer string
		body                 any
	}{
		{http.MethodGet, "/webhooks", "CANARY-guess", nil},
		{http.MethodGet, "/webhooks/" + hooks[0].ID, otherToken, nil},
		{http.MethodPost, "/webhooks", token, map[string]any{"name": "CANARY-name", "event_name": dealCreated, "url": "http://u:CANARY-auth-key-0@h/", "auth_key": "CANARY-auth-key-0\r\n"}},
		{http.MethodPost, "/webhooks?token=CANARY-query", token, "CANARY-payload"},
		{http.MethodPut, "/webhooks/" + hooks[0].ID, token, map[string]any{"auth_key": "CANARY-auth-key-0\x00"}},
	} {
		_, text := s.raw(bad.method, s.APIURL+"/crm/v2"+bad.path, bad.bearer, bad.body)
		answers = append(answers, text)
	}
	secrets["guessed token"] = "CANARY-guess"
	for i, h := range hooks {
		for _, tx := range []string{first, second} {
			answers = append(answers, ask(http.MethodGet, "/notifications/"+ids(dealCreated, hook{ID: h.ID}, []string{tx})[0], nil, http.StatusOK))
		}
		answers = append(answers, ask(http.MethodGet, "/webhooks/"+h.ID, nil, http.StatusOK), ask(http.MethodGet, "/webhooks/"+h.ID+"/notifications", nil, http.StatusOK))
		if i > 0 {
			answers = append(answers, ask(http.MethodPost, "/notifications/"+ids(dealCreated, hook{ID: h.ID}, []string{first})[0]+"/resend", nil, http.StatusAccepted))
		}
		answers = append(answers,
			ask(http.MethodPost, "/webhooks/"+h.ID+"/test", nil, http.StatusAccepted),
			ask(http.MethodPost, "/webhooks/"+h.ID+"/suspend", nil, http.StatusOK), ask(http.MethodPost, "/webhooks/"+h.ID+"/resume", nil, http.StatusOK))
	}
	answers = append(answers, ask(http.MethodGet, "/webhooks", nil, http.StatusOK), ask(http.MethodGet, "/openapi.json", nil, http.StatusOK))

	seen := strings.Join(answers, "\n")
	for what, mark := range map[string]string{"the full URL": "?token=CANARY-query", "a masked key": "X-Api-Key"} {
		if !strings.Contains(seen, mark) {
			t.Errorf("the owner's API does not show %s: the test looks at the wrong answers", what)
		}
	}
	check := func(where, text string, c canaries) {
		t.Helper()
		for _, what := range c.find([]byte(text)) {
			i := strings.Index(text, c[what])
			t.Errorf("%s holds the %s: ...%q...", where, what, text[max(0, i-200):min(len(text), i+100)])
		}
	}
	for _, a := range answers {
		check("an answer of the API", a, secrets)
	}
	outside := canaries{} // both
	maps.Copy(outside, secrets)
	maps.Copy(outside, private)
	for _, p := range s.Services() {
		for _, path := range []string{"/metrics", "/readyz", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2"} {
			_, text := s.raw(http.MethodGet, s.Ops(p)+path, "none", nil)
			check(p.Name+path, text, outside)
		}
	}
	for _, p := range append([]*testsystem.Process{}, s.Services()...) {
		s.stopCleanly(p)
		log := p.Log()
		if len(log) < 200 {
			t.Errorf("the log of %s is suspiciously short: %q", p.Name, log)
		}
		check("the log of "+p.Name, log, outside)
	}

	redis := s.redis.Client()
	dir, err := redis.ConfigGet(t.Context(), "dir").Result()
	if err != nil {
		t.Fatal(err)
	}
	s.redis.Kill()
	aof := readAll(t, dir["dir"])
	if !strings.Contains(aof, "gancho:") {
		t.Error("nothing of ours in Redis's files: the test looks in the wrong place")
	}
	check("Redis's append-only file", aof, outside)

	s.Broker.Term()
	store := readAll(t, filepath.Join(filepath.Dir(s.Broker.Args[2]), "jetstream"))
	for what, mark := range private {
		if what != "payload" && what != "query" {
			continue
		}
		if !strings.Contains(store, mark) {
			t.Errorf("the broker's files do not hold the %s: the test looks in the wrong place", what)
		}
	}
	check("the broker's store", store, secrets)
}

// readAll returns the bytes of every file in dir, as they stand on disk.
func readAll(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
