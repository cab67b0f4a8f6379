package console

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/webhook"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
)

var ancestor = regexp.MustCompile(`^https://(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)

// CheckAncestors reports origins that may not frame the console. Valid are https://host[:port], where the host may
// begin with *., or http:// with a loopback address or localhost.
func CheckAncestors(origins []string) error {
	var errs []error
	for _, o := range origins {
		if ancestor.MatchString(o) {
			continue
		}
		rest, plain := strings.CutPrefix(o, "http://")
		if host, _, err := net.SplitHostPort(rest); err == nil {
			rest = host
		}
		a, err := netip.ParseAddr(rest)
		if !plain || rest != "localhost" && (err != nil || !a.Is4() || !a.IsLoopback()) {
			errs = append(errs, fmt.Errorf("CONSOLE_FRAME_ANCESTORS: %q is not an origin; give such as https://crm.example.com or https://*.example.com", o))
		}
	}
	return errors.Join(errs...)
}

// visitor returns who makes a request in a session.
func (c *Console) visitor(v *visit, write bool) (auth.Caller, error) {
	s := v.session
	if s.Grant == nil {
		return c.Gate.Visit(s.Token, s.Account, v.r.RemoteAddr, write)
	}
	if l := language(s.Grant.Language); slices.Contains(languages(), l) {
		v.lang = l
	}
	return c.Gate.Admit(auth.Guest{Account: s.Account, Session: s.ID, Issuer: s.Grant.Issuer, By: s.Grant.By, ReadOnly: !s.Grant.Write, Expires: s.Ends}, v.r.RemoteAddr, write)
}

// invitation is the page of a portal link.
type invitation struct {
	Link    string // sealed, "" when it opens no session
	Account string
	One     bool   // it is good for one webhook
	Problem string // key of the catalogue
}

// portalPage asks whether to go on. Whoever only looks at the address, such as the preview of a messenger, does not
// use the link up.
func (c *Console) portalPage(v *visit) error {
	sealed := v.r.URL.Query().Get("link")
	if sealed == "" {
		return c.show(v, http.StatusOK, "portal", page{Title: "portal.title", Data: invitation{Problem: "portal.ended"}})
	}
	l, err := c.Portal.Open(sealed)
	if err != nil {
		return c.refuseLink(v, l, err)
	}
	return c.invite(v, l, sealed)
}

func (c *Console) invite(v *visit, l portal.Link, sealed string) error {
	v.speak(l)
	return c.show(v, http.StatusOK, "portal", page{Title: "portal.title", Theme: l.Theme, Data: invitation{Link: sealed, Account: l.Account, One: l.Webhook != ""}})
}

// speak has the page in the link's language, if it names one.
func (v *visit) speak(l portal.Link) {
	if lang := language(l.Language); slices.Contains(languages(), lang) {
		v.lang = lang
	}
}

// refuseLink says why a link opens no session. l is empty where it cannot be read.
func (c *Console) refuseLink(v *visit, l portal.Link, err error) error {
	status, key := http.StatusGone, "portal.used"
	switch {
	case errors.Is(err, portal.ErrBad):
		status, key = http.StatusForbidden, "portal.bad"
	case errors.Is(err, portal.ErrExpired):
		key = "portal.expired"
	case !errors.Is(err, portal.ErrUsed):
		return problem.Down("portal_unavailable", "it is not known whether the link was used up; try again, or ask for a new one", err)
	}
	v.fields = append(v.fields, zap.NamedError("portal", err))
	v.speak(l)
	return c.show(v, status, "portal", page{Title: "portal.title", Theme: l.Theme, Data: invitation{Problem: key}})
}

// postPortal uses a link up and opens its session.
func (c *Console) postPortal(v *visit) error {
	secure, possible := c.sessions.secure(v.r)
	if !possible {
		return problem.New(problem.Forbidden, "plain_http", "the console opens no session over plain HTTP; open the link with https")
	}
	s := newSession("")
	l, err := c.Portal.Use(v.ctx, v.r.PostFormValue("link"), s.ID)
	if err != nil {
		return c.refuseLink(v, l, err)
	}
	s.Account, s.Grant, s.Ends = l.Account, &l.Grant, time.Now().Add(time.Duration(l.SessionTTL)*time.Second).UTC().Truncate(time.Second)
	c.sessions.set(v.w, s, secure)
	v.fields = append(v.fields, zap.String("portal_account_id", l.Account), zap.Bool("portal_write", l.Write))
	to := "/webhooks"
	if l.Webhook != "" {
		to += "/" + l.Webhook
	}
	v.redirect(to)
	return nil
}

// The routes open to a session that is bound to one webhook. Other webhooks are to it as if they did not exist.

func (v *visit) mine(webhookID, thing string) error {
	if webhookID != v.session.only() {
		return problem.NotFound(thing)
	}
	return nil
}

func ofWebhook(_ *Console, v *visit) error { return v.mine(v.id(), "webhook") }

func ofNotification(c *Console, v *visit) error {
	n, err := c.Notifications.Get(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	return v.mine(n.WebhookID, "notification")
}

func ofReplay(c *Console, v *visit) error {
	r, err := c.Replays.Get(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	return v.mine(r.WebhookID, "replay")
}

// limitsItself is for pages that show many webhooks and keep to that of the session.
func limitsItself(*Console, *visit) error { return nil }

// hooks are the webhooks that a page offers in a choice, and whether these are all.
func (c *Console) hooks(v *visit) ([]*webhook.Webhook, bool) {
	if only := v.session.only(); only != "" {
		w := c.Webhooks.Known(v.caller.Account, only)
		if w == nil {
			return nil, true
		}
		return []*webhook.Webhook{w}, true
	}
	return c.Webhooks.ByName(v.caller.Account, hooksOffered)
}

// dress gives a page the theme and the frame that its session has.
func (c *Console) dress(v *visit, p *page) {
	if v.session != nil && v.session.Grant != nil {
		p.Theme, p.Bound = v.session.Grant.Theme, v.session.only() != ""
	}
	images, ancestors := "", "'none'"
	if origin := p.Theme.LogoOrigin(); origin != "" {
		images = " " + origin
	}
	if (v.session == nil || v.session.Grant != nil) && len(c.FrameAncestors) > 0 { // never with a token's own session
		ancestors = strings.Join(c.FrameAncestors, " ")
		v.w.Header().Del("X-Frame-Options") // it knows no list
	}
	v.w.Header().Set("Content-Security-Policy", policy(images, ancestors))
}

// themeSheet is the style sheet of a theme whose colours are in the query. It is the same for all sessions.
func themeSheet(v *visit) error {
	query := v.r.URL.Query()
	h := v.w.Header()
	h.Set("Content-Type", "text/css; charset=utf-8")
	h.Set("Cache-Control", "public, max-age=86400")
	_, _ = io.WriteString(v.w, portal.Theme{Accent: query.Get("accent"), AccentDark: query.Get("accent_dark")}.CSS()) // the browser may be gone
	return nil
}

// Palettes are the colours of the console's style sheet.
func Palettes() (light, dark portal.Palette, err error) {
	raw, err := staticFiles.ReadFile("static/console.css")
	if err != nil {
		return nil, nil, err
	}
	day, night, ok := strings.Cut(string(raw), "prefers-color-scheme: dark")
	if !ok {
		return nil, nil, errors.New("console.css has no dark palette")
	}
	return palette(day), palette(night), nil
}

var colour = regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]{3,6})\b`)

// palette are the colours of a sheet by name, the first of each.
func palette(css string) portal.Palette {
	p := portal.Palette{}
	for _, m := range colour.FindAllStringSubmatch(css, -1) {
		if p[m[1]] == "" {
			p[m[1]] = m[2]
		}
	}
	return p
}

// signInAgain is where a session that ended leads.
func signInAgain(s *session) string {
	if s != nil && s.Grant != nil {
		return "/portal"
	}
	return "/sign-in"
}

// switchLanguage keeps a guest's choice in the session: a frame of another site gets no other cookie.
func (c *Console) switchLanguage(v *visit, l language) bool {
	if v.session == nil || v.session.Grant == nil {
		return false
	}
	s, grant := *v.session, *v.session.Grant
	grant.Language = string(l)
	s.Grant = &grant
	secure, _ := c.sessions.secure(v.r)
	c.sessions.set(v.w, &s, secure)
	return true
}
