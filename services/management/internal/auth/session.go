package auth

import (
	"time"

	"gancho/services/management/internal/problem"
)

// Visit returns who makes a request in a session that token has opened. The token must come from where a
// client cannot put one of its choice, such as a sealed cookie: guesses are not counted here, see Grant.
// account is the one an operator has chosen, "" while none is; for others it means nothing. write says that
// the request changes something. The request counts against the token's limit.
func (g *Gate) Visit(token, account string, write bool) (Caller, error) {
	grant, ok := g.find(token)
	if !ok {
		return Caller{}, g.refuse("bad_token", unauthorized("bad_token", "the token is unknown or has expired"))
	}
	c := Caller{Account: grant.Account, Name: grant.Name, ReadOnly: grant.ReadOnly}
	if grant.Account == Operator {
		c.Operator, c.Account, c.Name = true, account, "operator:"+grant.Name
	}
	if wait, ok := g.requests.take(grant.Account+"/"+grant.Name, time.Now()); !ok {
		return c, g.refuse("rate_limited", limited("rate_limited", "this token makes more requests than it may; wait as Retry-After says", wait))
	}
	if write && c.ReadOnly {
		return c, g.refuse("read_only", problem.New(problem.Forbidden, "read_only", "this token may only read; use one without :read"))
	}
	return c, nil
}

// find returns what a configured token or a JWT may do.
func (g *Gate) find(token string) (Grant, bool) {
	grant, ok := g.tokens.find(token)
	if !ok && g.jwts != nil && looksLikeJWT(token) {
		return g.jwts.verify(token)
	}
	return grant, ok
}
