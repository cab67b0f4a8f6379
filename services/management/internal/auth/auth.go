// Package auth says who makes a request and what they may do.
//
// A request carries Authorization: Bearer <token>, either a configured token or a JWT. A token belongs to
// one account; an operator's acts for the account in the header X-Account-Id. Everything else is refused:
//
//	401  no token, or one that is not (or no longer) good
//	403  a token that may only read and asks for more, or X-Account-Id names another account
//	400  an operator's account-scoped request without X-Account-Id
//	429  more requests than the token may make, or the client's address tried too many bad tokens
//
// Guessing: after Config.BadPerMinute bad tokens from one address (IPv6: one /64), tokens that were not good
// from there in the last hour are refused without being looked at, until the address has been quiet for a
// while. Clients that share an address with the guesser, behind a proxy, thus keep working.
package auth

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"gancho/pkg/event"
	"gancho/services/management/internal/problem"
)

// Config of a Gate.
type Config struct {
	Tokens *Tokens
	JWT    JWT
	// PerSecond is how many requests each token may make, with a burst of one second's worth.
	PerSecond int
	// BadPerMinute is how many bad tokens one address may try before it is locked out for a while.
	BadPerMinute int
}

// Gate lets requests in. It is safe for concurrent use.
type Gate struct {
	tokens   *Tokens
	jwts     *verifier
	requests *buckets // by grant
	guesses  *buckets // by client
	known    *recent  // client and token
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
		requests: newBuckets(rate.Limit(cfg.PerSecond), cfg.PerSecond),
		guesses:  newBuckets(rate.Limit(cfg.BadPerMinute)/60, cfg.BadPerMinute),
		known:    newRecent(time.Hour),
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

// Caller is who makes a request and for which account.
type Caller struct {
	Account  string
	Name     string // of the token, for logs and evidence
	Operator bool
	ReadOnly bool
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

// Check returns who makes the request. write says that it changes something.
func (g *Gate) Check(r *http.Request, write bool) (Caller, error) {
	grant, err := g.Grant(Token(r), r.RemoteAddr)
	if err != nil {
		return Caller{}, err
	}
	c := Caller{Account: grant.Account, Name: grant.Name, ReadOnly: grant.ReadOnly}
	if grant.Account == Operator {
		c.Operator, c.Account, c.Name = true, "", "operator:"+grant.Name
	}
	if wait, ok := g.requests.take(grant.Account+"/"+grant.Name, time.Now()); !ok {
		return c, g.refuse("rate_limited", limited("rate_limited", "this token makes more requests than it may ("+strconv.Itoa(g.requests.burst)+" a second); wait as Retry-After says", wait))
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
	if write && c.ReadOnly {
		return c, g.refuse("read_only", problem.New(problem.Forbidden, "read_only", "this token may only read; use one without :read"))
	}
	return c, nil
}

// Grant returns what a token may do. remoteAddr is the address it came from.
func (g *Gate) Grant(token, remoteAddr string) (Grant, error) {
	if token == "" {
		return Grant{}, g.refuse("no_token", unauthorized("no_token", "the request has no token; send Authorization: Bearer <token>"))
	}
	now, from := time.Now(), client(remoteAddr)
	h := g.tokens.hash(token)
	trusted := from + "\x00" + string(h[:])
	if wait, locked := g.guesses.empty(from, now); locked && !g.known.has(trusted, now) {
		return Grant{}, g.refuse("locked_out", limited("locked_out", "too many bad tokens came from this address; wait as Retry-After says", wait))
	}
	grant, ok := g.find(token)
	if !ok {
		g.guesses.take(from, now)
		return Grant{}, g.refuse("bad_token", unauthorized("bad_token", "the token is unknown or has expired"))
	}
	g.known.add(trusted, now)
	return grant, nil
}

func (g *Gate) refuse(reason string, err *problem.Error) error {
	g.refused.WithLabelValues(reason).Inc()
	return err
}

func unauthorized(code, detail string) *problem.Error {
	return problem.New(problem.Unauthenticated, code, detail)
}

func limited(code, detail string, wait time.Duration) *problem.Error {
	e := problem.New(problem.Limited, code, detail)
	e.RetryAfter = max(wait, time.Second)
	return e
}
