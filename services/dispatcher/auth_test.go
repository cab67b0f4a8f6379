package dispatcher

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/tlstest"
	"gancho/pkg/webhook"
)

// TestAuth runs a dispatcher against a token server and a receiver that verifies client certificates: each webhook of
// the host proves who sends it in its own way, webhooks of an account share the tokens of one client, and nothing of
// the secrets is in the journal or the log.
func TestAuth(t *testing.T) {
	t.Parallel()
	now := time.Now()
	one, oneKey := tlstest.Client(t, "one", now.Add(-time.Hour), now.Add(90*day))
	two, twoKey := tlstest.Client(t, "two", now.Add(-time.Hour), now.Add(time.Minute))
	files := tlstest.New(t)
	var mu sync.Mutex
	got := map[string]int{} // path, name of the certificate, Authorization
	issued := 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if q.URL.Path == "/token" {
			id, secret, _ := q.BasicAuth()
			if secret != "client-s3cret" {
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprint(w, `{"error":"invalid_client"}`)
				return
			}
			issued++
			fmt.Fprintf(w, `{"access_token":"t0ken-%s-%d","expires_in":3600}`, id, issued)
			return
		}
		name := "-"
		if len(q.TLS.PeerCertificates) > 0 {
			name = q.TLS.PeerCertificates[0].Subject.CommonName
		}
		got[strings.Join([]string{q.URL.Path, name, q.Header.Get("Authorization")}, " ")]++
	}))
	srv.TLS = files.Server(t)
	srv.TLS.ClientAuth, srv.TLS.ClientCAs = tls.VerifyClientCertIfGiven, x509.NewCertPool()
	srv.TLS.ClientCAs.AppendCertsFromPEM([]byte(one + two))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)

	r := newRig(t, func(c *Config) { c.Egress.CAFile = files.CA })
	core, logs := observer.New(zap.DebugLevel)
	r.log = zap.New(core)
	client := func(account, path, secret string) *webhook.Webhook {
		return r.webhookOf(account, srv.URL+path, func(w *webhook.Webhook) {
			w.Auth = &webhook.Auth{Type: webhook.OAuth2, TokenURL: srv.URL + "/token", ClientID: account}
			w.SealAuth(r.keys, []byte(secret))
		})
	}
	mutual := func(path, certificate, key string) *webhook.Webhook {
		return r.webhook(srv.URL+path, func(w *webhook.Webhook) {
			w.Auth = &webhook.Auth{Type: webhook.MTLS, Certificate: certificate}
			w.SealAuth(r.keys, []byte(key))
		})
	}
	hooks := []*webhook.Webhook{
		client("acme", "/a", "client-s3cret"), client("acme", "/b", "client-s3cret"), client("umbrella", "/c", "client-s3cret"),
		mutual("/one", one, oneKey), mutual("/two", two, twoKey), r.webhook(srv.URL+"/plain", nil),
	}
	refused := client("acme", "/refused", "wrong-s3cret")
	r.start()
	for i, w := range hooks {
		for n := range 3 {
			r.stateOf(w.Account, r.notify(w, 10*i+n), notification.Delivered)
		}
	}
	failed := r.state(r.notify(refused, 99), notification.PermanentlyFailed)
	if a := failed.Attempt; failed.AttemptsDone != 6 || a.Reason != delivery.Status4xx || a.HTTPStatus != 0 || !strings.Contains(a.Detail, "it answered with status 401 (invalid_client)") {
		t.Errorf("refused by the token server: %d attempts, %+v", failed.AttemptsDone, a)
	}

	mu.Lock()
	for _, want := range []string{"/one one ", "/two two ", "/plain - "} {
		if got[want] != 3 {
			t.Errorf("%q: %d, want 3", want, got[want])
		}
	}
	tokens := map[string]string{}
	for line, n := range got {
		f := strings.Fields(line)
		if len(f) == 4 {
			tokens[f[0]] = f[3]
			if n != 3 || f[1] != "-" {
				t.Errorf("%q: %d, want 3 without a certificate", line, n)
			}
		}
	}
	if issued != 2 || tokens["/a"] != tokens["/b"] || tokens["/a"] == tokens["/c"] || len(got) != 6 {
		t.Errorf("%d tokens, want 2, one for each account: %v", issued, got)
	}
	mu.Unlock()

	r.until("the certificate that ends soon is counted", func() bool { return gauge(t, r.metrics, "gancho_client_certificates_ending") == 1 })
	lines := logs.FilterMessage("client certificate ends").All()
	if len(lines) != 1 || lines[0].ContextMap()["webhook_id"] != hooks[4].ID {
		t.Errorf("warned of %v", lines)
	}
	r.stop()
	text := fmt.Sprint(failed)
	for _, l := range logs.All() {
		text += fmt.Sprint(l.Message, l.ContextMap())
	}
	for _, secret := range []string{"s3cret", "t0ken", "PRIVATE KEY"} {
		if strings.Contains(text, secret) {
			t.Errorf("the log holds %s", secret)
		}
	}
}

// TestAuthRotation: a change of auth counts from the next attempt on, and a change of anything else keeps token and
// connections.
func TestAuthRotation(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	w := r.webhook("https://a.example.com/", func(w *webhook.Webhook) {
		w.Auth = &webhook.Auth{Type: webhook.OAuth2, TokenURL: "https://auth.example.com/", ClientID: "id"}
		w.SealAuth(r.keys, []byte("first"))
	})
	var c credentials
	first, err := c.of(w, r.keys)
	if err != nil || first.oauth2.ClientSecret != "first" {
		t.Fatal(first, err)
	}
	renamed := *w
	renamed.Name = "another"
	if again, err := c.of(&renamed, r.keys); err != nil || again.oauth2 != first.oauth2 {
		t.Errorf("after another name: %p, want %p, %v", again.oauth2, first.oauth2, err)
	}
	changed, auth := renamed, *w.Auth
	changed.Auth = &auth
	changed.SealAuth(r.keys, []byte("second"))
	if after, err := c.of(&changed, r.keys); err != nil || after.oauth2 == first.oauth2 || after.oauth2.ClientSecret != "second" {
		t.Errorf("after another secret: %+v, %v", after, err)
	}
	first = nil
	r.until("the first is let go", func() bool {
		runtime.GC()
		c.clients.mu.Lock()
		defer c.clients.mu.Unlock()
		return len(c.clients.of) == 1
	})
	c.forget(&changed)
	r.until("so is the second", func() bool {
		runtime.GC()
		c.clients.mu.Lock()
		defer c.clients.mu.Unlock()
		return len(c.clients.of) == 0
	})
	_ = first
}
