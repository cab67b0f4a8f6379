package delivery

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"gancho/pkg/egress"
)

// TestDetail: the cause of a failed handshake in words that its owner can act on.
func TestDetail(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	with := func(change func(*x509.Certificate)) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.leaf(t, change)}}
	}
	for name, tc := range map[string]struct {
		cfg    *tls.Config
		detail string
	}{
		"another name": {with(func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"a.test", "b.test"} }), "the certificate is for a.test, b.test, not for 127.0.0.1"},
		"no name":      {with(func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, nil }), "common name does not count"},
		"ended":        {with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "the certificate ended at 20"},
		"not yet valid": {with(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}), "not valid before 20"},
		"intermediate ended": {behindEnded(t, ca), `the certificate of the authority "CN=Intermediate 4" ended at 20`},
		"no intermediate":    {behindIntermediate(t, ca), "an intermediate certificate is missing"},
		"unknown authority":  {&tls.Config{Certificates: []tls.Certificate{newAuthority(t).leaf(t, nil)}}, "authority is not a trusted one"},
		"TLS 1.1":            {&tls.Config{Certificates: ca.server(t).Certificates, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "nothing newer than TLS 1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newSender(t, ca, 10*time.Second).Send(t.Context(), request(receiver(t, tc.cfg, func(http.ResponseWriter, *http.Request) {})))
			expect(t, o, "tls")
			if !strings.Contains(o.Detail, tc.detail) {
				t.Errorf("detail %q, want %q in it", o.Detail, tc.detail)
			}
		})
	}
}

// behindIntermediate is a receiver whose certificate comes from an intermediate authority that it does not send.
func behindIntermediate(t *testing.T, root *authority) *tls.Config {
	t.Helper()
	middle := newAuthority(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "Intermediate 3"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(strings.NewReader(strings.Repeat("x", 100)), template, root.cert, &middle.key.PublicKey, root.key)
	if err != nil {
		t.Fatal(err)
	}
	if middle.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{middle.leaf(t, nil)}}
}

// behindEnded is a receiver that sends an intermediate certificate which has ended.
func behindEnded(t *testing.T, root *authority) *tls.Config {
	t.Helper()
	middle := newAuthority(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4), Subject: pkix.Name{CommonName: "Intermediate 4"}, NotBefore: time.Now().Add(-2 * time.Hour),
		NotAfter: time.Now().Add(-time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, &middle.key.PublicKey, root.key)
	if err != nil {
		t.Fatal(err)
	}
	if middle.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	leaf := middle.leaf(t, nil)
	leaf.Certificate = append(leaf.Certificate, der)
	return &tls.Config{Certificates: []tls.Certificate{leaf}}
}

// TestUnknownHostName: a receiver says by an alert that it serves other names.
func TestUnknownHostName(t *testing.T) {
	t.Parallel()
	rec := newRaw(t, nil, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, "\x15\x03\x03\x00\x02\x02\x70")
	})
	o := newSender(t, nil, 10*time.Second).Send(t.Context(), request("https"+strings.TrimPrefix(rec.url, "http")))
	if expect(t, o, "tls"); !strings.Contains(o.Detail, "no certificate for this host name") {
		t.Errorf("detail %q", o.Detail)
	}
}

// TestMalformedCertificate: one that Go does not read, while other programs do.
func TestMalformedCertificate(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cfg := ca.server(t)
	der := cfg.Certificates[0].Certificate[0]
	der[bytes.Index(der, []byte{2, 1, 2, 2, 1, 2})+5] = 0xfe // the serial number, behind the version; it is read before the signature
	o := newSender(t, ca, 10*time.Second).Send(t.Context(), request(newRaw(t, cfg, func(net.Conn) {}).url))
	if expect(t, o, "tls"); !strings.Contains(o.Detail, "the certificate is malformed (x509: negative serial number)") {
		t.Errorf("detail %q", o.Detail)
	}
}

// TestLegacyTLS: a receiver with RSA key exchange only is named, counted, and sent to where the operator allows it.
func TestLegacyTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for allowed, want := range map[bool]string{false: "tls", true: "delivered"} {
		url := receiver(t, &tls.Config{
			Certificates: []tls.Certificate{rsaLeaf(t, ca)}, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256},
		}, func(http.ResponseWriter, *http.Request) {})
		s := newSenderWith(t, egress.Config{
			AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}, CAFile: ca.file, TLSLegacy: allowed,
		}, 10*time.Second)
		for range 2 {
			o := s.Send(t.Context(), request(url))
			expect(t, o, want)
			if !allowed && !strings.Contains(o.Detail, "EGRESS_TLS_LEGACY") {
				t.Errorf("detail %q", o.Detail)
			}
		}
		if n := s.LegacyHosts(); n != 1 {
			t.Errorf("%d hosts need it, want 1", n)
		}
	}
}

// TestHTTP1Required: the same attempt goes on over HTTP/1.1, and later ones begin with it.
func TestHTTP1Required(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for name, refuse := range map[string]func(f frames, id uint32){
		"stream reset": func(f frames, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeHTTP11Required) },
		"GOAWAY":       func(f frames, _ uint32) { _ = f.WriteGoAway(0, http2.ErrCodeHTTP11Required, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := ca.server(t)
			cfg.NextProtos = []string{"h2", "http/1.1"}
			var http2s, http1s int
			done := make(chan struct{}, 10)
			rec := newRaw(t, cfg, func(c net.Conn) {
				defer func() { done <- struct{}{} }()
				if c.(*tls.Conn).ConnectionState().NegotiatedProtocol != "h2" { //nolint:errcheck // it speaks TLS
					http1s++
					answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")(c)
					return
				}
				http2s++
				_, _ = io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
				f := frames{http2.NewFramer(c, c), c}
				_ = f.WriteSettings()
				if id := f.stream(); id != 0 {
					refuse(f, id)
				}
				f.drain()
			})
			s := newSender(t, ca, 10*time.Second)
			expect(t, s.Send(t.Context(), request(rec.url)), "delivered")
			expect(t, s.Send(t.Context(), request(rec.url)), "delivered")
			s.Close()
			for range rec.accepted() {
				<-done
			}
			if http2s != 1 || http1s != 2 {
				t.Errorf("%d connections of HTTP/2 and %d of HTTP/1.1, want 1 and 2", http2s, http1s)
			}
		})
	}
}

// TestReadableBody: a body is shown in UTF-8 where its encoding is named, and without its compression.
func TestReadableBody(t *testing.T) {
	t.Parallel()
	zip := func(text string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.WriteString(w, text)
		_ = w.Close()
		return b.String()
	}
	bare := func(text string) string {
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, flate.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, text)
		_ = w.Close()
		return b.String()
	}
	for name, tc := range map[string]struct{ kind, coding, body, want string }{
		"ISO-8859-1":             {"text/plain; charset=ISO-8859-1", "", "pre\xe7o inv\xe1lido", "preço inválido"},
		"windows-1252":           {`text/html; charset="windows-1252"`, "", "\x80 5", "€ 5"},
		"Shift_JIS":              {"text/plain; charset=shift_jis", "", "\x83e\x83X\x83g", "テスト"},
		"UTF-16":                 {"text/plain; charset=utf-16le", "", "o\x00k\x00", "ok"},
		"named in HTML":          {"text/html", "", `<meta charset="iso-8859-1">pre` + "\xe7o", `<meta charset="iso-8859-1">preço`},
		"named in XML":           {"text/xml", "", `<?xml version="1.0" encoding="ISO-8859-1"?>` + "\xe7", `<?xml version="1.0" encoding="ISO-8859-1"?>ç`},
		"not named":              {"text/plain", "", "pre\xe7o", "pre\xe7o"},
		"unknown name":           {"text/plain; charset=none", "", "pre\xe7o", "pre\xe7o"},
		"gzip":                   {"text/plain", "gzip", zip("compressed"), "compressed"},
		"gzip and ISO-8859-1":    {"text/plain; charset=latin1", "gzip", zip("pre\xe7o"), "preço"},
		"says gzip, and is not":  {"text/plain", "gzip", "plain", "plain"},
		"gzip, cut in the trail": {"text/plain", "gzip", zip("compressed")[:25], "compressed"},
		"raw deflate":            {"text/plain", "deflate", bare("comprimido: preço"), "comprimido: preço"},
		"raw deflate of the key": {"text/plain", "deflate", bare("key-of-the-owner \xe7"), "*** \xe7"},
		"says deflate":           {"text/plain", "deflate", `{"ok":true}`, `{"ok":true}`},
		"single quotes":          {"text/html; charset='iso-8859-1'", "", "pre\xe7o", "preço"},
		"malformed parameters":   {"text/html; charset=iso-8859-1; x", "", "pre\xe7o", "preço"},
		"spaces in parameters":   {"text/html; Charset = latin1", "", "pre\xe7o", "preço"},
		"UTF-16 in quotes":       {`text/plain; charset="UTF-16LE"`, "", "o\x00k\x00", "ok"},
		"no charset of ours":     {"text/plain; x-charset=utf-16le", "", "o\x00k\x00", "o\x00k\x00"},
		"repeats the key":        {"text/plain", "gzip", zip("key-of-the-owner"), "***"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := request(receiver(t, nil, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", tc.kind)
				if tc.coding != "" {
					w.Header().Set("Content-Encoding", tc.coding)
				}
				_, _ = io.WriteString(w, tc.body)
			}))
			r.AuthHeader, r.AuthKey = "X-Key", "key-of-the-owner"
			if o := newSender(t, nil, 10*time.Second).Send(t.Context(), r); string(o.ResponseBody) != tc.want {
				t.Errorf("shown as %q, want %q", o.ResponseBody, tc.want)
			}
		})
	}
}

// TestAddressChanges: a name's new address is used when its connections are old, under steady traffic too.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	h2 := ca.server(t)
	h2.NextProtos = []string{"h2"}
	for name, cfg := range map[string]*tls.Config{"HTTP/1.1": ca.server(t), "HTTP/2": h2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSender(t, ca, 10*time.Second)
			url := receiver(t, cfg, func(http.ResponseWriter, *http.Request) {})
			expect(t, s.Send(t.Context(), request(url)), "delivered")
			if most := connAge*6/5 + replaceTime; most > 2*time.Minute {
				t.Errorf("a connection takes requests for up to %v", most)
			}
			s.pool.mu.Lock()
			for _, kept := range []map[origin][]*conn{s.pool.idle, s.pool.shared} {
				for _, list := range kept {
					for _, c := range list {
						c.retire = time.Now().Add(-time.Second)
					}
				}
			}
			s.pool.mu.Unlock()
			o := s.Send(t.Context(), request(url))
			expect(t, o, "delivered")
			if o.Phases.Connect == 0 {
				t.Error("the old connection was used")
			}
		})
	}
}

// TestTablesAreBounded: however many hosts there are.
func TestTablesAreBounded(t *testing.T) {
	t.Parallel()
	var h habits
	var p pool
	for i := range 3 * maxHabits {
		host := big.NewInt(int64(i)).String()
		h.learn(host, func(k *habit) { k.http1 = true })
		ours, theirs := net.Pipe()
		_ = theirs.Close()
		c := newConn(ours, origin{host: host})
		c.retire, c.expires = time.Now().Add(time.Hour), time.Now().Add(time.Hour)
		p.put(c)
	}
	if len(h.of) > maxHabits || p.count > maxIdle {
		t.Errorf("%d habits, %d connections", len(h.of), p.count)
	}
	p.close()
}
