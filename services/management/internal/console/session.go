package console

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/address"
	"gancho/pkg/event"
	"gancho/pkg/seal"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/revocation"
)

const (
	// sessionLasts is how long a session lasts, used or not.
	sessionLasts = 8 * time.Hour
	// maxToken is how long a token may be to fit into a cookie once it is sealed.
	maxToken = 2500
	// flashLasts is how long a flash waits for the page that shows it.
	flashLasts = 2 * time.Minute
)

// session is the content of the cookie, sealed.
type session struct {
	ID      string    `json:"i"`
	Token   string    `json:"t"`
	Account string    `json:"a,omitempty"` // the one an operator chose
	Ends    time.Time `json:"e"`
	// Grant is set in the session of a portal link, which has no token.
	Grant *portal.Grant `json:"g,omitempty"`

	// framed says that its cookie is one for frames of other sites.
	framed bool
}

// only is the webhook that the session is bound to, "" for none.
func (s *session) only() string {
	if s == nil || s.Grant == nil {
		return ""
	}
	return s.Grant.Webhook
}

func newSession(token string) *session {
	return &session{ID: rand.Text(), Token: token, Ends: time.Now().Add(sessionLasts).UTC().Truncate(time.Second)}
}

// sessions opens and seals the cookies. It is safe for concurrent use.
type sessions struct {
	keys      *seal.Keyring
	plainHTTP bool

	ended *revocation.List
	log   *zap.Logger
}

const (
	secureName = "__Host-gancho_session"
	portalName = "__Host-gancho_portal"
	plainName  = "gancho_session"
	flashName  = "gancho_flash"
	sealedAs   = "gancho console session"
)

// secure says whether cookies for this POST can be Secure, and whether they can be set at all: the browser
// says in Origin over which scheme the page was opened.
func (s *sessions) secure(r *http.Request) (secure, possible bool) {
	u, err := url.Parse(r.Header.Get("Origin"))
	if err != nil || u.Scheme != "http" {
		return true, true
	}
	return false, s.plain(u.Hostname())
}

// plain reports whether a session over plain HTTP is accepted for a host.
func (s *sessions) plain(host string) bool {
	return s.plainHTTP || address.Loopback(strings.Trim(host, "[]"))
}

// get returns the session of a request, nil when there is none that is good.
func (s *sessions) get(r *http.Request) *session {
	if c, err := r.Cookie(portalName); err == nil {
		if v := s.open(c.Value); v != nil && v.Grant != nil {
			v.framed = true
			return v
		}
	}
	c, err := r.Cookie(secureName)
	if err != nil {
		host := r.Host
		if u, err := url.Parse("//" + r.Host); err == nil {
			host = u.Hostname()
		}
		if c, err = r.Cookie(plainName); err != nil || r.TLS != nil || !s.plain(host) {
			return nil
		}
	}
	return s.open(c.Value)
}

// open returns the session that a cookie's value holds, nil when it is none or has ended.
func (s *sessions) open(sealed string) *session {
	plain, err := s.keys.Open(sealed, []byte(sealedAs))
	if err != nil {
		return nil
	}
	var v session
	if json.Unmarshal(plain, &v) != nil || !time.Now().Before(v.Ends) || v.Account != "" &&
		!event.ValidAccount(v.Account) {
		return nil
	}
	if s.ended.Ended(v.ID) {
		return nil
	}
	return &v
}

// sealed is what open opens.
func (s *sessions) sealed(v *session) string {
	plain, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and a time
	}
	return s.keys.Seal(plain, []byte(sealedAs))
}

// set writes the session's cookie.
func (s *sessions) set(w http.ResponseWriter, v *session, secure bool) {
	v.framed = secure && v.Grant != nil
	c := v.cookie(plainName, s.sealed(v), time.Until(v.Ends), secure) //nolint:gosec // Secure follows the connection; the others are set
	switch {
	case v.framed:
		c.Name = portalName
	case secure:
		c.Name = secureName
	}
	c.Expires = v.Ends
	http.SetCookie(w, c)
	if secure && !v.framed {
		forget(w, portalName, true) // it would be read first
	}
}

// cookie makes one that lasts as the session's does: for this site alone, or for this site in frames of the site that
// shows it, and nowhere else (CHIPS).
func (s *session) cookie(name, value string, lasts time.Duration, secure bool) *http.Cookie {
	c := &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: int(lasts.Seconds()), HttpOnly: true,
		SameSite: http.SameSiteStrictMode, Secure: secure,
	}
	if lasts <= 0 {
		c.MaxAge = -1
	}
	if s.framed {
		c.SameSite, c.Partitioned, c.Secure = http.SameSiteNoneMode, true, true
	}
	return c
}

// end ends a session, for all replicas and in the browser.
func (s *sessions) end(ctx context.Context, w http.ResponseWriter, v *session) {
	if v != nil {
		if err := s.ended.End(ctx, v.ID); err != nil {
			s.log.Warn("a session has ended in this process only; the cookie may be good elsewhere until it expires",
				zap.Error(err))
		}
	}
	forget(w, secureName, true)
	forget(w, portalName, true)
	forget(w, plainName, false)
	forget(w, flashName, false)
}

func forget(w http.ResponseWriter, name string, secure bool) {
	http.SetCookie(w, (&session{framed: name == portalName}).cookie(name, "", -1, secure))
}

// flash is shown on the next page, once. It is sealed too: it may hold a new signing secret.
type flash struct {
	Bad    bool              `json:"b,omitempty"`
	Key    string            `json:"k"` // of the catalogue
	Args   map[string]string `json:"a,omitempty"`
	Link   string            `json:"l,omitempty"`
	Secret string            `json:"s,omitempty"`
	Notify string            `json:"n,omitempty"` // secret of the requests to the URL for notices
	Ends   time.Time         `json:"e"`
}

func (s *sessions) tell(w http.ResponseWriter, v *session, n flash, secure bool) {
	n.Ends = time.Now().Add(flashLasts)
	plain, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings and a time
	}
	http.SetCookie(w, v.cookie(flashName, s.keys.Seal(plain, []byte("gancho console flash "+v.ID)), flashLasts, secure))
}

// takeFlash returns the flash that waits for the session, and removes it.
func (s *sessions) takeFlash(w http.ResponseWriter, r *http.Request, v *session) *flash {
	c, err := r.Cookie(flashName)
	if err != nil {
		return nil
	}
	http.SetCookie(w, v.cookie(flashName, "", -1, false))
	plain, err := s.keys.Open(c.Value, []byte("gancho console flash "+v.ID))
	if err != nil {
		return nil
	}
	var n flash
	if json.Unmarshal(plain, &n) != nil || time.Now().After(n.Ends) {
		return nil
	}
	return &n
}

// safePath returns where to go after signing in: a path of this console, never another host.
func safePath(p string) string {
	u, err := url.Parse(p)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(p, "/") ||
		strings.HasPrefix(p, "//") ||
		strings.ContainsAny(p, "\\\r\n\t") || !Serves(u.Path) || u.Path == "/sign-in" {
		return "/webhooks"
	}
	return u.RequestURI()
}

// token returns the token in a pasted text, without the additions that often come along.
func token(s string) string {
	s = strings.TrimSpace(s)
	if rest, ok := strings.CutPrefix(s, "Bearer "); ok {
		s = strings.TrimSpace(rest)
	}
	return s
}

// signIn opens a session for a token, or returns why it cannot.
func (c *Console) signIn(r *http.Request) (*session, auth.Caller, error) {
	t := token(r.PostFormValue("token"))
	caller, err := c.Gate.Identify(t, r.RemoteAddr)
	if err != nil {
		return nil, auth.Caller{}, err
	}
	if len(t) > maxToken {
		return nil, auth.Caller{}, errTokenTooLong
	}
	return newSession(t), caller, nil
}
