package delivery

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"
)

// attempt is the time of one request and how far it came. It belongs to the goroutine of Send.
type attempt struct {
	deadline time.Time
	identity *Identity

	got   time.Time // when the request had its (last) connection; zero before
	fresh bool      // it is the first on that connection
	asked bool      // the receiver asked for a client certificate

	step              step
	dns, connect, tls time.Duration
}

// step is a part of making a connection.
type step int

const (
	stepNone step = iota
	stepDNS
	stepConnect
	stepProxy
	stepTLS
)

func (a *attempt) stage() string {
	if !a.got.IsZero() {
		return "the answer"
	}
	switch a.step {
	case stepDNS:
		return "the name look-up"
	case stepConnect:
		return "connecting"
	case stepProxy:
		return "the proxy"
	case stepTLS:
		return "the TLS handshake"
	}
	return "getting a connection"
}

// dial makes a connection for o. Where the handshake fails in a way that another offer can mend, it connects once
// more within the attempt, and remembers that for the host.
func (s *Sender) dial(ctx context.Context, a *attempt, o origin) (*conn, error) {
	ctx, cancel := context.WithDeadline(ctx, a.deadline)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	known := s.habits.get(o.host)
	needsLegacy := known.legacy
	known.legacy = known.legacy && s.policy.LegacyTLS
	c, silent, err := s.dialAs(ctx, a, o, known)
	if err == nil || o.scheme != "https" {
		return c, err
	}
	failed, ok := errors.AsType[*dialError](err)
	if !ok || failed.reason != TLS || failed.proxy {
		return nil, err
	}
	switch {
	case silent && !known.classic:
		// Some receivers, and firewalls before them, fail on a first message of more than one packet.
		s.habits.learn(o.host, func(h *habit) { h.classic = true })
		if ctx.Err() != nil {
			return nil, err
		}
		known.classic = true
	case silent:
		s.habits.learn(o.host, func(h *habit) { h.classic = false })
		return nil, err
	case !strings.HasSuffix(err.Error(), alertHandshakeFailure):
		return nil, err
	case known.legacy: // the receiver has changed
		s.habits.learn(o.host, func(h *habit) { h.legacy = false })
		return nil, err
	case needsLegacy:
		failed.err = errNeedsLegacy
		return nil, failed
	case ctx.Err() == nil:
		known.legacy = true
	default:
		return nil, err
	}
	c, _, again := s.dialAs(ctx, a, o, known)
	switch {
	case again != nil && known.legacy:
		return nil, err
	case again != nil:
		return nil, again
	case !known.legacy:
		return c, nil
	}
	s.habits.learn(o.host, func(h *habit) { h.legacy = true })
	if !s.policy.LegacyTLS {
		c.close()
		failed.err = errNeedsLegacy
		return nil, failed
	}
	return c, nil
}

const alertHandshakeFailure = "remote error: tls: handshake failure"

var errNeedsLegacy = errors.New("the receiver speaks TLS 1.2 with RSA key exchange only; it has to offer TLS 1.3, or TLS 1.2 with ECDHE " +
	"(operators: EGRESS_TLS_LEGACY)")

// legacySuites are those of TLS 1.2 without forward secrecy.
var legacySuites = []uint16{
	tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
}

// dialAs makes a connection with one offer. silent means that the handshake failed before the receiver said anything.
func (s *Sender) dialAs(ctx context.Context, a *attempt, o origin, known habit) (c *conn, silent bool, err error) {
	raw, err := s.reach(ctx, a, o)
	if err != nil {
		return nil, false, err
	}
	c = newConn(raw, o)
	c.retire = time.Now().Add(vary(connAge))
	if s.policy.Proxy != nil && o.scheme == "https" {
		a.step = stepProxy
		if err := s.tunnel(ctx, c, address(o)); err != nil {
			_ = raw.Close()
			return nil, false, &dialError{Connect, err, true}
		}
	}
	if o.scheme == "http" {
		return c, false, nil
	}
	cfg := s.tlsFor(a, o, known)
	start := time.Now()
	a.step = stepTLS
	before := c.received.Load()
	c.received.Store(false)
	c.tls = tls.Client(c, cfg)
	err = c.tls.HandshakeContext(ctx)
	a.tls = time.Since(start)
	if err != nil {
		silent = !before && !c.received.Load()
		s.policy.Avoid(cfg.ServerName, raw.RemoteAddr())
		_ = raw.Close()
		return nil, silent, &dialError{TLS, err, false}
	}
	c.stream = c.tls
	state := c.tls.ConnectionState()
	leaf := state.PeerCertificates[0]
	c.leaf, c.full = Certificate{From: leaf.NotBefore, Until: leaf.NotAfter}, !state.DidResume
	if state.NegotiatedProtocol == "h2" {
		if err := s.upgrade(ctx, c); err != nil {
			c.close()
			return nil, false, &dialError{Connect, err, false}
		}
	}
	return c, false, nil
}

// tlsFor is the handshake's offer to a receiver.
func (s *Sender) tlsFor(a *attempt, o origin, known habit) *tls.Config {
	cfg := s.tls.Clone()
	cfg.ServerName = hostname(o.host)
	cfg.ClientSessionCache = s.sessions(o)
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.identity.show(a) }
	if known.http1 {
		cfg.NextProtos = []string{"http/1.1"}
	}
	if known.classic {
		cfg.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
	}
	if known.legacy {
		cfg.MaxVersion = tls.VersionTLS12
		cfg.CipherSuites = legacySuites
		cfg.NextProtos = []string{"http/1.1"}
	}
	return cfg
}

// sessions are the TLS sessions that requests to o may resume.
func (s *Sender) sessions(o origin) tls.ClientSessionCache {
	if o.identity != nil {
		return o.identity.sessions
	}
	return s.tls.ClientSessionCache
}

// reach connects to the receiver, or to the proxy.
func (s *Sender) reach(ctx context.Context, a *attempt, o origin) (net.Conn, error) {
	start := time.Now()
	a.step = stepConnect
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { a.step = stepDNS },
		DNSDone: func(info httptrace.DNSDoneInfo) {
			a.dns = time.Since(start)
			if info.Err == nil {
				a.step = stepConnect
			}
		},
	})
	addr := address(o)
	if s.policy.Proxy != nil {
		addr = s.policy.ProxyAddr()
	}
	raw, err := s.connect(ctx, "tcp", addr)
	a.connect = time.Since(start) - a.dns
	if err != nil {
		return nil, &dialError{Connect, err, s.policy.Proxy != nil}
	}
	if s.policy.Proxy == nil || s.policy.Proxy.Scheme != "https" {
		return raw, nil
	}
	cfg := s.tls.Clone()
	cfg.ServerName, cfg.NextProtos = s.policy.Proxy.Hostname(), []string{"http/1.1"}
	a.step = stepProxy
	secure := tls.Client(raw, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, &dialError{TLS, err, true}
	}
	return secure, nil
}

// tunnel asks the proxy for a connection to addr.
func (s *Sender) tunnel(ctx context.Context, c *conn, addr string) error {
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	head := fmt.Appendf(nil, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s", addr, addr, s.userAgent)
	for _, f := range s.proxyFields {
		head = appendField(head, f)
	}
	if _, err := c.Write(append(head, "\r\n\r\n"...)); err != nil {
		return fmt.Errorf("ask the proxy: %w", err)
	}
	rep := &reply{}
	err := rep.read(c)
	if _, closed := errors.AsType[*lostError](err); closed || errors.Is(err, io.EOF) {
		return errors.New("the proxy closed the connection")
	}
	if err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	defer rep.in.release()
	if rep.status != http.StatusOK {
		return fmt.Errorf("the proxy answered with status %d", rep.status)
	}
	if rep.in.r < rep.in.w {
		return errors.New("the proxy sent bytes before the receiver was asked for any")
	}
	return nil
}

// proxyFields are the headers for the proxy.
func proxyFields(user, password string) []field {
	return []field{{"Proxy-Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)), true}}
}

// address is the host and port of o.
func address(o origin) string {
	host, port, err := net.SplitHostPort(o.host)
	if err != nil {
		host, port = strings.Trim(o.host, "[]"), map[string]string{"http": "80", "https": "443"}[o.scheme]
	}
	return net.JoinHostPort(host, port)
}

// hostname is host without its port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
