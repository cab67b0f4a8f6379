// Package auth decides who makes a request and which rights they have.
//
// A request carries Authorization: Bearer <token>, either a configured token or a JWT. A token belongs to
// one account; an operator's acts for the account in the header X-Account-Id. Everything else is refused:
//
//	401  no token, or one that is not good; the detail names the cause
//	403  a token that may only read and asks for more, X-Account-Id names another account, or only an operator may
//	400  an operator's account-scoped request without X-Account-Id
//	429  more requests than the token may make, or the client's address tried too many bad tokens
//
// Guessing: a good token is let in, regardless of other requests from its address. Bad ones are answered 401, at most
// Config.BadPerMinute a minute from one address (IPv6: one /64), and 429 beyond that.
package auth

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"gancho/pkg/audit"
	"gancho/pkg/event"
	"gancho/services/management/internal/problem"
)

// Config of a Gate.
type Config struct {
	Tokens *Tokens
	JWT    JWT
	// PerSecond is how many requests each token may make, with a burst of one second's worth. All JWTs of an
	// account count together: their issuer can make as many as it likes.
	PerSecond int
	// BadPerMinute is how many bad tokens one address may try before its bad tokens are answered 429.
	BadPerMinute int
}

// Gate lets requests in. It is safe for concurrent use.
type Gate struct {
	tokens   *Tokens
	jwts     *verifier
	requests *limits // by token, or by account for JWTs
	guesses  *limits // by client
	refused  *prometheus.CounterVec
}

// New returns a gate. Its JWKS is kept fresh until ctx ends.
func New(ctx context.Context, cfg Config, log *zap.Logger, reg prometheus.Registerer) (*Gate, error) {
	jwts, err := newVerifier(ctx, cfg.JWT, log)
	if err != nil {
		return nil, err
	}
	g := &Gate{
		tokens: cfg.Tokens, jwts: jwts,
		requests: newLimits(rate.Limit(cfg.PerSecond), cfg.PerSecond),
		guesses:  newLimits(rate.Limit(cfg.BadPerMinute)/60, cfg.BadPerMinute),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_requests_refused_total", Help: "Requests refused before their handler, by reason.",
		}, []string{"reason"}),
	}
	for _, r := range []string{"no_token", "bad_token", "locked_out", "rate_limited", "read_only", "account"} {
		g.refused.WithLabelValues(r)
	}
	reg.MustRegister(g.refused)
	return g, nil
}

// Kind is how a caller proved who it is.
type Kind string

// The kinds of callers.
const (
	KindToken    Kind = "token"
	KindJWT      Kind = "jwt"
	KindConsole  Kind = "console" // a session that a token or a JWT opened
	KindOperator Kind = "operator"
	KindEmail    Kind = "email" // the link in a notice; only in records of changes
)

// Caller is who makes a request and for which account.
type Caller struct {
	Account string // "" for an operator who named none
	Kind    Kind
	// Name is the public name of a configured token, tok_<8 hex>, or the subject of a JWT. It is for logs and
	// evidence, and reveals nothing of the token.
	Name     string
	Address  string // of the client, without a port
	Operator bool
	ReadOnly bool
	// Expires is when its JWT does; zero for a configured token.
	Expires time.Time

	token  digest // zero for a JWT and for the session of a portal link
	guest  bool   // whom a portal link let in
	issuer string // of the link: the public name of a configured token, "" for none
	limit  string // under which key its requests count
}

// Actor is the caller in the record of a change.
func (c Caller) Actor() audit.Actor {
	return audit.Actor{Kind: string(c.Kind), Name: c.Name, Address: c.Address}
}

// Token returns the Bearer token of the request, "" when there is none.
func Token(r *http.Request) string {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// Check returns who makes an account's request. write says that it changes something.
func (g *Gate) Check(r *http.Request, write bool) (Caller, error) {
	c, err := g.enter(r)
	if err != nil {
		return c, err
	}
	asked := r.Header.Get("X-Account-Id")
	switch {
	case c.Operator && asked == "":
		return c, g.refuse("account", problem.New(problem.Malformed, "account_required", "an operator's token needs the header X-Account-Id to say for which account it acts"))
	case c.Operator && !event.ValidAccount(asked):
		return c, g.refuse("account", problem.New(problem.Malformed, "bad_account", "X-Account-Id is not an account id: 1 to 64 characters of A-Z a-z 0-9 _ -"))
	case c.Operator:
		c.Account = asked
	case asked != "" && asked != c.Account:
		return c, g.refuse("account", problem.New(problem.Forbidden, "forbidden", "this token does not belong to the account in X-Account-Id; leave the header out"))
	}
	return c, g.mayWrite(c, write)
}

// CheckOperator returns the operator who makes a request that is not one account's. Account is the one in
// X-Account-Id, "" without that header.
func (g *Gate) CheckOperator(r *http.Request, write bool) (Caller, error) {
	c, err := g.enter(r)
	if err != nil {
		return c, err
	}
	if !c.Operator {
		return c, g.refuse("account", problem.New(problem.Forbidden, "operator_only", "this call needs an operator's token"))
	}
	if c.Account = r.Header.Get("X-Account-Id"); c.Account != "" && !event.ValidAccount(c.Account) {
		return c, g.refuse("account", problem.New(problem.Malformed, "bad_account", "X-Account-Id is not an account id: 1 to 64 characters of A-Z a-z 0-9 _ -"))
	}
	return c, g.mayWrite(c, write)
}

// CheckAny returns who makes a request that is about one account, or for an operator without X-Account-Id about all:
// Account is "" then.
func (g *Gate) CheckAny(r *http.Request, write bool) (Caller, error) {
	if r.Header.Get("X-Account-Id") != "" {
		return g.Check(r, write)
	}
	c, err := g.enter(r)
	if err != nil {
		return c, err
	}
	return c, g.mayWrite(c, write)
}

// enter identifies the caller and counts the request against its limit.
func (g *Gate) enter(r *http.Request) (Caller, error) {
	token := Token(r)
	if token == "" && len(r.Header.Values("Authorization")) > 0 {
		return Caller{}, g.refuse("no_token", unauthorized("no_token", "the header Authorization must stand once and be of the form Bearer <token>", nil))
	}
	c, err := g.Identify(token, r.RemoteAddr)
	if err != nil {
		return Caller{}, err
	}
	return c, g.count(c)
}

func (g *Gate) count(c Caller) error {
	if wait, ok := g.requests.take(c.limit, time.Now()); !ok {
		return g.refuse("rate_limited", limited("rate_limited",
			"this token makes more requests than it may ("+strconv.Itoa(g.requests.burst)+" a second); wait as Retry-After says", wait))
	}
	return nil
}

func (g *Gate) mayWrite(c Caller, write bool) error {
	if !write || !c.ReadOnly {
		return nil
	}
	detail := "this token may only read; use one without :read"
	switch {
	case c.guest:
		detail = "this session may only read; its link needs the scope write"
	case c.token == (digest{}):
		detail = "this token may only read; its scope needs write or webhooks:write"
	}
	return g.refuse("read_only", problem.New(problem.Forbidden, "read_only", detail))
}

// Identify returns whose token it is. remoteAddr is the client's address, where bad tokens are counted. An
// operator's Caller has no account.
func (g *Gate) Identify(token, remoteAddr string) (Caller, error) {
	if token == "" {
		return Caller{}, g.refuse("no_token", unauthorized("no_token", "the request has no token; send Authorization: Bearer <token>", nil))
	}
	c, err := g.find(token)
	if err != nil {
		if wait, ok := g.guesses.take(client(remoteAddr), time.Now()); !ok {
			e := limited("locked_out", "too many bad tokens came from this address; wait as Retry-After says", wait)
			e.Cause = err
			return Caller{}, g.refuse("locked_out", e)
		}
		return Caller{}, g.refuse("bad_token", unauthorized("bad_token", err.Error(), err))
	}
	c.Address = AddressOf(remoteAddr)
	return c, nil
}

var errUnknownToken = errors.New("the token is unknown")

// find returns whose a configured token or a JWT is. The error is for the client: it names the cause, and holds
// nothing that is not the client's own.
func (g *Gate) find(token string) (Caller, error) {
	if c, ok := g.tokens.find(token); ok {
		return c, nil
	}
	switch {
	case !looksLikeJWT(token):
		return Caller{}, errUnknownToken
	case g.jwts == nil:
		return Caller{}, errors.New("the token is unknown; JWTs are not accepted here (JWT_JWKS_URL and JWT_HMAC_SECRET are not set)")
	}
	return g.jwts.verify(token)
}

// Visit returns who makes a request in a session that token has opened. The token must come from where a
// client cannot put one of its choice, such as a sealed cookie: guesses are not counted here, see Identify.
// account is the one an operator has chosen, "" while none is; for others it means nothing. write says that
// the request changes something. The request counts against the token's limit.
func (g *Gate) Visit(token, account, remoteAddr string, write bool) (Caller, error) {
	c, err := g.find(token)
	if err != nil {
		return Caller{}, g.refuse("bad_token", unauthorized("bad_token", err.Error(), err))
	}
	c.Kind, c.Address = KindConsole, AddressOf(remoteAddr)
	if c.Operator {
		c.Account = account
	}
	if err := g.count(c); err != nil {
		return c, err
	}
	return c, g.mayWrite(c, write)
}

// Guest is a person without a token whom a portal link let in.
type Guest struct {
	Account, Session string
	Issuer           string // the public name of the configured token that made the link, "" for a JWT
	By               string // the name of who made it, "" where a version before made it
	ReadOnly         bool
	Expires          time.Time
}

// Admit returns who makes a request in a guest's session, as Visit does. The session ends with the token that made the
// link.
func (g *Gate) Admit(guest Guest, remoteAddr string, write bool) (Caller, error) {
	if guest.Issuer != "" && !g.tokens.knows(guest.Issuer) {
		return Caller{}, g.refuse("bad_token", unauthorized("bad_token", "the token that made the portal link has ended", nil))
	}
	c := Caller{
		Account: guest.Account, Kind: KindConsole, Name: cmp.Or(guest.By, guest.Issuer, "portal"), Address: AddressOf(remoteAddr), ReadOnly: guest.ReadOnly,
		Expires: guest.Expires, guest: true, issuer: guest.Issuer, limit: "portal " + guest.Session,
	}
	if err := g.count(c); err != nil {
		return c, err
	}
	return c, g.mayWrite(c, write)
}

// ErrEnded is the cause with which a context of While ends when its token does.
var ErrEnded = errors.New("the token has ended")

// While returns a context that ends with ctx, or when the caller's token is not good any more: a JWT has expired, a
// configured token was removed. The cause is then ErrEnded. Its cancel function must be called.
func (g *Gate) While(ctx context.Context, c Caller) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(ctx)
	if c.token == (digest{}) && c.issuer == "" {
		until := c.Expires
		if !time.Now().Before(until) { // it lives on the leeway
			until = until.Add(clockSkew)
		}
		timer := time.AfterFunc(time.Until(until), func() { end(ErrEnded) })
		return ctx, func() { timer.Stop(); end(nil) }
	}
	go func() {
		for {
			changed := g.tokens.changed() // before the look, so that no change falls between
			if c.issuer != "" && !g.tokens.knows(c.issuer) || c.issuer == "" && !g.tokens.holds(c.token) {
				end(ErrEnded)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return ctx, func() { end(nil) }
}

func (g *Gate) refuse(reason string, err *problem.Error) error {
	g.refused.WithLabelValues(reason).Inc()
	return err
}

func unauthorized(code, detail string, cause error) *problem.Error {
	e := problem.New(problem.Unauthenticated, code, detail)
	e.Cause = cause
	return e
}

func limited(code, detail string, wait time.Duration) *problem.Error {
	e := problem.New(problem.Limited, code, detail)
	e.RetryAfter = max(wait, time.Second)
	return e
}
