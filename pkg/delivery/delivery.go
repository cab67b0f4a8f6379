package delivery

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"gancho/pkg/egress"
)

// Limits of an attempt.
const (
	minTimeout = 100 * time.Millisecond
	maxTimeout = time.Minute
	// bodyTime is how long a body may take after the headers. It only decides
	// whether the connection is kept, so it is short: a dripping body must not
	// hold a slot that other notifications wait for.
	bodyTime = 500 * time.Millisecond

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
	if c.Timeout < minTimeout || c.Timeout > maxTimeout {
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
	// EventTime is when the broker stored the event; zero leaves Gancho-Event-Time out.
	EventTime time.Time
	// AuthHeader and AuthKey are the owner's header and its value, or empty.
	AuthHeader, AuthKey string
	// OAuth2 is whose token is sent as Authorization, and Identity the client certificate to show; nil for none.
	OAuth2   *OAuth2
	Identity *Identity
	// Secrets (HMAC) and Ed25519 are signing keys, newest first; at least one in all. Each makes one signature.
	Secrets [][]byte
	Ed25519 []ed25519.PrivateKey
}

// Sender makes attempts over connections that it keeps. It is safe for concurrent use.
type Sender struct {
	timeout     time.Duration
	policy      *egress.Policy
	userAgent   string
	tls         *tls.Config
	h2          *http.Transport
	proxyFields []field
	connect     func(ctx context.Context, network, addr string) (net.Conn, error)

	ctx     context.Context // ends dials when the Sender is closed
	cancel  context.CancelFunc
	pool    pool
	habits  habits
	fetches sync.WaitGroup // of tokens
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
		connect:   policy.DialContext,
		tls: &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    policy.RootCAs,
			NextProtos: []string{"h2", "http/1.1"},
			// A resumed handshake costs half of a full one.
			ClientSessionCache: tls.NewLRUClientSessionCache(4096),
		},
		h2:      newHTTP2Transport(cfg.Timeout),
		scratch: sync.Pool{New: func() any { return new([scratchBytes]byte) }},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if policy.Proxy != nil && policy.Proxy.User != nil {
		password, _ := policy.Proxy.User.Password()
		s.proxyFields = proxyFields(policy.Proxy.User.Username(), password)
	}
	return s, nil
}

// Close ends dials and idle connections. Call it after the last Send has returned; later ones are refused
// as canceled.
func (s *Sender) Close() {
	s.cancel()
	s.fetches.Wait()
	s.pool.close()
}

// LegacyHosts is the number of hosts, of at most 4,096 that are remembered for a day, that speak TLS 1.2 with RSA key
// exchange only. EGRESS_TLS_LEGACY decides whether they are sent to.
func (s *Sender) LegacyHosts() int { return s.habits.legacy() }

// Send makes one attempt. It returns within the timeout, plus the time the scheduler takes. When ctx ends
// first, the outcome is Canceled.
func (s *Sender) Send(ctx context.Context, r Request) Outcome {
	o := Outcome{Started: time.Now()}
	if s.ctx.Err() != nil || ctx.Err() != nil {
		o.Canceled, o.Detail = true, "canceled before it started"
		return o
	}
	m, err := s.compose(&r, o.Started)
	if err != nil {
		o.Reason, o.Detail = InternalError, err.Error()
		return o
	}
	if detail := s.forbids(m.url); detail != "" {
		o.Reason, o.Detail = BlockedAddress, detail
		return o
	}
	a := attempt{deadline: o.Started.Add(s.timeout), identity: r.Identity}
	secrets := echoes(r.AuthKey)
	var token string
	var wait time.Duration
	if r.OAuth2 != nil {
		var failed *failure
		token, failed, err = s.bearer(ctx, &a, r.OAuth2)
		wait = time.Since(o.Started)
		switch {
		case err != nil:
			o.Duration, o.Canceled, o.Detail = wait, true, "canceled by our own stop before the request"
			return o
		case failed != nil:
			o.Duration, o.Reason, o.Detail, o.RetryAfter = wait, failed.reason, tidy(failed.detail), failed.retryAfter
			return o
		}
		m.setSecret("Authorization", "Bearer "+token)
		secrets = slices.Concat(secrets, echoes("Bearer "+token))
	}
	o.RequestHeaders = m.shown()
	rep, c, err := s.exchange(ctx, &a, m)
	o.Duration = time.Since(o.Started)
	o.Phases = Phases{DNS: a.dns, Connect: a.connect, TLS: a.tls}
	if err != nil {
		if ctx.Err() != nil && time.Now().Before(a.deadline) {
			o.Canceled, o.Detail = true, "canceled by our own stop; the request may have arrived"
			return o
		}
		o.Reason, o.Detail = a.classify(err, s.timeout)
		if o.Reason == Timeout && wait >= 100*time.Millisecond {
			o.Detail += "; the token took " + wait.Round(time.Millisecond).String() + " of it"
		}
		o.Detail = tidy(secrets.hide(o.Detail))
		o.Certificate = ended(err, o.Started.Add(o.Duration))
		return o
	}
	o.Phases.FirstByte = o.Started.Add(o.Duration).Sub(a.got)
	o.judge(rep)
	if r.OAuth2 != nil && o.Status == http.StatusUnauthorized {
		r.OAuth2.drop(token)
	}
	o.Certificate = c.leaf
	o.Certificate.New = a.fresh && c.full
	if c.tls != nil && c.leaf.EndsSoon(o.Started) {
		// The next handshake is a full one: resumed sessions could go on with this one after its renewal.
		s.sessions(m.origin).Put(hostname(m.origin.host), nil)
	}
	o.ResponseHeaders = rep.header
	hideCredentials(o.ResponseHeaders)
	secrets.hideHeader(o.ResponseHeaders)
	o.ResponseBody = s.conclude(c, rep, min(bodyTime, s.timeout-o.Duration), secrets)
	if rep.odd != "" {
		if o.Detail != "" {
			o.Detail += "; "
		}
		o.Detail += "the answer's headers are malformed, so the connection is not used again: " + rep.odd
	}
	o.Detail = tidy(secrets.hide(o.Detail))
	return o
}

// exchange sends m and reads the head of the answer. It sends again where the receiver said that it did not process
// the request, or asked for HTTP/1.1.
func (s *Sender) exchange(ctx context.Context, a *attempt, m *message) (*reply, *conn, error) {
	for resends := 0; ; resends++ {
		now := time.Now()
		c := s.pool.take(m.origin, now)
		fresh := c == nil
		if fresh {
			var err error
			if c, err = s.dial(ctx, a, m.origin); err != nil {
				return nil, nil, err
			}
			now = time.Now()
			if c.h2 != nil {
				if c = s.pool.share(c, now); c == nil {
					return nil, nil, &lostError{errors.New("the receiver closed the new connection")}
				}
			}
		}
		a.got, a.fresh = now, fresh
		rep, err := s.send(ctx, a, c, m)
		if err == nil {
			return rep, c, nil
		}
		asked := wantsHTTP1(err)
		if _, bad := malformed(err); bad || asked { // over HTTP/1.1 the status of malformed answers counts
			s.habits.learn(m.origin.host, func(h *habit) { h.http1 = true })
			s.pool.drop(m.origin)
		}
		if resends == maxResends || !asked && !unprocessed(err) {
			if fresh {
				s.policy.Avoid(hostname(m.origin.host), c.RemoteAddr())
			}
			return nil, nil, err
		}
	}
}

// send makes one exchange over c.
func (s *Sender) send(ctx context.Context, a *attempt, c *conn, m *message) (*reply, error) {
	if c.h2 != nil {
		return s.http2(ctx, a, c, m)
	}
	_ = c.SetDeadline(a.deadline)
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	rep, err := s.http1(c, m)
	stop()
	if err != nil {
		c.close()
	}
	return rep, err
}

// conclude reads the body for at most d, keeps the connection if it can be used again, and returns the beginning of
// the body.
func (s *Sender) conclude(c *conn, rep *reply, d time.Duration, secrets echo) []byte {
	var kept []byte
	var whole bool
	switch {
	case rep.resp == nil && rep.length == 0:
		whole = true
	case rep.resp == nil:
		_ = c.SetReadDeadline(time.Now().Add(d))
		kept, whole = s.read(rep.body, rep.header, secrets)
	case rep.resp.Body != http.NoBody:
		rep.timer.Reset(d)
		kept, whole = s.read(rep.body, rep.header, secrets)
	}
	s.release(c, rep, whole)
	return kept
}

// release keeps the connection of an answer if it can be used again. whole means that the body was read to its end.
func (s *Sender) release(c *conn, rep *reply, whole bool) {
	if rep.resp != nil {
		_ = rep.resp.Body.Close()
		rep.timer.Stop()
		rep.cancel(nil)
		s.pool.done(c)
		return
	}
	now := time.Now()
	until, reusable := rep.finish(whole, now)
	if !reusable || now.After(c.retire) {
		c.close()
		return
	}
	c.expires = until
	s.pool.put(c)
}

// forbids judges the parts that the dialer does not see, and returns the cause of a refusal: a scheme that was allowed
// when the webhook was registered, and, as a proxy is dialled instead, an address literal and the port.
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

// echo holds the texts in which a receiver may repeat an auth key, longest first: the value, the part after a scheme
// such as Bearer, the decoded Basic value, and each of them as JSON, URLs and base64 write it.
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

func (e echo) hideBytes(b []byte) []byte {
	for _, secret := range e {
		b = bytes.ReplaceAll(b, []byte(secret), []byte(mask))
	}
	return b
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

// hideCredentials masks the values of an answer's headers that give access to something of the receiver's. Challenges
// (WWW-Authenticate) and addresses stay: they say why an attempt failed.
func hideCredentials(h http.Header) {
	for name, values := range h {
		if !givesAccess(strings.ToLower(name)) {
			continue
		}
		for i := range values {
			values[i] = mask
		}
	}
}

func givesAccess(name string) bool {
	switch name {
	case "set-cookie", "set-cookie2", "cookie", "authorization", "proxy-authorization", "authentication-info", "proxy-authentication-info":
		return true
	}
	for _, part := range []string{"token", "secret", "password", "session", "api-key", "apikey", "credential", "signature"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// read reads a body up to its limit and returns the beginning, readable and without echoes of the auth key. whole
// reports that the body ended.
func (s *Sender) read(body io.Reader, h http.Header, secrets echo) (kept []byte, whole bool) {
	scratch := s.scratch.Get().(*[scratchBytes]byte) //nolint:errcheck // the pool holds nothing else
	defer s.scratch.Put(scratch)
	limited := io.LimitedReader{R: body, N: maxBodyBytes}

	n, err := io.ReadFull(&limited, scratch[:])
	kept = scratch[:n]
	if len(h["Content-Encoding"]) > 0 {
		kept = inflated(kept, h)
	}
	beyond := utf8.UTFMax // to see that there is more
	if len(secrets) > 0 {
		beyond = max(beyond, len(secrets[0]))
	}
	kept = secrets.hideBytes(kept[:min(len(kept), keptBodyBytes+beyond, scratchBytes)])
	if !utf8.Valid(kept) || namesOther(h) {
		kept = secrets.hideBytes(asUTF8(kept, h))
	}
	kept = bytes.Clone(cut(kept))
	for err == nil {
		_, err = limited.Read(scratch[:])
	}
	// io.ReadFull ends with one of two errors; the limit looks like an end too.
	return kept, (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) && limited.N > 0
}

// cut shortens b to keptBodyBytes, without cutting a character of UTF-8 in two.
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
