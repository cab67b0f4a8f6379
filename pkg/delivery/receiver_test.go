package delivery

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gancho/pkg/egress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bound is how far past its timeout an attempt may return on a loaded machine.
const bound = time.Second

// authority is a certificate authority of one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // PEM
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(tb.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return &authority{cert, key, file}
}

// leaf issues a certificate for 127.0.0.1 and hook.test; change may alter it.
func (ca *authority) leaf(tb testing.TB, change func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "hook.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"hook.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (ca *authority) server(tb testing.TB) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{ca.leaf(tb, nil)}}
}

// newSender returns a Sender for receivers on 127.0.0.1 that is closed with the test.
func newSender(tb testing.TB, ca *authority, timeout time.Duration) *Sender {
	tb.Helper()
	cfg := egress.Config{AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}}
	if ca != nil {
		cfg.CAFile = ca.file
	}
	return newSenderWith(tb, cfg, timeout)
}

func newSenderWith(tb testing.TB, cfg egress.Config, timeout time.Duration) *Sender {
	tb.Helper()
	policy, err := egress.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := New(Config{Timeout: timeout}, policy, "Gancho/test")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// event is a body of a notification.
const event = `{"event_name":"crm_deal_created","document":{"amount":9007199254740993},"transaction_uuid":"t-1"}`

func request(url string) Request {
	return Request{
		Method: "POST", URL: url, Body: []byte(event), EventName: "crm_deal_created",
		NotificationID: "5f3c8a52-6a0f-5d1c-9d3e-0a4c1f6b7e11", Attempt: 1,
		Secrets: [][]byte{bytes.Repeat([]byte{7}, 32)},
	}
}

// receiver is a real HTTP server on a free port.
func receiver(tb testing.TB, cfg *tls.Config, h http.HandlerFunc) string {
	tb.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = quiet
	if cfg == nil {
		srv.Start()
	} else {
		srv.EnableHTTP2 = len(cfg.NextProtos) > 0
		srv.TLS = cfg
		srv.StartTLS()
	}
	tb.Cleanup(srv.Close)
	return srv.URL
}

// raw is a receiver that speaks bytes.
type raw struct {
	url string
	ln  net.Listener
	wg  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	count int
}

// newRaw calls serve for each connection and closes it afterwards. With cfg it speaks TLS.
func newRaw(tb testing.TB, cfg *tls.Config, serve func(c net.Conn)) *raw {
	tb.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &raw{url: "http://" + ln.Addr().String(), ln: ln, conns: make(map[net.Conn]bool)}
	if cfg != nil {
		r.url = "https://" + ln.Addr().String()
	}
	r.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns[c] = true
			r.count++
			r.mu.Unlock()
			r.wg.Go(func() {
				defer func() {
					_ = c.Close()
					r.mu.Lock()
					delete(r.conns, c)
					r.mu.Unlock()
				}()
				if cfg == nil {
					serve(c)
					return
				}
				t := tls.Server(c, cfg)
				defer t.Close()
				if t.Handshake() == nil {
					serve(t)
				}
			})
		}
	})
	tb.Cleanup(func() {
		_ = ln.Close()
		r.mu.Lock()
		for c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *raw) accepted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// readRequest reads one request whole.
func readRequest(br *bufio.Reader) (*http.Request, []byte, error) {
	req, err := http.ReadRequest(br)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(req.Body)
	return req, body, err
}

// answering reads one request and writes reply, then closes.
func answering(reply string) func(net.Conn) {
	text := []byte(reply)
	return func(c net.Conn) {
		if _, _, err := readRequest(bufio.NewReader(c)); err == nil {
			_, _ = c.Write(text)
		}
	}
}

// reset makes the close of c an RST.
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	_ = c.(*net.TCPConn).SetLinger(0) //nolint:errcheck // every receiver listens on TCP
	_ = c.Close()
}

// verdict is an outcome in one word.
func verdict(o Outcome) string {
	switch {
	case o.Canceled:
		return "canceled"
	case o.Delivered:
		return "delivered"
	}
	return string(o.Reason)
}

func expect(tb testing.TB, o Outcome, want string) {
	tb.Helper()
	if got := verdict(o); got != want {
		tb.Errorf("verdict %s, want %s (status %d, detail %q)", got, want, o.Status, o.Detail)
	}
	if o.Delivered != (o.Detail == "" || strings.HasPrefix(o.Detail, "the answer's headers are malformed")) {
		tb.Errorf("detail %q for verdict %s", o.Detail, verdict(o))
	}
	if strings.ContainsAny(o.Detail, "\r\n\x00") {
		tb.Errorf("detail is not one line: %q", o.Detail)
	}
}

// rsaLeaf is a certificate with an RSA key.
func rsaLeaf(tb testing.TB, ca *authority) tls.Certificate {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
