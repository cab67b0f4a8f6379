package delivery

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"gancho/pkg/egress"
)

// TestCertificate sends twice to each receiver: over a new connection and, where it answered, over the kept one.
func TestCertificate(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	until := time.Now().Add(30 * time.Minute).Truncate(time.Second).UTC()
	from := until.Add(-time.Hour)
	valid := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, until }
	past := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from.Add(-time.Hour), until.Add(-time.Hour) }
	with := func(cert tls.Certificate, protocols ...string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols}
	}
	ended := Certificate{from.Add(-time.Hour), until.Add(-time.Hour), true}
	for name, tc := range map[string]struct {
		cfg           *tls.Config
		verdict       string
		first, second Certificate
	}{
		"HTTP/1.1":          {with(ca.leaf(t, valid)), "delivered", Certificate{from, until, true}, Certificate{from, until, false}},
		"HTTP/2":            {with(ca.leaf(t, valid), "h2"), "delivered", Certificate{from, until, true}, Certificate{from, until, false}},
		"ended":             {with(ca.leaf(t, past)), "tls", ended, ended},
		"unknown authority": {cfg: with(other.leaf(t, valid)), verdict: "tls"},
		"plain HTTP":        {verdict: "delivered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSender(t, ca, 10*time.Second)
			r := request(receiver(t, tc.cfg, func(http.ResponseWriter, *http.Request) {}))
			for i, want := range []Certificate{tc.first, tc.second} {
				o := s.Send(t.Context(), r)
				expect(t, o, tc.verdict)
				if o.Certificate != want {
					t.Errorf("attempt %d: got %+v, want %+v", i+1, o.Certificate, want)
				}
			}
		})
	}
}

// TestRenewedCertificate renews a receiver's certificate between two handshakes that may be one session.
func TestRenewedCertificate(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	now := time.Now().Truncate(time.Second).UTC()
	renewed := Certificate{now.Add(-time.Minute), now.Add(time.Hour), true}
	leaf := func(c Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.leaf(t, func(x *x509.Certificate) { x.NotBefore, x.NotAfter = c.From, c.Until })}}
	}
	for name, old := range map[string]Certificate{
		"resumed":                     {now.Add(-time.Hour), now.Add(time.Hour), true},
		"not resumed as it ends soon": {now.Add(-time.Hour), now.Add(time.Minute), true},
	} {
		for version, most := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
			t.Run(name+", "+version, func(t *testing.T) {
				t.Parallel()
				var shown atomic.Pointer[tls.Config]
				shown.Store(leaf(old))
				rc := newRaw(t, &tls.Config{MaxVersion: most, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
					cfg := shown.Load().Clone()
					cfg.MaxVersion = most
					return cfg, nil
				}}, answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
				s := newSender(t, ca, 10*time.Second)
				if got := s.Send(t.Context(), request(rc.url)).Certificate; got != old {
					t.Errorf("at first: got %+v, want %+v", got, old)
				}
				shown.Store(leaf(renewed))
				want := renewed
				if !old.EndsSoon(now) {
					want = Certificate{From: old.From, Until: old.Until}
				}
				if got := s.Send(t.Context(), request(rc.url)).Certificate; got != want {
					t.Errorf("after the renewal: got %+v, want %+v", got, want)
				}
			})
		}
	}
}

// TestEndedCertificateBehindProxy: a proxy's own certificate is not the receiver's.
func TestEndedCertificateBehindProxy(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	past := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	ended := &tls.Config{Certificates: []tls.Certificate{ca.leaf(t, past)}}
	for name, tc := range map[string]struct {
		proxy, receiver *tls.Config
		reported        bool
	}{
		"the receiver's": {nil, ended, true},
		"the proxy's":    {ended, ca.server(t), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSenderWith(t, egress.Config{
				AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}, CAFile: ca.file,
				ProxyURL: newProxy(t, tc.proxy, "200 OK").url,
			}, 10*time.Second)
			o := s.Send(t.Context(), request(receiver(t, tc.receiver, func(http.ResponseWriter, *http.Request) {})))
			expect(t, o, "tls")
			if reported := !o.Certificate.Until.IsZero(); reported != tc.reported {
				t.Errorf("got %+v", o.Certificate)
			}
		})
	}
}

func TestEndsSoon(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	now := time.Now()
	for name, tc := range map[string]struct {
		validFor, left time.Duration
		want           bool
	}{
		"before the last 14 days":         {90 * day, 14*day + 1, false},
		"in the last 14 days":             {90 * day, 14 * day, true},
		"ended":                           {90 * day, -day, true},
		"of 6 days, before the last 2":    {6 * day, 2*day + 1, false},
		"of 6 days, in the last 2":        {6 * day, 2 * day, true},
		"of 6 days, at its usual renewal": {6 * day, 3 * day, false},
	} {
		until := now.Add(tc.left)
		if got := (Certificate{From: until.Add(-tc.validFor), Until: until}).EndsSoon(now); got != tc.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
	if (Certificate{}).EndsSoon(now) {
		t.Error("no certificate: got true")
	}
}
