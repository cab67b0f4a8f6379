package management_test

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gancho/services/management"
)

// link makes a portal link and returns its path.
func (s *instance) link(token string, body map[string]any) string {
	s.t.Helper()
	r := s.do(token, "POST", "/crm/v2/portal_links", body).want(http.StatusCreated)
	path, found := strings.CutPrefix(text(r.data(), "url"), s.url)
	if !found || !strings.HasPrefix(path, "/portal?link=") {
		s.t.Fatalf("link = %s", r.raw)
	}
	return path
}

// follow goes through a portal link's page and returns the answer to going on.
func (b *browser) follow(path string) reply {
	b.t.Helper()
	b.get(path).want(http.StatusOK)
	u, err := url.Parse(path)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.post("/portal", "link", u.Query().Get("link"))
}

func TestPortalLinkWorksOnce(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	second := s.run()
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/deals")).want(201).id()
	path := s.link(acme, map[string]any{"ttl": 60, "theme": map[string]any{"accent": "#7a1f5c", "logo_url": "https://crm.example.com/logo.svg"}})

	b := s.browser("en")
	for range 3 { // as previews do
		b.get(path).want(http.StatusOK).has("You are about to open the webhooks of the account acme")
		b.do(http.MethodHead, path, nil).want(http.StatusOK)
	}
	// Many browsers on two replicas at the same moment: one gets in.
	sealed := strings.TrimPrefix(path, "/portal?link=")
	sealed, err := url.QueryUnescape(sealed)
	if err != nil {
		t.Fatal(err)
	}
	var in, out atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		b := s.browser("en")
		if i%2 == 1 {
			b.base = second
		}
		wg.Go(func() {
			switch r := b.post("/portal", "link", sealed); r.status {
			case http.StatusSeeOther:
				in.Add(1)
				if to := r.header.Get("Location"); to != "/webhooks" {
					t.Errorf("the link leads to %s", to)
				}
				b.get("/webhooks").want(http.StatusOK).has("hooks.example.com").lacks("/webhooks/new", "link=")
			case http.StatusGone:
				out.Add(1)
			default:
				t.Errorf("got %d", r.status)
			}
		})
	}
	wg.Wait()
	if in.Load() != 1 || out.Load() != 7 {
		t.Errorf("the link let %d in and %d not, want 1 and 7", in.Load(), out.Load())
	}
	s.until("both replicas know", func() bool {
		b.base = second
		return b.get(path).status == http.StatusGone
	})
	b.get(path).has("used already", "/theme.css?", "https://crm.example.com/logo.svg") // as its maker's product looks
	b.get("/portal?link=v1.x.y").want(http.StatusForbidden)
	b.get("/portal").want(http.StatusOK).has("This session has ended")
	b.get("/webhooks/" + hookID).leads("/sign-in")
}

// TestPortalRights holds what a session may see and do.
func TestPortalRights(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	mine := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/mine")).want(201).id()
	theirs := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/theirs")).want(201).id()
	foreign := s.do(other, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/foreign")).want(201).id()
	n := s.matched("acme", mine, `{"transaction_uuid":"n"}`)
	hidden := s.matched("acme", theirs, `{"transaction_uuid":"h"}`)
	s.attempted(n, "")
	s.attempted(hidden, "")

	reader := s.browser("en")
	reader.follow(s.link(acme, map[string]any{"scope": "read", "language": "pt-BR"})).leads("/webhooks")
	reader.get("/webhooks/"+mine).want(http.StatusOK).has(`lang="pt-BR"`, "hooks.example.com/mine").lacks("/edit", "rotate_secret", "whsec_")
	reader.get("/webhooks/" + theirs).want(http.StatusOK)
	reader.get("/webhooks/" + foreign).want(http.StatusNotFound)
	reader.get("/account").leads("/webhooks")
	for _, action := range []string{"/suspend", "/resume", "/test", "/rotate_secret", "/delete", "/replays", ""} {
		reader.post("/webhooks/" + mine + action).want(http.StatusForbidden)
	}
	reader.post("/webhooks", "event_name", "crm_deal_created", "url", "https://hooks.example.com/new").want(http.StatusForbidden)
	reader.post("/notifications/" + n.ID + "/resend").want(http.StatusForbidden)
	reader.post("/failures/resend", "all", "1").want(http.StatusForbidden)
	reader.post("/language", "language", "en").leads("/webhooks")
	reader.get("/webhooks/" + mine).has(`lang="en"`)

	bound := s.browser("en")
	one := s.link(acme, map[string]any{"scope": "write", "webhook_id": mine})
	bound.get(one).has("a webhook of the account acme")
	bound.follow(one).leads("/webhooks/" + mine)
	bound.get("/").leads("/webhooks")
	bound.get("/webhooks").leads("/webhooks/" + mine)
	bound.get("/webhooks/"+mine).want(http.StatusOK).has("rotate_secret").lacks("theirs", `class="crumbs"`)
	for _, path := range []string{"/webhooks/" + theirs, "/webhooks/" + theirs + "/edit", "/notifications/" + hidden.ID, "/notifications/" + hidden.ID + "/payload", "/replays/" + theirs} {
		bound.get(path).want(http.StatusNotFound)
	}
	for _, path := range []string{"/webhooks/new", "/account", "/events/" + mine, "/event_types", "/search?q=theirs", "/audit", "/numbers"} {
		if r := bound.get(path); r.status/100 == 2 {
			t.Errorf("%s answers %d", path, r.status)
		}
	}
	for _, path := range []string{"/webhooks/" + theirs + "/suspend", "/webhooks/" + theirs + "/delete", "/notifications/" + hidden.ID + "/resend"} {
		bound.post(path).want(http.StatusNotFound)
	}
	bound.post("/webhooks", "event_name", "crm_deal_created", "url", "https://hooks.example.com/new").want(http.StatusForbidden)
	bound.get("/notifications/" + n.ID).want(http.StatusOK)
	bound.get("/tail?webhook_id="+theirs).want(http.StatusOK).lacks(`name="webhook_id"`, "hooks.example.com/theirs", `"`+theirs+`"`)
	bound.get("/failures?webhook_id="+theirs).want(http.StatusOK).has("Notifications of this webhook").lacks("<select", "hooks.example.com/theirs", `"`+theirs+`"`)
	bound.post("/notifications/" + n.ID + "/resend").leads("/notifications/" + n.ID)
	records := s.changes(acme, "") // the newest is the guest's, the oldest that of the token that made the link
	made, first := member(records[0]["actor"], "name"), member(records[len(records)-1]["actor"], "name")
	if records[0]["action"] != "resendNotification" || member(records[0]["actor"], "kind") != "console" || made != first || made == nil {
		t.Errorf("the guest's change is recorded as %v, want the name %v", records[0], first)
	}
	bound.post("/sign-out").leads("/portal")
	bound.get("/webhooks/" + mine).leads("/sign-in")
	framed := s.browser("en")
	framed.header.Set("Sec-Fetch-Dest", "iframe")
	framed.get("/webhooks").leads("/portal")
}

func TestPortalLinksRefused(t *testing.T) {
	t.Parallel()
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("acme:short-lived-token-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, func(c *management.Config) { c.APITokensFile = tokens })
	foreign := s.do(other, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/foreign")).want(201).id()
	const path = "/crm/v2/portal_links"
	for pointer, c := range map[string]struct {
		code string
		body map[string]any
	}{
		"/data/ttl":               {"bad_ttl", map[string]any{"ttl": 59}},
		"/data/session_ttl":       {"bad_ttl", map[string]any{"session_ttl": 86401}},
		"/data/scope":             {"bad_scope", map[string]any{"scope": "admin"}},
		"/data/language":          {"bad_language", map[string]any{"language": "de"}},
		"/data/webhook_id":        {"unknown_webhook", map[string]any{"webhook_id": foreign}},
		"/data/theme/accent":      {"low_contrast", map[string]any{"theme": map[string]any{"accent": "#ffd700"}}},
		"/data/theme/accent_dark": {"bad_colour", map[string]any{"theme": map[string]any{"accent_dark": "red; } body { display: none"}}},
		"/data/theme/logo_url":    {"bad_logo", map[string]any{"theme": map[string]any{"logo_url": "https://x.example.com;script-src *"}}},
	} {
		s.do(acme, "POST", path, c.body).refused(422, c.code, pointer)
	}
	s.do(acmeRead, "POST", path, map[string]any{}).refused(403, "read_only", "")
	s.do("", "POST", path, map[string]any{}).refused(401, "no_token", "")
	s.do(operator, "POST", path, map[string]any{}).refused(400, "account_required", "")
	s.do(operator, "POST", path, nil, "X-Account-Id", "acme").want(http.StatusCreated)

	// A session ends with the token that made its link, the operators' own way to close a door.
	b := s.browser("en")
	b.follow(s.link("short-lived-token-1", nil)).leads("/webhooks")
	b.get("/webhooks").want(http.StatusOK)
	if err := os.WriteFile(tokens, []byte("# none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.until("the session ends", func() bool { return b.get("/webhooks").status == http.StatusSeeOther })
}

// TestPortalFrame holds who may frame which pages, and what the cookies are.
func TestPortalFrame(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) {
		c.ConsoleFrameAncestors = []string{"https://crm.example.com", "https://*.crm.example.net"}
	})
	framable := func(r reply, want bool) {
		t.Helper()
		ancestors := "frame-ancestors 'none'"
		if want {
			ancestors = "frame-ancestors https://crm.example.com https://*.crm.example.net"
		}
		if got := r.header.Get("Content-Security-Policy"); !strings.HasSuffix(got, ancestors) || (r.header.Get("X-Frame-Options") == "") != want {
			t.Errorf("policy %q, X-Frame-Options %q; want %s", got, r.header.Get("X-Frame-Options"), ancestors)
		}
	}
	framable(s.signedIn(acme, "en").get("/webhooks"), false)

	path := s.link(acme, map[string]any{"theme": map[string]any{"accent": "#7a1f5c", "logo_url": "https://crm.example.com/logo.svg"}})
	b := s.browser("en")
	b.header.Set("Origin", strings.Replace(s.url, "http:", "https:", 1)) // as behind a proxy with TLS
	asks := b.get(path)
	framable(asks, true)
	r := b.follow(path)
	r.leads("/webhooks")
	var session *http.Cookie
	for _, c := range (&http.Response{Header: r.header}).Cookies() {
		if c.Value != "" {
			session = c
		}
	}
	if session == nil || session.Name != "__Host-gancho_portal" || !session.Partitioned || !session.Secure || !session.HttpOnly || session.SameSite != http.SameSiteNoneMode || session.MaxAge > 3600 {
		t.Fatalf("cookies = %v", r.header["Set-Cookie"])
	}
	b.header.Set("Cookie", session.Name+"="+session.Value)
	page := b.get("/webhooks").want(http.StatusOK).has(`href="/theme.css?accent=%237a1f5c"`, `src="https://crm.example.com/logo.svg"`)
	framable(page, true)
	if policy := page.header.Get("Content-Security-Policy"); !strings.Contains(policy, "img-src 'self' https://crm.example.com;") {
		t.Errorf("policy = %s", policy)
	}
	b.get("/theme.css?accent=%237a1f5c").want(http.StatusOK).has("--accent: #7a1f5c;")
	if r := b.get("/theme.css?accent=red%3B%7D%20body%7B"); len(r.raw) > 0 {
		t.Errorf("the sheet repeats what it was asked: %s", r.raw)
	}
	b.header.Set("Origin", "https://crm.example.com") // the page around it
	b.post("/sign-out").want(http.StatusForbidden)
}
