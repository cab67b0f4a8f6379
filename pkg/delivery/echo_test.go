package delivery

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestEchoForms: an auth key that a receiver repeats is hidden in every form in which texts usually carry one.
func TestEchoForms(t *testing.T) {
	t.Parallel()
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:CANARY p&ss\"word"))
	for name, tc := range map[string]struct{ key, secret string }{
		"plain":            {"CANARY-plain", "CANARY-plain"},
		"a scheme":         {"Bearer CANARY/token+x==", "CANARY/token+x=="},
		"quotes and space": {`CANARY "a" <b> & c\d`, `CANARY "a" <b> & c\d`},
		"letters":          {"CANARY-é-\x80", "CANARY-é-\x80"},
		"Basic":            {basic, `CANARY p&ss"word`},
		"Basic, both":      {basic, `user:CANARY p&ss"word`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asJSON, err := json.Marshal(map[string]string{"X-Key": tc.key, "of": tc.secret})
			if err != nil {
				t.Fatal(err)
			}
			forms := []string{
				tc.key, tc.secret, string(asJSON), fmt.Sprintf("%q", tc.secret), url.QueryEscape(tc.secret), url.PathEscape(tc.secret),
				"/x?key=" + url.QueryEscape(tc.key), base64.StdEncoding.EncodeToString([]byte(tc.key)), base64.StdEncoding.EncodeToString([]byte(tc.secret)),
			}
			secrets := echoes(tc.key)
			for _, form := range forms {
				got := secrets.hide("before " + form + " after")
				if strings.Contains(got, "CANARY") || strings.Contains(got, base64.StdEncoding.EncodeToString([]byte(tc.secret))) {
					t.Errorf("%q became %q", form, got)
				}
				if !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") {
					t.Errorf("more than the key is hidden: %q", got)
				}
				if body, _ := newSender(t, nil, maxTimeout).read(strings.NewReader(strings.Repeat("x", keptBodyBytes-3)+form), nil, secrets); strings.Contains(string(body), "CAN") {
					t.Errorf("cut in the middle, %q is told", body[keptBodyBytes-8:])
				}
			}
		})
	}
	if got := echoes("short"); len(got) != 0 {
		t.Errorf("a short key would blank out text: %q", got)
	}
}

// TestAnswersCredentials: what a receiver hands out to its visitors is not kept, over either protocol.
func TestAnswersCredentials(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	secure := ca.server(t)
	secure.NextProtos = []string{"h2"}
	secret := []string{
		"Set-Cookie", "Set-Cookie2", "Cookie", "Authorization", "Proxy-Authorization", "Authentication-Info", "X-Auth-Token", "X-Csrf-Token",
		"X-Amz-Security-Token", "X-Api-Key", "Apikey", "X-Session-Id", "Client-Secret",
	}
	open := []string{"Www-Authenticate", "Location", "Retry-After", "Server", "X-Request-Id", "Etag"}
	answer := func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range append(secret, open...) {
			w.Header()[name] = []string{"CANARY", "CANARY"}
		}
		w.WriteHeader(401)
	}
	s := newSender(t, ca, 10*time.Second)
	for proto, url := range map[string]string{"HTTP/1.1": receiver(t, nil, answer), "HTTP/2": receiver(t, secure, answer)} {
		o := s.Send(t.Context(), request(url))
		expect(t, o, "status_4xx")
		for _, name := range secret {
			if got := o.ResponseHeaders[name]; len(got) != 2 || got[0] != mask || got[1] != mask {
				t.Errorf("%s: %s: %q", proto, name, got)
			}
		}
		for _, name := range open {
			if got := o.ResponseHeaders[name]; len(got) != 2 || got[0] != "CANARY" {
				t.Errorf("%s: %s: %q is hidden", proto, name, got)
			}
		}
	}
}
