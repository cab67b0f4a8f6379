package console

import (
	"net/http"
	"net/url"

	"gancho/pkg/event"
	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/problem"
)

func escapeQuery(s string) string { return url.QueryEscape(s) }

// home leads to the first page.
func (c *Console) home(v *visit) error {
	if v.session == nil {
		v.redirect("/sign-in")
		return nil
	}
	v.redirect("/webhooks")
	return nil
}

// entry is the content of the sign-in page.
type entry struct {
	Next    string
	Problem string // key of the catalogue
	Wait    int    // seconds
}

func (c *Console) signInPage(v *visit) error {
	next := safePath(v.r.URL.Query().Get("next"))
	if v.session != nil {
		if v.r.URL.Query().Has("check") { // the page's own question, see console.js
			v.w.WriteHeader(http.StatusNoContent)
			return nil
		}
		v.redirect(next)
		return nil
	}
	return c.show(v, http.StatusOK, "sign_in", page{Title: "sign_in.title", Data: entry{Next: next}})
}

// postSignIn opens a session.
func (c *Console) postSignIn(v *visit) error {
	next := safePath(v.r.PostFormValue("next"))
	again := func(status int, key string, wait int) error {
		return c.show(v, status, "sign_in", page{
			Title: "sign_in.title", Data: entry{Next: next, Problem: key, Wait: wait},
		})
	}
	secure, possible := c.sessions.secure(v.r)
	if !possible {
		return again(http.StatusForbidden, "sign_in.plain_http", 0)
	}
	s, caller, err := c.signIn(v.r)
	if err != nil {
		p := problem.Of(err)
		switch p.Kind { //nolint:exhaustive // the others are shown on a page of their own
		case problem.Unauthenticated:
			return again(httpstatus.Of(p), "sign_in.bad_token", 0)
		case problem.Invalid:
			return again(httpstatus.Of(p), "sign_in.token_too_long", 0)
		case problem.Limited:
			return again(httpstatus.Of(p), "sign_in.locked_out", int(p.RetryAfter.Seconds()+0.999))
		}
		return err
	}
	v.caller = caller
	c.sessions.set(v.w, s, secure)
	if caller.Operator {
		next = "/account"
	}
	v.redirect(next)
	return nil
}

func (c *Console) postSignOut(v *visit) error {
	to := signInAgain(v.session)
	c.sessions.end(v.ctx, v.w, v.session)
	v.redirect(to)
	return nil
}

// accounts are an operator's choices.
type accounts struct {
	Known   []string
	Given   string
	Problem string
	Usage   []accountUsage
}

// knownAccounts is how many accounts are offered; any other can be typed.
const knownAccounts = 500

func (c *Console) accountPage(v *visit) error {
	if !v.caller.Operator {
		v.redirect("/webhooks")
		return nil
	}
	known := c.Webhooks.Accounts()
	return c.show(v, http.StatusOK, "account", page{
		Title: "account.title",
		Data:  accounts{Known: known[:min(len(known), knownAccounts)], Given: v.session.Account, Usage: c.usage(v)},
	})
}

func (c *Console) postAccount(v *visit) error {
	if !v.caller.Operator {
		return problem.New(problem.Forbidden, "forbidden", "this token belongs to one account")
	}
	account := v.r.PostFormValue("account")
	if !event.ValidAccount(account) {
		known := c.Webhooks.Accounts()
		return c.show(v, http.StatusUnprocessableEntity, "account", page{
			Title: "account.title", Data: accounts{
				Known: known[:min(len(known), knownAccounts)], Given: account, Problem: "account.bad",
			},
		})
	}
	s := *v.session
	s.Account = account
	secure, _ := c.sessions.secure(v.r)
	c.sessions.set(v.w, &s, secure)
	v.redirect("/webhooks")
	return nil
}
