package console

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/audit"
	"gancho/pkg/numbers"
	"gancho/pkg/seal"
	"gancho/services/management/internal/accesslog"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/dryrun"
	"gancho/services/management/internal/notices"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/revocation"
	"gancho/services/management/internal/shares"
	"gancho/services/management/internal/tail"
	"gancho/services/management/internal/webhooks"
)

const (
	// requestTimeout bounds the work for one page.
	requestTimeout = 20 * time.Second
	// maxFormBytes is more than any form of ours has.
	maxFormBytes = 256 << 10
)

// Options of a Console; all are required but PlainHTTP and FrameAncestors.
type Options struct {
	Gate          *auth.Gate
	Webhooks      *webhooks.Service
	Notifications *notifications.Service
	Replays       *replays.Service
	Tail          *tail.Service
	Catalogue     *catalogue.Catalogue
	DryRun        *dryrun.Service
	Keys          *seal.Keyring
	Ended         *revocation.List
	Portal        *portal.Service
	Audit         *audit.Log
	Numbers       *numbers.Keeper
	Notices       *notices.Service
	// FrameAncestors are the origins whose pages may show the console in a frame, see CheckAncestors.
	FrameAncestors []string
	// PlainHTTP accepts sessions over plain HTTP on every host, not only on a loopback address.
	PlainHTTP bool
	// Stopping is closed when the process stops: the live tail ends.
	Stopping <-chan struct{}
	Log      *zap.Logger
	Metrics  prometheus.Registerer
}

// Console serves the pages. It is safe for concurrent use.
type Console struct {
	Options

	sessions sessions
	lately   lately
	cross    *http.CrossOriginProtection
	mux      *http.ServeMux
	pages    pages
	requests *accesslog.Log
}

// New returns the console.
func New(o Options) (*Console, error) {
	c := &Console{
		Options: o, sessions: sessions{keys: o.Keys, plainHTTP: o.PlainHTTP, ended: o.Ended, log: o.Log},
		cross: http.NewCrossOriginProtection(), mux: http.NewServeMux(),
	}
	c.Log = o.Log.Named("console")
	c.requests = accesslog.New(c.Log, o.Metrics, "gancho_console", "the console")
	var err error
	if c.pages, err = loadPages(); err != nil {
		return nil, err
	}
	files, err := loadStatic()
	if err != nil {
		return nil, err
	}
	for name, f := range files {
		c.mux.Handle("GET /static/"+name, f)
	}
	for _, rt := range c.routes() {
		c.mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, &rt) })
	}
	return c, nil
}

// Serves reports whether a path is one of the console's.
func Serves(p string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	switch first {
	case "", "sign-in", "sign-out", "portal", "unsubscribe", "theme.css", "account", "language", "webhooks", "notifications", "failures", "replays", "audit", "tail", "search", "numbers", "events", "event_types", "static":
		return path.Clean(p) == p
	}
	return false
}

// route is one page or action.
type route struct {
	pattern string // of http.ServeMux
	public  bool   // needs no session
	// accountless needs a session, but of an operator no account.
	accountless bool
	write       bool // changes something of the account's
	stream      bool // writes its answer itself, for as long as it likes
	// bound reports whether a session of one webhook may use the route; nil: it may not.
	bound  func(*Console, *visit) error
	handle func(*visit) error
}

func (c *Console) routes() []route {
	return []route{
		{pattern: "GET /{$}", public: true, handle: c.home},
		{pattern: "GET /sign-in", public: true, handle: c.signInPage},
		{pattern: "POST /sign-in", public: true, handle: c.postSignIn},
		{pattern: "POST /sign-out", public: true, handle: c.postSignOut},
		{pattern: "GET /portal", public: true, handle: c.portalPage},
		{pattern: "POST /portal", public: true, handle: c.postPortal},
		{pattern: "GET /unsubscribe", public: true, handle: c.unsubscribePage},
		{pattern: "POST /unsubscribe", public: true, handle: c.postUnsubscribe},
		{pattern: "GET /theme.css", public: true, handle: themeSheet},
		{pattern: "POST /language", public: true, handle: c.postLanguage},
		{pattern: "GET /account", accountless: true, handle: c.accountPage},
		{pattern: "POST /account", accountless: true, handle: c.postAccount},

		{pattern: "GET /webhooks", handle: c.webhooksPage},
		{pattern: "GET /webhooks/new", handle: c.newWebhookPage},
		{pattern: "POST /webhooks", write: true, handle: c.postWebhook},
		{pattern: "GET /webhooks/{id}", bound: ofWebhook, handle: c.webhookPage},
		{pattern: "GET /webhooks/{id}/edit", bound: ofWebhook, handle: c.editWebhookPage},
		{pattern: "GET /webhooks/{id}/conditions", bound: ofWebhook, handle: c.conditionsPage},
		{pattern: "POST /webhooks/{id}/conditions", bound: ofWebhook, write: true, handle: c.postTrial},
		{pattern: "POST /webhooks/{id}", bound: ofWebhook, write: true, handle: c.postWebhookChange},
		{pattern: "POST /webhooks/{id}/suspend", bound: ofWebhook, write: true, handle: c.postSuspend},
		{pattern: "POST /webhooks/{id}/resume", bound: ofWebhook, write: true, handle: c.postResume},
		{pattern: "POST /webhooks/{id}/test", bound: ofWebhook, write: true, handle: c.postTest},
		{pattern: "POST /webhooks/{id}/rotate_secret", bound: ofWebhook, write: true, handle: c.postRotate},
		{pattern: "POST /webhooks/{id}/delete", bound: ofWebhook, write: true, handle: c.postDelete},
		{pattern: "POST /webhooks/{id}/replays", bound: ofWebhook, write: true, handle: c.postReplay},

		{pattern: "GET /notifications/{id}", bound: ofNotification, handle: c.notificationPage},
		{pattern: "GET /notifications/{id}/payload", bound: ofNotification, handle: c.payload},
		{pattern: "POST /notifications/{id}/resend", bound: ofNotification, write: true, handle: c.postResend},

		{pattern: "GET /failures", bound: limitsItself, handle: c.failuresPage},
		{pattern: "POST /failures/resend", bound: limitsItself, write: true, handle: c.postResendMany},

		{pattern: "GET /replays/{id}", bound: ofReplay, handle: c.replayPage},
		{pattern: "POST /replays/{id}/start", bound: ofReplay, write: true, handle: c.moveReplay("startReplay", (*replays.Service).Start)},
		{pattern: "POST /replays/{id}/pause", bound: ofReplay, write: true, handle: c.moveReplay("pauseReplay", (*replays.Service).Pause)},
		{pattern: "POST /replays/{id}/resume", bound: ofReplay, write: true, handle: c.moveReplay("resumeReplay", (*replays.Service).Resume)},
		{pattern: "POST /replays/{id}/cancel", bound: ofReplay, write: true, handle: c.moveReplay("cancelReplay", (*replays.Service).Cancel)},

		{pattern: "GET /search", handle: c.searchPage},
		{pattern: "GET /events/{id}", handle: c.eventPage},

		{pattern: "GET /numbers", handle: c.numbersPage},
		{pattern: "GET /audit", handle: c.auditPage},

		{pattern: "GET /tail", bound: limitsItself, handle: c.tailPage},
		{pattern: "GET /tail/stream", bound: limitsItself, stream: true, handle: c.tailStream},

		{pattern: "GET /event_types", handle: c.eventTypesPage},
		{pattern: "GET /event_types/{name}", handle: c.eventTypePage},
		{pattern: "POST /event_types/{name}/send", write: true, handle: c.postSample},

		{pattern: "/", public: true, handle: func(*visit) error {
			return problem.New(problem.Missing, "no_such_page", "there is no such page")
		}},
	}
}

// visit is one request on its way through a handler.
type visit struct {
	ctx     context.Context //nolint:containedctx // of the request, with the handler's time limit
	w       *accesslog.Recorder
	r       *http.Request
	lang    language
	session *session
	caller  auth.Caller
	fields  []zap.Field // more for the log line
}

// id is the id in the path. The letters of a UUID may be in either case.
func (v *visit) id() string {
	id := v.r.PathValue("id")
	return cmp.Or(asUUID(id), id)
}

// ServeHTTP serves one request.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

// policy is what pages may load: this binary's own files, and the logo of a theme.
func policy(images, ancestors string) string {
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'" + images + "; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors " + ancestors
}

func harden(h http.Header) {
	h.Set("Content-Security-Policy", policy("", "'none'"))
	h.Set("X-Content-Type-Options", "nosniff")
	// Same-origin, not no-referrer: with that browsers hide Origin, which the check of POSTs needs.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cache-Control", "no-store")
}

// serve answers one request and writes its log line.
func (c *Console) serve(w http.ResponseWriter, r *http.Request, rt *route) {
	began := time.Now()
	v := &visit{ctx: r.Context(), w: &accesslog.Recorder{ResponseWriter: w}, r: r, lang: chosen(r)}
	id := rand.Text()
	harden(w.Header())
	w.Header().Set("X-Request-Id", id)
	w.Header().Add("Vary", "Accept-Language, Cookie")
	if !rt.stream {
		var cancel context.CancelFunc
		v.ctx, cancel = context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
	}
	failure := c.requests.Guard(id, func() error { return c.answer(v, rt) })
	if failure != nil && v.w.Status == 0 {
		c.showProblem(v, failure)
	}
	c.requests.Write(accesslog.Line{ID: id, Route: rt.pattern, Request: r, Answer: v.w, Began: began, Caller: v.caller, Failure: failure, More: v.fields})
}

// answer runs the gates and the handler.
func (c *Console) answer(v *visit, rt *route) error {
	v.session = c.sessions.get(v.r)
	if v.r.Method == http.MethodPost {
		if err := c.cross.Check(v.r); err != nil {
			return problem.New(problem.Forbidden, "cross_origin", "the form was sent from another site")
		}
		v.r.Body = http.MaxBytesReader(v.w, v.r.Body, maxFormBytes)
		if err := v.r.ParseForm(); err != nil {
			if _, large := errors.AsType[*http.MaxBytesError](err); large {
				return problem.New(problem.TooLarge, "too_large", "the form is too large")
			}
			return problem.New(problem.Malformed, "bad_form", "the form cannot be read")
		}
	}
	if v.session != nil {
		caller, err := c.visitor(v, rt.write)
		v.caller = caller
		if err != nil {
			if problem.Of(err).Kind != problem.Unauthenticated {
				return err
			}
			c.sessions.end(v.ctx, v.w, v.session) // its token is not good any more
			v.session, v.caller = nil, auth.Caller{}
		}
	}
	switch {
	case rt.public:
	case v.session == nil && rt.stream:
		return problem.New(problem.Unauthenticated, "no_session", "sign in first")
	case v.session == nil && v.r.Header.Get("Sec-Fetch-Dest") == "iframe": // a viewer of a frame has no token
		v.redirect("/portal")
		return nil
	case v.session == nil:
		to := "/sign-in"
		if v.r.Method == http.MethodGet && v.r.URL.Path != "/account" {
			to += "?" + url.Values{"next": {v.r.URL.RequestURI()}}.Encode()
		}
		v.redirect(to)
		return nil
	case v.caller.Account == "" && !rt.accountless:
		v.redirect("/account")
		return nil
	}
	if only := v.session.only(); only != "" && !rt.public {
		if rt.bound == nil && rt.pattern == "GET /webhooks" {
			v.redirect("/webhooks/" + only)
			return nil
		}
		if rt.bound == nil {
			return problem.New(problem.Forbidden, "one_webhook", "this session is for one webhook only")
		}
		if err := rt.bound(c, v); err != nil {
			return err
		}
	}
	err := rt.handle(v)
	if rt.write && err != nil && problem.Of(err).Code() == shares.Code {
		// The page that the action was on says so, and has the button for another try.
		v.fields = append(v.fields, zap.String("refused", shares.Code))
		return c.done(v, path.Dir(v.r.URL.EscapedPath()), flash{Bad: true, Key: "problem." + shares.Code})
	}
	return err
}

// redirect sends the browser to a path of this console, with GET.
func (v *visit) redirect(to string) {
	v.w.Header().Set("Location", to)
	v.w.WriteHeader(http.StatusSeeOther)
}

// done shows the result of an action on the page it leads to.
func (c *Console) done(v *visit, to string, n flash) error {
	secure, _ := c.sessions.secure(v.r)
	c.sessions.tell(v.w, v.session, n, secure)
	v.redirect(to)
	return nil
}

var errTokenTooLong = problem.New(problem.Invalid, "token_too_long", fmt.Sprintf("the console takes tokens of at most %d characters", maxToken))
