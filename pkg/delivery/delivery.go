package delivery

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"gancho/pkg/egress"
)

// Limits of an attempt.
const (
	MinTimeout = 100 * time.Millisecond
	MaxTimeout = time.Minute
	// BodyTime is how long a body may take after the headers. It only decides
	// whether the connection is kept, so it is short: a dripping body must not
	// hold a slot that other notifications wait for.
	BodyTime = 500 * time.Millisecond

	maxHeaderBytes = 64 << 10
	maxBodyBytes   = 64 << 10
	keptBodyBytes  = 4 << 10
	scratchBytes   = keptBodyBytes + 8<<10 // an auth key that begins before the cut is seen whole
	maxResends     = 2
)

// Config is read from the environment.
type Config struct {
	// Timeout is the time for a whole attempt, from the name look-up to the
	// answer's headers: 100 ms to 60 s, default 5 s (what RD Station's
	// documentation promises).
	Timeout time.Duration `env:"ATTEMPT_TIMEOUT" envDefault:"5s" range:"100ms..60s"`
}

// Validate reports a timeout out of range.
func (c Config) Validate() error {
	if c.Timeout < MinTimeout || c.Timeout > MaxTimeout {
		return fmt.Errorf("ATTEMPT_TIMEOUT: %s is out of range; use 100ms to 60s", c.Timeout)
	}
	return nil
}

// Request is one attempt to make. Send only reads it.
type Request struct {
	Method, URL    string // URL as normalised at registration
	Body           []byte // the event, never empty
	EventName      string
	NotificationID string
	Attempt        int    // 1 to 6
	Replay         string // id of the replay, or empty
	// AuthHeader and AuthKey are the owner's header and its value, or empty.
	AuthHeader, AuthKey string
	// Secrets are raw signing keys, newest first; at least one.
	Secrets [][]byte
}

// Sender makes attempts over connections that it keeps. It is safe for concurrent use.
type Sender struct {
	timeout   time.Duration
	policy    *egress.Policy
	userAgent string
	tls       *tls.Config
	transport *http.Transport

	ctx    context.Context // ends dials when the Sender is closed
	cancel context.CancelFunc
	closed atomic.Bool
	// http1 holds the hosts (as in the URL) whose last TLS connection speaks
	// HTTP/1; see Send. As many entries as webhooks have hosts.
	http1 sync.Map
	// scratch holds *[scratchBytes]byte for reading bodies.
	scratch sync.Pool
}

// New returns a Sender that reaches what policy allows. userAgent is sent as it is, such as Gancho/1.2.3.
func New(cfg Config, policy *egress.Policy, userAgent string) (*Sender, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if userAgent == "" || !httpguts.ValidHeaderFieldValue(userAgent) {
		return nil, errors.New("user agent: empty or not fit for a header")
	}
	s := &Sender{
		timeout:   cfg.Timeout,
		policy:    policy,
		userAgent: userAgent,
		tls: &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    policy.RootCAs,
			NextProtos: []string{"h2", "http/1.1"},
			// A resumed handshake costs half of a full one.
			ClientSessionCache: tls.NewLRUClientSessionCache(4096),
		},
		scratch: sync.Pool{New: func() any { return new([scratchBytes]byte) }},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.transport = &http.Transport{
		DialContext:    s.dial,
		DialTLSContext: s.dialTLS,
		// Used through a proxy only; dialTLS does the rest.
		TLSClientConfig:     s.tls.Clone(),
		TLSHandshakeTimeout: cfg.Timeout,

		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,

		// A new TLS connection costs 15 times the CPU of a kept one. Receivers
		// usually close idle connections after 60 s or more: be first.
		MaxIdleConns:        4096,
		MaxIdleConnsPerHost: 2048,
		IdleConnTimeout:     50 * time.Second,

		HTTP2: &http.HTTP2Config{
			// All attempts to a host share one connection: notice when it is
			// dead, and do not let bodies nobody reads pile up (default 4 MiB
			// per stream).
			SendPingTimeout:               10 * time.Second,
			PingTimeout:                   5 * time.Second,
			WriteByteTimeout:              cfg.Timeout,
			MaxReceiveBufferPerStream:     maxBodyBytes,
			MaxReceiveBufferPerConnection: 1 << 20,
		},
	}
	if policy.Proxy != nil {
		s.transport.Proxy = http.ProxyURL(policy.Proxy)
		s.transport.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return &dialError{Connect, fmt.Errorf("the proxy answered with status %d", resp.StatusCode)}
			}
			return nil
		}
	}
	return s, nil
}

// Close ends dials and idle connections. Call it after the last Send has returned; later ones are refused
// as canceled.
func (s *Sender) Close() {
	s.closed.Store(true)
	s.cancel()
	s.transport.CloseIdleConnections()
}

// Send makes one attempt. It returns within the timeout, plus the time the scheduler takes. When ctx ends
// first, the outcome is Canceled.
func (s *Sender) Send(ctx context.Context, r Request) Outcome {
	o := Outcome{Started: time.Now()}
	if s.closed.Load() || ctx.Err() != nil {
		o.Canceled, o.Detail = true, "canceled before it started"
		return o
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &attempt{Context: inner, deadline: o.Started.Add(s.timeout)}
	// The only hook; one for informational answers would lift net/http's limit on them.
	traced := httptrace.WithClientTrace(a, &httptrace.ClientTrace{GotConn: a.gotConn})
	req, err := s.build(traced, r, o.Started)
	if err != nil {
		o.Reason, o.Detail = InternalError, err.Error()
		return o
	}
	a.host = req.URL.Host
	if detail := s.forbids(req.URL); detail != "" {
		o.Reason, o.Detail = BlockedAddress, detail
		return o
	}
	o.RequestHeaders = masked(req.Header, r.AuthHeader)

	timer := time.AfterFunc(s.timeout, func() { cancel(errDeadline) })
	defer timer.Stop()
	resp, err := s.roundTrip(req, r.Body)
	o.Duration = time.Since(o.Started)
	o.Phases = Phases{
		DNS:     time.Duration(a.dns.Load()),
		Connect: time.Duration(a.connect.Load()),
		TLS:     time.Duration(a.tls.Load()),
	}
	secrets := echoes(r.AuthKey)
	if err != nil {
		if ctx.Err() != nil && !errors.Is(context.Cause(inner), errDeadline) {
			o.Canceled, o.Detail = true, "canceled by our own stop; the request may have arrived"
			return o
		}
		o.Reason, o.Detail = a.classify(err, s.timeout)
		o.Detail = tidy(secrets.hide(o.Detail))
		o.Certificate = s.ended(err, o.Started.Add(o.Duration))
		return o
	}
	o.Phases.FirstByte = o.Started.Add(o.Duration).Sub(a.got)
	o.judge(resp)
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		leaf := resp.TLS.PeerCertificates[0]
		o.Certificate = Certificate{From: leaf.NotBefore, Until: leaf.NotAfter, New: a.fresh && !resp.TLS.DidResume}
		if o.Certificate.EndsSoon(o.Started) {
			// The next handshake is a full one: resumed sessions could go on with this one after its renewal.
			s.tls.ClientSessionCache.Put(req.URL.Hostname(), nil)
		}
	}
	o.ResponseHeaders = resp.Header
	secrets.hideHeader(o.ResponseHeaders)

	if resp.Body != http.NoBody && resp.StatusCode != http.StatusSwitchingProtocols {
		timer.Reset(min(BodyTime, s.timeout-o.Duration))
		o.ResponseBody = s.read(resp.Body, secrets)
	}
	_ = resp.Body.Close()
	return o
}

// roundTrip sends req, and again where the receiver said that it did not process it.
func (s *Sender) roundTrip(req *http.Request, body []byte) (*http.Response, error) {
	for resends := 0; ; resends++ {
		// A type that net/http knows to be in memory: headers and body then leave in one write.
		r := bytes.NewReader(body)
		req.Body, req.GetBody = io.NopCloser(r), nil
		if req.URL.Scheme == "http" || s.isHTTP1(req.URL.Host) {
			// HTTP/1 asks for the body again when nothing was written to a kept
			// connection, and for GET also when the request may have arrived.
			// HTTP/2 asks on errors that it then hides: without GetBody it
			// returns them, and unprocessed tells them apart. The host may have
			// changed its protocol meanwhile.
			req.GetBody = func() (io.ReadCloser, error) {
				if req.URL.Scheme == "https" && !s.isHTTP1(req.URL.Host) || req.Method == http.MethodGet && r.Len() < len(body) {
					return nil, fmt.Errorf("the request may have arrived: %w", io.EOF)
				}
				r = bytes.NewReader(body)
				return io.NopCloser(r), nil
			}
		}
		resp, err := s.transport.RoundTrip(req)
		if err == nil || resends == maxResends || !unprocessed(err) {
			return resp, err
		}
		// net/http may still hold the request it was given.
		req = req.WithContext(req.Context())
	}
}

func (s *Sender) isHTTP1(host string) bool {
	_, ok := s.http1.Load(host)
	return ok
}

// cannotRetry begins the error of an HTTP/2 request that net/http could repeat if it had GetBody.
const cannotRetry = "http2: Transport: cannot retry err ["

// unprocessed reports that an HTTP/2 receiver said it will not process the request (RFC 9113, section 8.7).
// The types are private to net/http; should its texts change, such attempts fail instead of being resent.
func unprocessed(err error) bool {
	cause, ok := strings.CutPrefix(err.Error(), cannotRetry)
	return ok && (strings.HasPrefix(cause, "http2: Transport received Server's graceful shutdown GOAWAY]") ||
		strings.HasPrefix(cause, "stream error: stream ID ") && strings.Contains(cause, "; REFUSED_STREAM; received from peer]"))
}

// build checks r and makes the request without its body. The errors hold no value of r.
func (s *Sender) build(ctx context.Context, r Request, now time.Time) (*http.Request, error) {
	switch {
	case len(r.Body) == 0:
		return nil, errors.New("the event has no bytes")
	case len(r.Secrets) == 0:
		return nil, errors.New("there is no signing key")
	case !fits(r.EventName) || !fits(r.NotificationID) || strings.Contains(r.NotificationID, "."):
		return nil, errors.New("the event name or notification id does not fit into a header")
	case r.Replay != "" && !fits(r.Replay):
		return nil, errors.New("the replay id does not fit into a header")
	case r.AuthHeader != "" && (!httpguts.ValidHeaderFieldName(r.AuthHeader) || !fits(r.AuthKey)):
		return nil, errors.New("the auth header or key does not fit into a header")
	case strings.EqualFold(r.AuthHeader, "Idempotency-Key"), strings.EqualFold(r.AuthHeader, "X-Idempotency-Key"):
		return nil, errors.New("the auth header makes Go's client send requests twice")
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, nil)
	if err != nil {
		return nil, errors.New("the method or URL is not usable") // err repeats the URL
	}
	if scheme := req.URL.Scheme; (scheme != "https" && scheme != "http") || req.URL.Host == "" {
		return nil, errors.New("the URL is not absolute, or neither https nor http")
	}
	req.ContentLength = int64(len(r.Body))

	ts := strconv.FormatInt(now.Unix(), 10)
	values := make([]string, 0, 9) // one allocation behind all of them
	h := make(http.Header, 8)      // a map of up to 8 is small; only replays have 9
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	set("Content-Type", "application/json")
	set("User-Agent", s.userAgent)
	set("Gancho-Event", r.EventName)
	set("Gancho-Attempt", strconv.Itoa(r.Attempt))
	set("Webhook-Id", r.NotificationID)
	set("Webhook-Timestamp", ts)
	set("Webhook-Signature", sign(r.NotificationID, ts, r.Body, r.Secrets))
	if r.Replay != "" {
		set("Gancho-Replay", r.Replay)
	}
	if r.AuthHeader != "" {
		set(r.AuthHeader, r.AuthKey) // spelled as its owner did
	}
	req.Header = h
	return req, nil
}

func fits(value string) bool { return value != "" && httpguts.ValidHeaderFieldValue(value) }

// forbids judges what the dialer will not see, and says what is wrong: a scheme that was allowed when the
// webhook was registered, and, as a proxy is dialled instead, an address literal and the port.
func (s *Sender) forbids(u *url.URL) string {
	if u.Scheme == "http" && !s.policy.AllowHTTP {
		return "http:// is switched off; ALLOW_HTTP_URLS allows it"
	}
	if s.policy.Proxy == nil {
		return ""
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		if err := s.policy.AddrAllowed(addr); err != nil {
			return err.Error()
		}
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || !s.policy.PortAllowed(uint16(n)) {
		return "port " + port + " is not open; EGRESS_ALLOW_PORTS lists the open ports"
	}
	return ""
}

const mask = "***"

func masked(h http.Header, auth string) http.Header {
	out := maps.Clone(h)
	hidden := []string{mask, mask}
	out["Webhook-Signature"] = hidden[0:1:1]
	if auth != "" {
		out[auth] = hidden[1:2]
	}
	return out
}

// echo is what a receiver may repeat of an auth key, longest first: the value, what follows a scheme such as
// Bearer, what a Basic value says, and each of them as JSON, URLs and base64 write it.
type echo []string

// minEchoBytes keeps short keys from blanking out ordinary text.
const minEchoBytes = 6

func echoes(key string) echo {
	if key == "" {
		return nil
	}
	secrets := []string{key}
	if i := strings.LastIndexAny(key, " \t"); i >= 0 {
		secrets = append(secrets, key[i+1:])
		if raw, err := base64.StdEncoding.DecodeString(key[i+1:]); err == nil && strings.EqualFold(strings.TrimSpace(key[:i]), "Basic") {
			_, password, _ := strings.Cut(string(raw), ":")
			secrets = append(secrets, string(raw), password)
		}
	}
	var out echo
	for _, secret := range secrets {
		if len(secret) < minEchoBytes {
			continue
		}
		out = append(out, secret, base64.StdEncoding.EncodeToString([]byte(secret)))
		quoted := strconv.Quote(secret)
		out = append(out, quoted[1:len(quoted)-1], url.QueryEscape(secret), url.PathEscape(secret))
		if text, err := json.Marshal(secret); err == nil { // & < > as \u0026 and so on
			out = append(out, string(text[1:len(text)-1]))
		}
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(out)
}

func (e echo) hide(text string) string {
	for _, secret := range e {
		text = strings.ReplaceAll(text, secret, mask)
	}
	return text
}

func (e echo) hideHeader(h http.Header) {
	if len(e) == 0 {
		return
	}
	for name, values := range h {
		for i := range values {
			values[i] = e.hide(values[i])
		}
		if hidden := e.hide(name); hidden != name {
			delete(h, name)
			h[hidden] = values
		}
	}
}

// read reads a body up to its limit and returns the beginning, without echoes of the auth key.
func (s *Sender) read(body io.Reader, secrets echo) []byte {
	scratch := s.scratch.Get().(*[scratchBytes]byte) //nolint:errcheck // the pool holds nothing else
	defer s.scratch.Put(scratch)
	limited := io.LimitedReader{R: body, N: maxBodyBytes}

	beyond := utf8.UTFMax // to see that there is more
	if len(secrets) > 0 {
		beyond = max(beyond, len(secrets[0]))
	}
	buf := scratch[:min(keptBodyBytes+beyond, scratchBytes)]
	n, err := io.ReadFull(&limited, buf)
	kept := buf[:n]
	for _, secret := range secrets {
		kept = bytes.ReplaceAll(kept, []byte(secret), []byte(mask))
	}
	kept = bytes.Clone(cut(kept))
	for err == nil {
		_, err = limited.Read(scratch[:])
	}
	return kept
}

// cut shortens b to what is kept, without cutting a character of UTF-8 in two.
func cut(b []byte) []byte {
	if len(b) <= keptBodyBytes {
		return b
	}
	end := keptBodyBytes
	for back := 1; back < utf8.UTFMax && back <= end; back++ {
		if c := b[end-back]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[end-back:end]) {
				end -= back
			}
			break
		}
	}
	return b[:end]
}
