package delivery

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// attempt is the context of one request. net/http dials in goroutines of its own that may outlive the
// request and drop its deadline, so what they need and measure travels here. The fields before the blank
// line are set before the request starts and then only read; those after it belong to dialling goroutines
// and Send at once.
type attempt struct {
	context.Context
	deadline time.Time
	host     string // of the URL, with its port if it has one

	step              atomic.Int32
	dns, connect, tls atomic.Int64 // nanoseconds
}

type attemptKey struct{}

// Value finds the attempt itself below the contexts that net/http derives from it.
func (a *attempt) Value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// Deadline is the attempt's; the context itself ends by a timer of Send.
func (a *attempt) Deadline() (time.Time, bool) { return a.deadline, true }

// The steps of making a connection.
const (
	stepNone int32 = iota // none is being made
	stepDNS
	stepConnect
	stepTLS
	stepReady
)

func (a *attempt) stage() string {
	switch a.step.Load() {
	case stepDNS:
		return "the name look-up"
	case stepConnect:
		return "connecting"
	case stepTLS:
		return "the TLS handshake"
	}
	return "the answer"
}

// dial connects to addr for plain HTTP, for a proxy, and below TLS.
func (s *Sender) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	a := ctx.Value(attemptKey{}).(*attempt) // every request carries one
	ctx, cancel := context.WithDeadline(ctx, a.deadline)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()

	start := time.Now()
	a.step.Store(stepConnect)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { a.step.Store(stepDNS) },
		DNSDone: func(httptrace.DNSDoneInfo) {
			a.dns.Store(int64(time.Since(start)))
			a.step.Store(stepConnect)
		},
	})
	conn, err := s.policy.DialContext(ctx, network, addr)
	a.connect.Store(int64(time.Since(start)) - a.dns.Load())
	if err != nil {
		return nil, &dialError{Connect, err}
	}
	a.step.Store(stepReady)
	return conn, nil
}

// dialTLS connects to addr and verifies its certificate.
func (s *Sender) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &dialError{Connect, err}
	}
	raw, err := s.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	a := ctx.Value(attemptKey{}).(*attempt)
	ctx, cancel := context.WithDeadline(ctx, a.deadline)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()

	cfg := s.tls.Clone()
	cfg.ServerName = host
	if s.policy.Proxy != nil {
		cfg.NextProtos = []string{"http/1.1"} // this connection is to the proxy
	}
	start := time.Now()
	a.step.Store(stepTLS)
	conn := tls.Client(raw, cfg)
	err = conn.HandshakeContext(ctx)
	a.tls.Store(int64(time.Since(start)))
	if err != nil {
		_ = raw.Close()
		return nil, &dialError{TLS, err}
	}
	a.step.Store(stepReady)
	if s.policy.Proxy == nil {
		if conn.ConnectionState().NegotiatedProtocol == "h2" {
			s.http1.Delete(a.host)
		} else {
			s.http1.Store(a.host, struct{}{})
		}
	}
	return conn, nil
}
