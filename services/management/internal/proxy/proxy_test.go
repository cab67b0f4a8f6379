package proxy

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, bad := range map[string]string{
		"":                                  "",
		"10.0.0.7, 10.1.0.0/16,2001:db8::1": "",
		"proxy":                             `"proxy" is neither`,
		"10.0.0.0/33":                       "neither an address nor a CIDR",
		"0.0.0.0/0":                         "trusts every address",
		"::/0":                              "trusts every address",
	} {
		_, err := Parse(strings.Split(text, ","))
		if (err == nil) != (bad == "") || err != nil && !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v, want %q", text, err, bad)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	trusted, err := Parse([]string{"10.0.0.0/8", "2001:db8::/32"})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		peer   string
		header http.Header
		tls    bool
		remote string
		base   string
	}{
		"no proxy":             {"203.0.113.9:1234", nil, false, "203.0.113.9:1234", "http://api.test"},
		"TLS":                  {"203.0.113.9:1234", nil, true, "203.0.113.9:1234", "https://api.test"},
		"a stranger's headers": {"203.0.113.9:1", http.Header{"X-Forwarded-For": {"1.2.3.4"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"evil"}}, false, "203.0.113.9:1", "http://api.test"},
		"one proxy":            {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"203.0.113.9"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"hooks.example.com"}}, false, "203.0.113.9:0", "https://hooks.example.com"},
		"the client's own":     {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"1.1.1.1, 203.0.113.9"}}, false, "203.0.113.9:0", "http://api.test"},
		"two proxies":          {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"1.1.1.1, 203.0.113.9, 10.9.9.9"}}, false, "203.0.113.9:0", "http://api.test"},
		"two lines":            {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"203.0.113.9", "10.9.9.9"}}, false, "203.0.113.9:0", "http://api.test"},
		"proxies only":         {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"10.7.7.7"}}, false, "10.7.7.7:0", "http://api.test"},
		"with a port":          {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"203.0.113.9:8080"}}, false, "203.0.113.9:0", "http://api.test"},
		"IPv6":                 {"[2001:db8::5]:5", http.Header{"X-Forwarded-For": {"[2a00::1]:99"}}, false, "[2a00::1]:0", "http://api.test"},
		"a mapped peer":        {"[::ffff:10.1.2.3]:5", http.Header{"X-Forwarded-For": {"203.0.113.9"}}, false, "203.0.113.9:0", "http://api.test"},
		"no address":           {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"203.0.113.9, unknown"}}, false, "10.1.2.3:5", "http://api.test"},
		"no address further":   {"10.1.2.3:5", http.Header{"X-Forwarded-For": {"unknown, 10.4.4.4"}}, false, "10.4.4.4:0", "http://api.test"},
		"nothing forwarded":    {"10.1.2.3:5", nil, false, "10.1.2.3:5", "http://api.test"},
		"a bad host":           {"10.1.2.3:5", http.Header{"X-Forwarded-Host": {"a/b?c"}, "X-Forwarded-Proto": {"gopher"}}, false, "10.1.2.3:5", "http://api.test"},
		"the nearest's word":   {"10.1.2.3:5", http.Header{"X-Forwarded-Host": {"evil.test, hooks.example.com:8443"}, "X-Forwarded-Proto": {"http, https"}}, false, "10.1.2.3:5", "https://hooks.example.com:8443"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodGet, "/crm/v2/webhooks", nil)
			r.RemoteAddr, r.Header, r.Host = tc.peer, tc.header, "api.test"
			if tc.tls {
				r.TLS = new(tls.ConnectionState)
			}
			trusted.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.RemoteAddr != tc.remote || baseURL(r) != tc.base {
					t.Errorf("client %s at %s, want %s at %s", r.RemoteAddr, baseURL(r), tc.remote, tc.base)
				}
			})).ServeHTTP(httptest.NewRecorder(), r)
		})
	}
}
