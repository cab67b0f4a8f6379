package delivery

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// TokenServer begins the detail of an attempt that got no token. No request was made to the receiver.
const TokenServer = "the token server "

// Bounds of tokens.
const (
	maxTokenBytes = 8 << 10 // receivers refuse larger headers
	// unknownLife is how long a token is used whose server does not say how long it lives, and longestLife how long
	// any is.
	unknownLife, longestLife = 5 * time.Minute, 24 * time.Hour
	leastLeft                = 30 * time.Second
)

// OAuth2 is a client's access to a token server by the grant client_credentials (RFC 6749, section 4.4). It keeps the
// token until a tenth of its life or 30 s, whichever is less, is left, or a receiver answers 401 to it. It is safe for
// concurrent use; one that was used must not be copied or changed.
type OAuth2 struct {
	TokenURL               string // normalised, as URLs of webhooks are
	ClientID, ClientSecret string
	Scope, Audience        string // "": not sent

	mu      sync.Mutex
	token   string
	until   time.Time // when it is fetched again
	running *fetch
}

// fetch is one request for a token. Its result may be read once done is closed.
type fetch struct {
	done     chan struct{}
	deadline time.Time

	token   string
	failure *failure
}

// failure is an attempt that ends before its request.
type failure struct {
	reason     Reason
	detail     string
	retryAfter time.Duration
}

// drop forgets a token that a receiver refused, unless another one has come since.
func (o *OAuth2) drop(token string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.token == token {
		o.token = ""
	}
}

// bearer returns a token, which it fetches if there is none, within the attempt's time. However many attempts wait,
// there is one fetch at a time. An error is that of ctx.
func (s *Sender) bearer(ctx context.Context, a *attempt, o *OAuth2) (string, *failure, error) {
	for {
		now := time.Now()
		o.mu.Lock()
		if o.token != "" && now.Before(o.until) {
			token := o.token
			o.mu.Unlock()
			return token, nil, nil
		}
		f, mine := o.running, false
		if f == nil {
			f, mine = &fetch{done: make(chan struct{}), deadline: a.deadline}, true
			o.running = f
			s.fetches.Go(func() { s.fetch(o, f) })
		}
		o.mu.Unlock()
		ends := time.NewTimer(time.Until(a.deadline) + time.Second)
		if f.deadline.After(a.deadline) {
			ends.Reset(time.Until(a.deadline))
		}
		select {
		case <-f.done:
			ends.Stop()
		case <-ends.C:
			return "", &failure{reason: Timeout, detail: o.server() + ": no token within " + s.timeout.String()}, nil
		case <-ctx.Done():
			ends.Stop()
			return "", nil, ctx.Err()
		}
		// Its time began before that of this attempt, which has some left.
		if !mine && f.failure != nil && f.failure.reason == Timeout && time.Now().Before(a.deadline) {
			continue
		}
		return f.token, f.failure, nil
	}
}

// fetch asks for a token and ends f.
func (s *Sender) fetch(o *OAuth2, f *fetch) {
	token, life, failed := s.requestToken(o, f.deadline)
	if failed != nil {
		failed.detail = o.server() + ": " + o.secrets().hide(strings.ReplaceAll(failed.detail, "the receiver", "it"))
	}
	o.end(f, token, life, failed)
}

// end keeps a token, if there is one, and lets those go on who wait for f.
func (o *OAuth2) end(f *fetch, token string, life time.Duration, failed *failure) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f.token, f.failure = token, failed
	o.token, o.until, o.running = token, time.Now().Add(life-min(life/10, leastLeft)), nil
	close(f.done)
}

// server names the token server in details.
func (o *OAuth2) server() string {
	u, err := url.Parse(o.TokenURL)
	if err != nil {
		return strings.TrimSpace(TokenServer)
	}
	return TokenServer + u.Host
}

// authorization is the client's, as RFC 6749, section 2.3.1, has it.
func (o *OAuth2) authorization() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(o.ClientID)+":"+url.QueryEscape(o.ClientSecret)))
}

// secrets are the texts in which the token server may repeat the client's secret.
func (o *OAuth2) secrets() echo {
	return slices.Concat(echoes(o.authorization()), echoes(o.ClientSecret))
}

// requestToken makes the request for a token, of the same rules as one to a receiver, and returns how long the token
// lives.
func (s *Sender) requestToken(o *OAuth2, deadline time.Time) (token string, life time.Duration, failed *failure) {
	fail := func(reason Reason, detail string) (string, time.Duration, *failure) {
		return "", 0, &failure{reason: reason, detail: detail}
	}
	m, err := s.composeToken(o)
	if err != nil {
		return fail(InternalError, err.Error())
	}
	if detail := s.forbids(m.url); detail != "" {
		return fail(BlockedAddress, detail)
	}
	a := attempt{deadline: deadline}
	out := Outcome{Started: time.Now()}
	rep, c, err := s.exchange(s.ctx, &a, m)
	if err != nil {
		return fail(a.classify(err, s.timeout))
	}
	out.Duration = time.Since(out.Started)
	defer context.AfterFunc(s.ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	body, err := io.ReadAll(io.LimitReader(rep.body, maxBodyBytes+1))
	s.release(c, rep, err == nil && len(body) <= maxBodyBytes)
	out.judge(rep)
	if !out.Delivered {
		if code := errorCode(body); code != "" {
			out.Detail += " (" + code + ")"
		}
		return "", 0, &failure{out.Reason, out.Detail, out.RetryAfter}
	}
	switch {
	case len(body) > maxBodyBytes:
		return fail(BadResponse, "its answer is larger than 64 KiB")
	case err != nil && !time.Now().Before(deadline):
		return fail(Timeout, "its answer took longer than "+s.timeout.String())
	case err != nil:
		return fail(BadResponse, "its answer ended before its time")
	}
	if token, life, err = parseToken(body); err != nil {
		return fail(BadResponse, err.Error())
	}
	return token, life, nil
}

// composeToken makes the request for a token. The errors hold no secret.
func (s *Sender) composeToken(o *OAuth2) (*message, error) {
	u, err := url.Parse(o.TokenURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || !httpguts.ValidHostHeader(u.Host) || u.Host == "" || strings.ContainsAny(u.RequestURI(), " \r\n\t") {
		return nil, errors.New("the URL of the token server is not usable")
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	for name, value := range map[string]string{"scope": o.Scope, "audience": o.Audience} {
		if value != "" {
			form.Set(name, value)
		}
	}
	m := &message{method: http.MethodPost, url: u, body: []byte(form.Encode()), origin: origin{scheme: u.Scheme, host: u.Host}}
	m.fields = m.store[:0]
	m.set("User-Agent", s.userAgent)
	m.set("Content-Type", "application/x-www-form-urlencoded")
	m.set("Accept", "application/json")
	m.setSecret("Authorization", o.authorization())
	return m, nil
}

// errorCodes are the codes of errors that may be shown (RFC 6749, section 5.2, and extensions).
var errorCodes = regexp.MustCompile(`^[a-z_]{1,40}$`)

// errorCode is the code in a token server's refusal, "" for none.
func errorCode(body []byte) string {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &said) != nil || !errorCodes.MatchString(said.Error) {
		return ""
	}
	return said.Error
}

// parseToken reads a token server's answer (RFC 6749, section 5.1). The errors hold nothing of it.
func parseToken(body []byte) (token string, life time.Duration, err error) {
	var said struct {
		Token string          `json:"access_token"`
		Type  string          `json:"token_type"`
		Life  json.RawMessage `json:"expires_in"` // some servers write a string
	}
	switch err := json.Unmarshal(body, &said); {
	case err != nil:
		return "", 0, errors.New("its answer is no JSON object with a token")
	case said.Token == "":
		return "", 0, errors.New("its answer has no access_token")
	case said.Type != "" && !strings.EqualFold(said.Type, "bearer"):
		return "", 0, errors.New("its token is not of the type Bearer")
	case len(said.Token) > maxTokenBytes:
		return "", 0, fmt.Errorf("its token has %d bytes; receivers take at most %d", len(said.Token), maxTokenBytes)
	case strings.IndexFunc(said.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) >= 0:
		return "", 0, errors.New("its token has characters that no header may have")
	}
	seconds := strings.Trim(string(said.Life), `"`)
	if seconds == "" || seconds == "null" {
		return said.Token, unknownLife, nil
	}
	n, err := strconv.ParseFloat(seconds, 64)
	if err != nil || n != n {
		return "", 0, errors.New("its expires_in is not a number of seconds")
	}
	return said.Token, time.Duration(min(max(n, 0), longestLife.Seconds()) * float64(time.Second)), nil
}
