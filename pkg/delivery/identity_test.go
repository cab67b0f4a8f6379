package delivery

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// identity returns a client's, with a certificate of ca.
func (ca *authority) identity(tb testing.TB, name string, change func(*x509.Certificate)) *Identity {
	tb.Helper()
	pair := ca.leaf(tb, func(c *x509.Certificate) {
		c.Subject.CommonName, c.ExtKeyUsage = name, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if change != nil {
			change(c)
		}
	})
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		tb.Fatal(err)
	}
	id, err := NewIdentity(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// mutual is the server's side of a receiver that verifies client certificates of ca.
func (ca *authority) mutual(tb testing.TB, version uint16, protocol string, auth tls.ClientAuthType) *tls.Config {
	cfg := ca.server(tb)
	cfg.ClientCAs = x509.NewCertPool()
	cfg.ClientCAs.AddCert(ca.cert)
	cfg.ClientAuth, cfg.MaxVersion = auth, version
	if protocol == "h2" {
		cfg.NextProtos = []string{"h2"}
	}
	return cfg
}

// versions are the handshakes and protocols that receivers speak.
func versions(t *testing.T, run func(t *testing.T, version uint16, protocol string)) {
	for _, v := range []struct {
		version  uint16
		protocol string
	}{{tls.VersionTLS12, "http/1.1"}, {tls.VersionTLS13, "http/1.1"}, {tls.VersionTLS12, "h2"}, {tls.VersionTLS13, "h2"}} {
		t.Run(fmt.Sprint(tls.VersionName(v.version), " ", v.protocol), func(t *testing.T) {
			t.Parallel()
			run(t, v.version, v.protocol)
		})
	}
}

// TestIdentitiesAreApart: requests to one host never use the connection or the resumed session of another client
// certificate, or of none.
func TestIdentitiesAreApart(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version uint16, protocol string) {
		ca := newAuthority(t)
		var mu sync.Mutex
		conns := map[string]map[string]bool{} // name of the certificate -> remote addresses
		url := receiver(t, ca.mutual(t, version, protocol, tls.VerifyClientCertIfGiven), func(w http.ResponseWriter, r *http.Request) {
			name := "none"
			if len(r.TLS.PeerCertificates) > 0 {
				name = r.TLS.PeerCertificates[0].Subject.CommonName
			}
			mu.Lock()
			defer mu.Unlock()
			if conns[name] == nil {
				conns[name] = map[string]bool{}
			}
			conns[name][r.RemoteAddr] = true
			_, _ = io.WriteString(w, name)
		})
		s := newSender(t, ca, 5*time.Second)
		identities := map[string]*Identity{"none": nil, "a": ca.identity(t, "a", nil), "b": ca.identity(t, "b", nil)}
		for round := range 3 {
			for _, name := range []string{"a", "none", "b", "a", "none"} {
				r := request(url)
				r.Identity = identities[name]
				if o := s.Send(t.Context(), r); !o.Delivered || string(o.ResponseBody) != name {
					t.Errorf("round %d: %s was taken for %q (%s)", round, name, o.ResponseBody, o.Detail)
				}
			}
			if round == 1 { // connections again, on resumed sessions
				s.pool.close()
				s.pool = pool{}
			}
		}
		for name, addrs := range conns {
			if len(addrs) != 2 {
				t.Errorf("%s used %d connections, want 1, and 1 after they were closed", name, len(addrs))
			}
		}
	})
}

// TestRefusedIdentity: a receiver that refuses the client certificate says why.
func TestRefusedIdentity(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version uint16, protocol string) {
		ca, other := newAuthority(t), newAuthority(t)
		url := receiver(t, ca.mutual(t, version, protocol, tls.RequireAndVerifyClientCert), func(http.ResponseWriter, *http.Request) {})
		s := newSender(t, ca, 5*time.Second)
		for _, tc := range []struct {
			name, detail string
			identity     *Identity
		}{
			{"good", "", ca.identity(t, "good", nil)},
			{"another authority", "refused the client certificate (alert unknown certificate authority)", other.identity(t, "other", nil)},
			{"ended", ", which ended at ", ca.identity(t, "ended", func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
			})},
			{"for servers", "refused the client certificate (alert bad certificate)", ca.identity(t, "server", func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			})},
			{"none", "the receiver wants a client certificate", nil},
		} {
			r := request(url)
			r.Identity = tc.identity
			for range 3 {
				o := s.Send(t.Context(), r)
				if tc.detail == "" {
					if !o.Delivered {
						t.Errorf("%s: %q %q", tc.name, o.Reason, o.Detail)
					}
					continue
				}
				if version == tls.VersionTLS13 && o.Reason == Connect &&
					(strings.Contains(o.Detail, "client certificate") || strings.Contains(o.Detail, "closed the new connection")) {
					continue // the connection ended before the alert was read
				}
				if o.Reason != TLS || !strings.HasPrefix(o.Detail, "TLS handshake: ") || !strings.Contains(o.Detail, tc.detail) {
					t.Errorf("%s: got %q %q, want %q", tc.name, o.Reason, o.Detail, tc.detail)
				}
			}
		}
	})
}

func TestNewIdentity(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "canary", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n"} {
		if _, err := NewIdentity([]byte(text), []byte(text)); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", text, err)
		}
	}
	ca := newAuthority(t)
	until := time.Now().Add(10 * 24 * time.Hour).Truncate(time.Second)
	id := ca.identity(t, "a", func(c *x509.Certificate) { c.NotAfter = until })
	if got := id.Certificate(); !got.Until.Equal(until) || !got.New {
		t.Errorf("got %+v, want the end %v", got, until)
	}
}
