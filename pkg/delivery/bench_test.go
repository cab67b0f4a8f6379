package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// benchReceivers are the three kinds of receivers worth measuring.
func benchReceivers(b *testing.B, ca *authority) map[string]string {
	h := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"ok":true}`)
	}
	h2 := ca.server(b)
	h2.NextProtos = []string{"h2"}
	return map[string]string{
		"http":   receiver(b, nil, h),
		"https1": receiver(b, ca.server(b), h),
		"https2": receiver(b, h2, h),
	}
}

// BenchmarkSend is one attempt on a kept connection, client and receiver in one process. Compare it with
// BenchmarkBareClient, the least that net/http can do for the same request.
func BenchmarkSend(b *testing.B) {
	ca := newAuthority(b)
	for name, url := range benchReceivers(b, ca) {
		b.Run(name, func(b *testing.B) {
			s := newSender(b, ca, 5*time.Second)
			r := request(url + "/hooks")
			r.AuthHeader, r.AuthKey = "X-Api-Key", "a-key-of-an-owner"
			r.Body = []byte(strings.Repeat(" ", 1024))
			b.ReportAllocs()
			for b.Loop() {
				if o := s.Send(context.Background(), r); !o.Delivered {
					b.Fatal(o.Detail)
				}
			}
		})
	}
}

func BenchmarkBareClient(b *testing.B) {
	ca := newAuthority(b)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for name, url := range benchReceivers(b, ca) {
		b.Run(name, func(b *testing.B) {
			t := &http.Transport{ForceAttemptHTTP2: true, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
			defer t.CloseIdleConnections()
			c := &http.Client{Transport: t}
			body := strings.Repeat(" ", 1024)
			b.ReportAllocs()
			for b.Loop() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/hooks", strings.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				for _, name := range []string{"Content-Type", "User-Agent", "Gancho-Event", "Gancho-Attempt", "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature", "X-Api-Key"} {
					req.Header[name] = []string{"a value of some length"}
				}
				resp, err := c.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				cancel()
			}
		})
	}
}

// BenchmarkBuild is what an attempt costs before the network: headers and signature.
func BenchmarkBuild(b *testing.B) {
	s := newSender(b, nil, 5*time.Second)
	r := request("https://hook.test/hooks")
	r.AuthHeader, r.AuthKey = "X-Api-Key", "a-key-of-an-owner"
	r.Body = []byte(strings.Repeat(" ", 1024))
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		m, err := s.compose(&r, now)
		if err != nil {
			b.Fatal(err)
		}
		_ = m.shown()
	}
}
