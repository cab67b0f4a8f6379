package delivery

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"gancho/pkg/dnstest"
	"gancho/pkg/egress"
)

// nameServer answers every query for hook.test with 127.0.0.1, not at all for silent.test, and says that
// other names do not exist.
func nameServer(tb testing.TB) string {
	tb.Helper()
	return dnstest.Start(tb, func(q dnsmessage.Question, m *dnsmessage.Message) bool {
		switch q.Name.String() {
		case "hook.test.":
			if q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{dnstest.Address(q, [4]byte{127, 0, 0, 1})}
			}
		case "silent.test.":
			return false
		default:
			m.RCode = dnsmessage.RCodeNameError
		}
		return true
	})
}

func TestNames(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cfg := egress.Config{
		AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"},
		CAFile: ca.file, DNSServer: nameServer(t),
	}
	h2 := ca.server(t)
	h2.NextProtos = []string{"h2"}
	var names atomic.Value
	url := receiver(t, h2, func(_ http.ResponseWriter, r *http.Request) { names.Store(r.Host + " " + r.TLS.ServerName) })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(url, "https://"))

	s := newSenderWith(t, cfg, 10*time.Second)
	o := s.Send(t.Context(), request("https://hook.test:"+port+"/x"))
	expect(t, o, "delivered")
	if o.Phases.DNS <= 0 || o.Phases.DNS+o.Phases.Connect+o.Phases.TLS+o.Phases.FirstByte > o.Duration {
		t.Errorf("phases %+v of %v", o.Phases, o.Duration)
	}
	if got, want := names.Load(), "hook.test:"+port+" hook.test"; got != want {
		t.Errorf("Host and server name %q, want %q", got, want)
	}
	o = s.Send(t.Context(), request("https://unknown.test/CANARY"))
	expect(t, o, "dns")
	if !strings.Contains(o.Detail, "unknown.test") || strings.Contains(o.Detail, "CANARY") {
		t.Errorf("detail %q", o.Detail)
	}
	slow := newSenderWith(t, cfg, 300*time.Millisecond)
	o = slow.Send(t.Context(), request("https://silent.test/"))
	expect(t, o, "timeout")
	if !strings.Contains(o.Detail, "the name look-up") {
		t.Errorf("detail %q", o.Detail)
	}
}

func TestBlocked(t *testing.T) {
	t.Parallel()
	rec := newRaw(t, nil, func(net.Conn) {})
	port := rec.url[strings.LastIndexByte(rec.url, ':'):]
	dns := nameServer(t)
	for _, tc := range []struct {
		name, url string
		cfg       egress.Config
	}{
		{"loopback", rec.url, egress.Config{AllowHTTPURLs: true, AllowPorts: []string{"*"}}},
		{"name of loopback", "http://hook.test" + port, egress.Config{AllowHTTPURLs: true, AllowPorts: []string{"*"}, DNSServer: dns}},
		{"port", rec.url, egress.Config{AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}}},
		{"http switched off", rec.url, egress.Config{AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}}},
		{"mapped", "http://[::ffff:127.0.0.1]" + port, egress.Config{AllowHTTPURLs: true, AllowPorts: []string{"*"}}},
		{"metadata", "http://169.254.169.254/", egress.Config{AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := newSenderWith(t, tc.cfg, 10*time.Second).Send(t.Context(), request(tc.url))
			expect(t, o, "blocked_address")
		})
	}
	if n := rec.accepted(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

// proxy is a forward proxy that counts.
type proxy struct {
	*raw
	connects, plain atomic.Int32
	auth            atomic.Value
}

func newProxy(tb testing.TB, cfg *tls.Config, status string) *proxy {
	p := new(proxy)
	p.raw = newRaw(tb, cfg, func(c net.Conn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		p.auth.Store(req.Header.Get("Proxy-Authorization"))
		if req.Method != http.MethodConnect {
			p.plain.Add(1)
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return
		}
		p.connects.Add(1)
		_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\n\r\n")
		if !strings.HasPrefix(status, "200") {
			return
		}
		to, err := net.Dial("tcp4", req.Host)
		if err != nil {
			return
		}
		defer to.Close()
		back := make(chan struct{})
		go func() {
			defer close(back)
			_, _ = io.Copy(c, to)
			_ = c.Close()
		}()
		_, _ = io.Copy(to, br)
		_ = to.Close()
		<-back
	})
	return p
}

func TestProxy(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	h2 := ca.server(t)
	h2.NextProtos = []string{"h2"}
	url := receiver(t, h2, func(http.ResponseWriter, *http.Request) {})
	port := url[strings.LastIndexByte(url, ':')+1:]
	with := func(p *proxy) egress.Config {
		return egress.Config{
			AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{port, "80"}, CAFile: ca.file,
			ProxyURL: strings.Replace(p.url, "://", "://user:CANARY@", 1),
		}
	}
	for name, cfg := range map[string]*tls.Config{"plain proxy": nil, "TLS proxy": ca.server(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, cfg, "200 OK")
			s := newSenderWith(t, with(p), 10*time.Second)
			expect(t, s.Send(t.Context(), request(url)), "delivered")
			expect(t, s.Send(t.Context(), request("http://hook.test/")), "delivered")
			if c, n := p.connects.Load(), p.plain.Load(); c != 1 || n != 1 || p.auth.Load() == "" {
				t.Errorf("the proxy saw %d CONNECT and %d plain requests, authorization %q", c, n, p.auth.Load())
			}
			// Judged here, as the dialer sees the proxy only.
			expect(t, s.Send(t.Context(), request("https://10.0.0.1:"+port+"/")), "blocked_address")
			expect(t, s.Send(t.Context(), request("https://hook.test:22/")), "blocked_address")
		})
	}
	t.Run("refuses", func(t *testing.T) {
		t.Parallel()
		o := newSenderWith(t, with(newProxy(t, nil, "403 not this one")), 10*time.Second).Send(t.Context(), request(url))
		expect(t, o, "connect")
		if strings.Contains(o.Detail, "CANARY") {
			t.Errorf("detail holds the proxy's password: %q", o.Detail)
		}
	})
	t.Run("the proxy's address is judged", func(t *testing.T) {
		t.Parallel()
		p := newProxy(t, nil, "200 OK")
		cfg := with(p)
		cfg.AllowCIDRs = nil
		expect(t, newSenderWith(t, cfg, 10*time.Second).Send(t.Context(), request("https://hook.test:"+port+"/")), "blocked_address")
		if n := p.accepted(); n != 0 {
			t.Errorf("%d connections to the proxy", n)
		}
	})
	t.Run("certificate of the receiver", func(t *testing.T) {
		t.Parallel()
		cfg := with(newProxy(t, nil, "200 OK"))
		cfg.CAFile = ""
		expect(t, newSenderWith(t, cfg, 10*time.Second).Send(t.Context(), request(url)), "tls")
	})
}

// TestProxyFromEnvironment: HTTP_PROXY and its kin do not apply.
func TestProxyFromEnvironment(t *testing.T) {
	p := newProxy(t, nil, "200 OK")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, p.url)
	}
	s := newSenderWith(t, egress.Config{AllowHTTPURLs: true, DNSServer: nameServer(t)}, 10*time.Second)
	expect(t, s.Send(t.Context(), request("http://hook.test/")), "blocked_address")
	if n := p.accepted(); n != 0 {
		t.Errorf("%d connections to the proxy of the environment", n)
	}
}
