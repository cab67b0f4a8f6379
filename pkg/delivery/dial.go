package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// attempt is the context of one request. net/http dials in goroutines of its own that may outlive the
// request and drop its deadline, so what they need and measure travels here. deadline and host are set
// before the request starts and then only read; got and fresh belong to the goroutine of Send; the rest
// belongs to dialling goroutines and Send at once.
type attempt struct {
	context.Context
	deadline time.Time
	host     string // of the URL, with its port if it has one

	got   time.Time // when the request had its (last) connection; zero before
	fresh bool      // it is the first on that connection

	step              atomic.Int32
	dns, connect, tls atomic.Int64 // nanoseconds
}

// gotConn is called by net/http in the goroutine of Send.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.got, a.fresh = time.Now(), !info.Reused
	c := info.Conn
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*conn); ok {
		c.expect()
	}
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
	if !a.got.IsZero() {
		return "the answer"
	}
	switch a.step.Load() {
	case stepDNS:
		return "the name look-up"
	case stepConnect:
		return "connecting"
	case stepTLS:
		return "the TLS handshake"
	}
	return "getting a connection"
}

// How much a connection may bring: what the TLS handshake needs, and for each request the headers and body
// that are read at most, with room for what is on its way. net/http reads HTTP/2 frames whether an attempt
// waits for them or not; without a limit a receiver could keep a core busy with empty ones.
const (
	bytesPerConn    = 1 << 20
	bytesPerRequest = maxHeaderBytes + 2*maxBodyBytes + 64<<10
	bytesAtOnce     = 64 * bytesPerRequest // the most that is saved up
)

var errFlood = errors.New("the receiver sent much more than was asked for")

// conn is a connection that ends when the receiver sends more than it may.
type conn struct {
	net.Conn
	left atomic.Int64 // bytes
}

func (c *conn) expect() {
	for {
		left := c.left.Load()
		if c.left.CompareAndSwap(left, min(left+bytesPerRequest, bytesAtOnce)) {
			return
		}
	}
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.left.Add(-int64(n)) < 0 {
		_ = c.Conn.Close()
		return 0, errFlood
	}
	return n, err
}

// dial connects to addr for plain HTTP, for a proxy, and below TLS.
func (s *Sender) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	a := ctx.Value(attemptKey{}).(*attempt) //nolint:errcheck // every request carries one
	ctx, cancel := context.WithDeadline(ctx, a.deadline)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()

	start := time.Now()
	a.step.Store(stepConnect)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { a.step.Store(stepDNS) },
		DNSDone: func(info httptrace.DNSDoneInfo) {
			a.dns.Store(int64(time.Since(start)))
			if info.Err == nil {
				a.step.Store(stepConnect)
			}
		},
	})
	raw, err := s.policy.DialContext(ctx, network, addr)
	a.connect.Store(int64(time.Since(start)) - a.dns.Load())
	if err != nil {
		return nil, &dialError{Connect, err}
	}
	a.step.Store(stepReady)
	c := &conn{Conn: raw}
	c.left.Store(bytesPerConn)
	return c, nil
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
	a := ctx.Value(attemptKey{}).(*attempt) //nolint:errcheck // as in dial
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
	c := tls.Client(raw, cfg)
	err = c.HandshakeContext(ctx)
	a.tls.Store(int64(time.Since(start)))
	if err != nil {
		_ = raw.Close()
		return nil, &dialError{TLS, err}
	}
	a.step.Store(stepReady)
	if s.policy.Proxy == nil {
		if c.ConnectionState().NegotiatedProtocol == "h2" {
			s.http1.Delete(a.host)
		} else {
			s.http1.Store(a.host, struct{}{})
		}
	}
	return c, nil
}
