package management_test

import (
	"bufio"
	"context"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/suspension"
	"gancho/pkg/webhook"
	"gancho/services/management"
)

// browser is a client of the console with a cookie jar, which follows no redirects.
type browser struct {
	t      *testing.T
	base   string
	client *http.Client
	header http.Header
}

func (s *instance) browser(language string) *browser {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return &browser{t: s.t, base: s.url, header: http.Header{"Accept-Language": {language}}, client: &http.Client{
		Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// signedIn is a browser with a session.
func (s *instance) signedIn(token, language string) *browser {
	s.t.Helper()
	b := s.browser(language)
	b.post("/sign-in", "token", token).want(http.StatusSeeOther)
	return b
}

func (b *browser) do(method, path string, form url.Values) reply {
	b.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.base+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	maps.Copy(req.Header, b.header)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if b.header.Get("Origin") == "" {
			req.Header.Set("Origin", b.base)
		}
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	r := reply{t: b.t, status: resp.StatusCode, header: resp.Header}
	if r.raw, err = io.ReadAll(resp.Body); err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *browser) get(path string) reply {
	b.t.Helper()
	return b.do(http.MethodGet, path, nil)
}

func (b *browser) post(path string, pairs ...string) reply {
	b.t.Helper()
	form := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		form.Add(pairs[i], pairs[i+1])
	}
	return b.do(http.MethodPost, path, form)
}

// leads fails unless the answer sends the browser to a path, which it returns.
func (r reply) leads(prefix string) string {
	r.t.Helper()
	r.want(http.StatusSeeOther)
	to := r.header.Get("Location")
	if !strings.HasPrefix(to, prefix) {
		r.t.Fatalf("redirected to %q, want %s", to, prefix)
	}
	return to
}

// has fails unless the page shows each text.
func (r reply) has(texts ...string) reply {
	r.t.Helper()
	page := html.UnescapeString(string(r.raw))
	for _, s := range texts {
		if !strings.Contains(page, s) {
			r.t.Errorf("the page lacks %q", s)
		}
	}
	return r
}

func (r reply) lacks(texts ...string) reply {
	r.t.Helper()
	for _, s := range texts {
		if strings.Contains(string(r.raw), s) {
			r.t.Errorf("the page has %q", s)
		}
	}
	return r
}

// What strangers write.
const (
	evilName = "\"><script>alert(1)</script>' onload='x \u202egpj.exe"
	evilBody = "</pre><script>alert(2)</script><img src=x onerror=alert(3)>\u202e"
)

// exhibits are one of everything the console shows.
type exhibits struct {
	*instance

	hook, failed, delivered, retrying, replay, event string
}

// exhibit starts management with Redis and puts one of everything there.
func exhibit(t *testing.T) *exhibits {
	t.Helper()
	s := start(t, func(c *management.Config) { c.RedisURL = "redis://" + miniredis.RunT(t).Addr() })
	x := &exhibits{instance: s}
	x.hook = s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x?a=%22%3E", "name", evilName)).want(201).id()
	send := func(i int, reasons ...delivery.Reason) string {
		n := s.matched("acme", x.hook, fmt.Sprintf(`{"transaction_uuid":"t-%d","document":{"name":%q}}`, i, evilBody))
		for _, r := range reasons {
			s.attemptedWith(n, r, func(a *notification.Attempt) {
				a.ResponseBody = evilBody
				a.ResponseHeaders = map[string]string{"X-Evil": evilName}
				a.Phases = notification.PhasesMS{DNS: 1, Connect: 2, TLS: 3, FirstByte: 4}
			})
		}
		return n.ID
	}
	five := slices.Repeat([]delivery.Reason{delivery.Status5xx}, 6)
	x.failed, x.delivered, x.retrying = send(1, five...), send(2, ""), send(3, delivery.Timeout)
	x.event = text(s.do(acme, "GET", "/crm/v2/notifications/"+x.delivered, nil).want(200).data(), "event_id")
	x.replay = s.do(acme, "POST", "/crm/v2/webhooks/"+x.hook+"/replays", map[string]any{"from": time.Now().Add(-time.Hour).Format(time.RFC3339)}).want(201).id()
	s.until("all are listed", func() bool {
		ids, partial := s.ids("/crm/v2/webhooks/" + x.hook + "/notifications")
		return len(ids) == 3 && !partial
	})
	return x
}

// pages of the console, with a text of each language that they must have.
func (x *exhibits) pages() map[string][2]string {
	return map[string][2]string{
		"/webhooks":                                {"1 webhook", "1 webhook"},
		"/webhooks?q=hooks.example.com":            {"1 webhook found", "1 webhook encontrado"},
		"/webhooks?q=" + url.QueryEscape(evilBody): {"No webhook has", "Nenhum webhook tem"},
		"/webhooks/new":                            {"New webhook", "Novo webhook"},
		"/webhooks/" + x.hook:                      {"Recent notifications", "Notificações recentes"},
		"/webhooks/" + x.hook + "?state=retrying":  {"Retrying", "Tentando de novo"},

		"/webhooks/" + x.hook + "?since=2020-01-01&until=2020-01-02":            {"No notification matches", "Nenhuma notificação corresponde"},
		"/webhooks/" + x.hook + "?event_name=crm_deal_created&since=2020-01-01": {"Attempt", "Tentativas"},

		"/webhooks/" + x.hook + "/edit":               {"Edit webhook", "Editar webhook"},
		"/notifications/" + x.failed:                  {"All 6 attempts failed; the last one: the receiver answered 500.", "Todas as 6 tentativas falharam; a última: o receptor respondeu 500."},
		"/notifications/" + x.delivered:               {"Attempt 1 was answered with 200", "A tentativa 1 foi respondida com 200"},
		"/notifications/" + x.retrying:                {"Attempt 1 of 6 failed: no answer within", "A tentativa 1 de 6 falhou: nenhuma resposta em"},
		"/failures":                                   {"Permanent failures", "Falhas permanentes"},
		"/failures?webhook_id=" + x.hook:              {"Send all again (1)", "Reenviar todas (1)"},
		"/replays/" + x.replay:                        {"Nothing has been sent yet", "Nada foi enviado ainda"},
		"/search":                                     {"Name, URL or id", "Nome, URL ou id"},
		"/search?q=t-1":                               {"Received", "Recebido"},
		"/search?q=hooks.example.com":                 {"crm_deal", "crm_deal"},
		"/search?q=" + url.QueryEscape(evilBody):      {"Nothing matches", "Nada corresponde"},
		"/events/" + x.event:                          {"Notifications", "Notificações"},
		"/numbers":                                    {"Slowest hosts", "Hosts mais lentos"},
		"/audit":                                      {"Who changed what", "Quem alterou o quê"},
		"/audit?object=" + x.hook:                     {"createWebhook", "createWebhook"},
		"/tail":                                       {"Attempts as they happen", "Tentativas no momento em que acontecem"},
		"/tail?outcome=failed&webhook_id=" + x.hook:   {"Live tail", "Ao vivo"},
		"/tail?outcome=nonsense&webhook_id=%3Cscript": {"Live tail", "Ao vivo"},
	}
}

var mustHeaders = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
	"X-Content-Type-Options":  "nosniff",
	"Referrer-Policy":         "same-origin",
	"Cache-Control":           "no-store",
	"X-Frame-Options":         "DENY",
}

// safe fails unless a page is hardened, and shows what strangers wrote as text only.
func (r reply) safe(language string) reply {
	r.t.Helper()
	for k, v := range mustHeaders {
		if got := r.header.Get(k); got != v {
			r.t.Errorf("%s = %q, want %q", k, got, v)
		}
	}
	if got := r.header.Get("Content-Language"); got != language || !strings.Contains(string(r.raw), `<html lang="`+language+`">`) {
		r.t.Errorf("the language is %q, want %s", got, language)
	}
	page := string(r.raw)
	for _, bad := range []string{"<script>alert", "<img src=x", "onload='x", "\x00", "ZgotmplZ", "http://cdn", "style="} {
		if strings.Contains(page, bad) {
			r.t.Errorf("the page has %q", bad)
		}
	}
	// An owner's own form holds the name as it is; elsewhere its direction marks are shown as their code.
	if strings.Contains(regexp.MustCompile(`value="[^"]*"`).ReplaceAllString(page, ""), "\u202e") {
		r.t.Error("the page has a mark that turns the direction of writing")
	}
	if n := strings.Count(page, "<h1"); n != 1 {
		r.t.Errorf("the page has %d first headings", n)
	}
	return r
}

func TestConsolePages(t *testing.T) {
	t.Parallel()
	x := exhibit(t)
	for i, language := range []string{"en", "pt-BR"} {
		b := x.signedIn(acme, language)
		for path, want := range x.pages() {
			t.Run(language+path, func(t *testing.T) {
				b := *b
				b.t = t
				r := b.get(path).want(200).safe(language).has(want[i])
				if strings.HasPrefix(path, "/webhooks/"+x.hook) || strings.HasPrefix(path, "/notifications/") {
					r.has(`"><script>alert(1)</script>' onload='x \u202Egpj.exe`)
				}
				if path == "/webhooks/"+x.hook || path == "/numbers" {
					r.has([]string{"87.5 %", "87,5 %"}[i], "p50 / p95 / p99", ` <span class="soft">6</span>`, `</dt><dd>8</dd>`)
				}
				if path == "/numbers" {
					r.has(`<bdi class="mono">hooks.example.com</bdi>`).lacks("/x?a=")
				}
				if path == "/notifications/"+x.failed {
					r.has(`</pre><script>alert(2)</script><img src=x onerror=alert(3)>\u202E`, "X-Evil", "DNS", "HTTP 500")
				}
				if strings.Contains(string(r.raw), "whsec_") || strings.Contains(string(r.raw), acme) {
					t.Error("the page has a secret")
				}
				if head := b.do(http.MethodHead, path, nil); head.status != 200 || len(head.raw) > 0 {
					t.Errorf("HEAD: status %d, %d bytes", head.status, len(head.raw))
				}
			})
		}
	}
	t.Run("static", func(t *testing.T) {
		b := x.browser("en")
		b.t = t
		page := string(b.get("/sign-in").want(200).safe("en").raw)
		files := regexp.MustCompile(`(?:src|href)="(/static/[^"]+)"`).FindAllStringSubmatch(page, -1)
		if len(files) != 3 {
			t.Fatalf("the page has %d files of its own, want 3", len(files))
		}
		for _, f := range files {
			r := b.get(f[1]).want(200)
			if !strings.Contains(r.header.Get("Cache-Control"), "immutable") || r.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: headers %v", f[1], r.header)
			}
		}
	})
	t.Run("a suspended URL", func(t *testing.T) {
		since := time.Now().UTC().Add(-time.Minute)
		key := suspension.Key{Account: "acme", URLKey: webhook.URLKey("https://hooks.example.com/x?a=%22%3E")}
		x.flag(t.Context(), suspension.Flag{
			Account: key.Account, URLKey: key.URLKey, State: suspension.Suspended, Since: since, Until: since.Add(time.Hour), Trips: 1,
			Reason: suspension.ReasonAlwaysFailing, Evidence: suspension.Evidence{Failures: 21, FirstAt: since, LastAt: since, Statuses: []string{"500", "timeout"}},
		})
		b := x.signedIn(acme, "pt-BR")
		b.t = t
		x.until("the suspension is shown", func() bool {
			return strings.Contains(string(b.get("/webhooks").want(200).raw), "Suspenso")
		})
		b.get("/webhooks").want(200).safe("pt-BR").has("Tentativas com falha", "21", "500, Tempo esgotado")
		b.get("/webhooks/" + x.hook).want(200).safe("pt-BR").has(`Última tentativa com falha</dt><dd><a href="/notifications/`)
	})
	t.Run("an address that is none", func(t *testing.T) {
		b := x.signedIn(acme, "en")
		b.t = t
		b.header = b.header.Clone()
		b.header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
		b.get("/nothing/here").want(404).safe("en").has("Not found")
	})
	t.Run("wrong entries in Portuguese", func(t *testing.T) {
		b := x.signedIn(acme, "pt-BR")
		b.t = t
		b.post("/webhooks", "name", "n", "event_name", "crm_deal_created", "url", "http://localhost/").want(422).
			has("Esta URL precisa começar com https://.").lacks(`lang="en">url`)
	})
	t.Run("payload", func(t *testing.T) {
		b := x.signedIn(acme, "en")
		b.t = t
		r := b.get("/notifications/" + x.failed + "/payload").want(200)
		if want := fmt.Sprintf(`{"transaction_uuid":"t-1","document":{"name":%q}}`, evilBody); string(r.raw) != want || r.header.Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(r.header.Get("Content-Disposition"), "attachment") {
			t.Errorf("payload %s with %v", r.raw, r.header)
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		b := x.signedIn(acme, "pt-BR")
		b.t = t
		const nobody = "11111111-1111-4111-8111-111111111111"
		for _, path := range []string{"/webhooks/" + nobody, "/webhooks/x", "/webhooks/" + nobody + "/edit", "/notifications/" + nobody, "/notifications/" + nobody + "/payload", "/replays/" + nobody, "/webhooks/" + x.hook + "/nothing"} {
			b.get(path).want(404).safe("pt-BR").has("Não encontrado")
		}
	})
	t.Run("other account", func(t *testing.T) {
		b := x.signedIn(other, "en")
		b.t = t
		for _, path := range []string{"/webhooks/" + x.hook, "/webhooks/" + x.hook + "/edit", "/notifications/" + x.failed, "/notifications/" + x.failed + "/payload", "/replays/" + x.replay} {
			b.get(path).want(404).safe("en").has("Not found").lacks("hooks.example.com")
		}
		for _, path := range []string{"/webhooks/" + x.hook + "/test", "/webhooks/" + x.hook + "/delete", "/webhooks/" + x.hook + "/suspend", "/webhooks/" + x.hook + "/rotate_secret", "/notifications/" + x.failed + "/resend", "/replays/" + x.replay + "/start"} {
			b.post(path).want(404)
		}
		b.get("/webhooks").want(200).has("no webhooks yet").lacks(x.hook)
		b.get("/failures").want(200).has("No permanent failures")
		b.post("/failures/resend", "id", x.failed).leads("/failures")
		b.get("/failures").want(200).has("0 are being sent again, 1 could not be")
	})
	t.Run("read only", func(t *testing.T) {
		b := x.signedIn(acmeRead, "en")
		b.t = t
		for path := range x.pages() {
			if strings.HasSuffix(path, "/new") || strings.HasSuffix(path, "/edit") {
				b.get(path).want(403).safe("en").has("may only read")
				continue
			}
			page := string(b.get(path).want(200).safe("en").raw)
			for _, action := range regexp.MustCompile(`<form[^>]*method="post"[^>]*>`).FindAllString(page, -1) {
				if !strings.Contains(action, `"/language"`) && !strings.Contains(action, `"/sign-out"`) && !strings.Contains(action, `"/failures/resend"`) {
					t.Errorf("%s has the form %s", path, action)
				}
			}
			if strings.Contains(page, `class="button primary"`) || strings.Contains(page, `type="checkbox"`) || strings.Contains(page, "popovertarget") {
				t.Errorf("%s has buttons", path)
			}
		}
		hook, note, replay := "/webhooks/"+x.hook, "/notifications/"+x.failed, "/replays/"+x.replay
		for _, path := range []string{
			"/webhooks", hook, hook + "/suspend", hook + "/resume", hook + "/test", hook + "/rotate_secret", hook + "/delete", hook + "/replays",
			note + "/resend", "/failures/resend", replay + "/start", replay + "/pause", replay + "/resume", replay + "/cancel",
		} {
			b.post(path).want(403).has("Your token may only read.")
		}
	})
}

func TestConsoleSignIn(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.APIBadTokensPerMinute = 4 })
	b := s.browser("en")

	b.get("/").leads("/sign-in")
	b.get("/webhooks?q=a").leads("/sign-in?next=%2Fwebhooks%3Fq%3Da")
	b.get("/tail/stream").want(401)
	b.post("/webhooks", "name", "x").leads("/sign-in")
	b.get("/sign-in?check").want(200)
	for next, want := range map[string]string{
		"/failures": "/failures", "/webhooks?q=a%26b": "/webhooks?q=a%26b", "": "/webhooks", "//evil.example/": "/webhooks", "https://evil.example/webhooks": "/webhooks",
		`/\evil.example`: "/webhooks", "/crm/v2/webhooks": "/webhooks", "/webhooks/../../crm": "/webhooks", "webhooks": "/webhooks", "/sign-in": "/webhooks", "javascript:alert(1)": "/webhooks",
	} {
		if got := s.browser("en").post("/sign-in", "token", acme, "next", next).leads("/"); got != want {
			t.Errorf("next %q leads to %q, want %q", next, got, want)
		}
	}

	r := b.post("/sign-in", "token", " Bearer "+acme+"\n").want(303)
	cookie := r.header.Get("Set-Cookie")
	for _, part := range []string{"gancho_session=v1.", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=28"} {
		if !strings.Contains(cookie, part) {
			t.Errorf("the cookie lacks %q: %s", part, cookie)
		}
	}
	if strings.Contains(cookie, acme) || strings.Contains(cookie, "Secure") || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("cookie %s with %v", cookie, r.header)
	}
	b.get("/webhooks").want(200)
	b.get("/sign-in?check").want(204)
	b.get("/").leads("/webhooks")

	// Over HTTPS, and when the browser says nothing, the cookie is Secure and bound to the host.
	for _, origin := range []string{"https://" + strings.TrimPrefix(s.url, "http://"), "null"} {
		c := s.browser("en")
		c.header.Set("Origin", origin)
		if origin == "null" {
			c.header.Set("Sec-Fetch-Site", "same-origin")
		}
		if cookie := c.post("/sign-in", "token", acme).want(303).header.Get("Set-Cookie"); !strings.HasPrefix(cookie, "__Host-gancho_session=") || !strings.Contains(cookie, "; Secure") {
			t.Errorf("origin %s: cookie %s", origin, cookie)
		}
	}
	plain := s.browser("en")
	plain.header.Set("Origin", "http://gancho.example")
	plain.header.Set("Sec-Fetch-Site", "same-origin")
	if r := plain.post("/sign-in", "token", acme).want(403).has("plain HTTP"); r.header.Get("Set-Cookie") != "" {
		t.Error("a session over plain HTTP")
	}

	// A copy of the cookie is worth nothing after signing out.
	at, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	thief := s.browser("en")
	thief.client.Jar.SetCookies(at, b.client.Jar.Cookies(at))
	thief.get("/webhooks").want(200)
	b.post("/sign-out").leads("/sign-in")
	b.get("/webhooks").leads("/sign-in")
	thief.get("/webhooks").leads("/sign-in")

	forged := s.browser("en")
	for _, v := range []string{"", "x", "v1.x.y", acme, strings.Repeat("A", 3000)} {
		forged.client.Jar.SetCookies(at, []*http.Cookie{{Name: "gancho_session", Value: v, Path: "/"}})
		forged.get("/webhooks").leads("/sign-in")
	}

	// Guessing locks the API and the console together, but not who is signed in.
	in := s.signedIn(other, "en")
	for range 4 {
		b.post("/sign-in", "token", "guess").want(401).has("unknown or has expired").lacks("guess")
	}
	s.browser("pt-BR").post("/sign-in", "token", "guess").want(429).safe("pt-BR").has("Muitos tokens inválidos")
	s.do("guess-2", "GET", "/crm/v2/webhooks", nil).refused(429, "locked_out", "")
	in.get("/webhooks").want(200)
	s.browser("en").post("/sign-in", "token", acme).want(303) // was good from here a moment ago
}

func TestConsoleCrossSite(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	b := s.signedIn(acme, "en")
	for name, header := range map[string][2]string{
		"another site": {"Sec-Fetch-Site", "cross-site"}, "a sibling": {"Sec-Fetch-Site", "same-site"}, "an old browser": {"Origin", "https://evil.example"},
	} {
		c := *b
		c.header = b.header.Clone()
		c.header.Set(header[0], header[1])
		for _, path := range []string{"/webhooks/" + id + "/delete", "/webhooks", "/sign-out", "/sign-in", "/language", "/account"} {
			if r := c.post(path, "token", acme); r.status != 403 {
				t.Errorf("%s: POST %s: status %d, want 403", name, path, r.status)
			}
		}
	}
	b.get("/webhooks/" + id).want(200)
	b.do(http.MethodPost, "/webhooks", url.Values{"name": {strings.Repeat("x", 300<<10)}}).want(413)
	for _, method := range []string{"PUT", "DELETE", "OPTIONS", "TRACE"} {
		if r := b.do(method, "/webhooks/"+id, nil); r.status != 404 && r.status != 405 {
			t.Errorf("%s: status %d", method, r.status)
		}
	}
}

func TestConsoleOperator(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	b := s.browser("en")
	b.post("/sign-in", "token", operator).leads("/account")
	b.get("/webhooks").leads("/account")
	b.get("/webhooks/" + id).leads("/account")
	b.get("/account").want(200).safe("en").has("acme").lacks("globex")
	s.attempted(s.matched("acme", id, `{"transaction_uuid":"t"}`), "")
	b.get("/account").want(200).safe("en").has("Usage in the last 24 hours", `<td role="cell" data-label="Error rate">0 %</td>`)
	b.post("/account", "account", "no such\"<b>").want(422).safe("en").has("1 to 64 characters")
	b.post("/account", "account", "acme").leads("/webhooks")
	b.get("/webhooks/" + id).want(200).safe("en")
	b.post("/account", "account", "globex").leads("/webhooks")
	b.get("/webhooks/" + id).want(404)
	own := s.signedIn(acme, "en")
	own.get("/account").leads("/webhooks")
	own.post("/account", "account", "globex").want(403)
}

func TestConsoleLanguage(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	b := s.browser("de, pt;q=0.9, en;q=0.8")
	b.get("/sign-in").want(200).safe("pt-BR")
	b.post("/language", "language", "en", "back", "/failures").leads("/sign-in?next=%2Ffailures")
	b.get("/sign-in").want(200).safe("en")
	b.post("/sign-in", "token", acme).want(303)
	b.post("/language", "language", "pt-BR", "back", "/failures").leads("/failures")
	b.post("/language", "language", "xx", "back", "//evil.example").leads("/webhooks")
	b.get("/webhooks").want(200).safe("pt-BR")
}

func TestConsoleWebhooks(t *testing.T) {
	t.Parallel()
	s := start(t, nil) // without Redis, which no page needs
	b := s.signedIn(acme, "en")
	b.get("/webhooks").want(200).safe("en").has("no webhooks yet")

	r := b.post("/webhooks", "name", " ", "event_name", "crm_nope", "http_method", "PORT", "url", "ftp://"+evilBody, "auth_header", "Cookie").want(422).safe("en")
	r.has("name is empty; give 1 to 255 characters", "event_name is not a known event", "http_method must be one of", `id="p-url"`, `aria-invalid="true"`, "auth_header Cookie is set by", "crm_nope")
	b.post("/webhooks").want(422).has("name is missing", "url is missing", "event_name is missing")
	s.signedIn(acme, "pt-BR").post("/webhooks", "name", "x", "event_name", "crm_deal_created", "url", "https://localhost/").want(422).safe("pt-BR").
		has("Este host não pode ser alcançado de fora.", "localhost")

	fields := []string{"name", evilName, "event_name", "crm_deal_created", "http_method", "PUT", "url", "https://hooks.example.com/x", "auth_header", "X-Api-Key", "auth_key", "hidden-key"}
	path := b.post("/webhooks", fields...).leads("/webhooks/")
	secret := regexp.MustCompile(`whsec_[A-Za-z0-9+/=]+`)
	refresh := *b
	refresh.header = b.header.Clone()
	refresh.header.Set("Gancho-Refresh", "1")
	refresh.get(path).want(200).lacks("whsec_") // another tab's refresh does not take the notice away
	page := b.get(path).want(200).safe("en").has("The webhook is registered.", "X-Api-Key: •••", "Redis does not answer").lacks("hidden-key")
	first := secret.FindString(html.UnescapeString(string(page.raw)))
	if first == "" {
		t.Fatal("the new secret is not shown")
	}
	b.get(path).want(200).lacks("whsec_", "registered.") // once
	b.post("/webhooks", fields...).want(409).safe("en").has("has a webhook with this event and URL already").lacks("hidden-key")

	b.post(path + "/rotate_secret").leads(path)
	second := secret.FindString(html.UnescapeString(string(b.get(path).want(200).safe("en").raw)))
	if second == "" || second == first {
		t.Errorf("the secret after a rotation is %q", second)
	}

	edit := string(b.get(path + "/edit").want(200).safe("en").lacks("hidden-key").raw)
	revision := regexp.MustCompile(`name="revision" value="(\d+)"`).FindStringSubmatch(edit)[1]
	change := []string{"revision", revision, "name", "Novo", "event_name", "crm_deal_*", "http_method", "POST", "url", "https://hooks.example.com/y", "auth_header", "X-Api-Key", "status", "disabled"}
	b.post(path, change...).leads(path)
	got := s.do(acme, "GET", "/crm/v2"+path, nil).want(200).data()
	if got["name"] != "Novo" || got["event_name"] != "crm_deal_*" || got["url"] != "https://hooks.example.com/y" || got["status"] != "disabled" || got["auth_header"] != "X-Api-Key" {
		t.Errorf("after the change: %v", got)
	}
	b.get(path).want(200).has("The webhook was changed.", "This webhook is disabled")
	b.post(path, change...).want(412).safe("en").has("Another user has changed the webhook", "Novo")
	b.post(path, "name", "Novo", "event_name", "crm_deal_*", "url", "https://hooks.example.com/y", "status", "active").leads(path)
	if got := s.do(acme, "GET", "/crm/v2"+path, nil).want(200).data(); got["auth_header"] != nil || got["status"] != "active" {
		t.Errorf("after emptying the header: %v", got)
	}

	note := b.post(path + "/test").leads("/notifications/")
	b.get(note).want(200).safe("en").has("A sample event is on its way.", "has not been made yet")
	b.post(note + "/resend").want(409).safe("en").has("still on its way")
	s.matched("acme", strings.TrimPrefix(path, "/webhooks/"), `{"transaction_uuid":"for-a-replay"}`)

	b.post(path+"/replays", "from", "tomorrow", "rate", "x").want(422).safe("en").has("from must be a time such as", "rate must be a whole number").lacks("data-poll")
	replay := b.post(path+"/replays", "from", "2026-01-02T03:04", "from_utc", time.Now().Add(-time.Hour).UTC().Format("2006-01-02T15:04:05.000Z"), "rate", "10").leads("/replays/")
	b.get(replay).want(200).safe("en").has("1 event would be sent")
	b.post(replay + "/pause").want(409).has("another state")
	b.post(replay + "/start").leads(replay)
	b.post(replay + "/cancel")
	b.get(replay).want(200)
	b.get(path).want(200).has(replay)

	b.post(path + "/delete").leads("/webhooks")
	b.get("/webhooks").want(200).safe("en").has("“Novo” was deleted.")
	b.get(path).want(404)
}

// TestConsoleConditions sets conditions by the form and holds them against past events and one that is written down.
func TestConsoleConditions(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	b := s.signedIn(acme, "en")
	b.get("/webhooks/new").want(200).safe("en").has(`<option value="document.deal_stage.id">`, `<option value="$changed">`)
	row := func(path, op, value string) []string {
		return []string{"condition_path", path, "condition_op", op, "condition_value", value}
	}
	hook := []string{"name", "x", "event_name", "crm_deal_updated", "url", "https://hooks.example.com/c"}
	b.post("/webhooks", slices.Concat(hook, row("", "eq", ""), row("document..x", "eq", evilBody), row("document.n", "gt", "true"))...).want(422).safe("en").
		has("path has an empty segment", "gt takes a number or a string", `value="document..x"`, `id="p-c0-path"`, `id="p-c1-value"`)
	path := b.post("/webhooks", slices.Concat(hook, row("document.n", "gt", "9007199254740992"), row("", "eq", ""), row("$origin", "not_in", "erp, "+evilName))...).leads("/webhooks/")
	stored := func() string {
		return fmt.Sprint(s.do(acme, "GET", "/crm/v2"+path, nil).want(200).data()["conditions"])
	}
	if want := fmt.Sprint([]any{
		map[string]any{"path": "document.n", "op": "gt", "value": 9007199254740992.0}, map[string]any{"path": "$origin", "op": "not_in", "value": []any{"erp", evilName}},
	}); stored() != want {
		t.Errorf("stored %s, want %s", stored(), want)
	}
	b.get(path).want(200).safe("en").has("is greater than", "9007199254740992", "is none of")
	s.signedIn(acme, "pt-BR").get(path+"/edit").want(200).safe("pt-BR").has("é maior que", `value="document.n"`, `value="9007199254740992"`)

	for _, body := range []string{`{"document":{"n":9007199254740993,"name":"` + "large" + `"}}`, `{"document":{"n":"<b>"}}`} {
		s.do(acme, "POST", "/crm/v2/events/crm_deal_updated", body).want(http.StatusAccepted)
	}
	s.do(acme, "POST", "/crm/v2/events/crm_task_updated", `{}`).want(http.StatusAccepted)
	page := string(b.get(path+"/conditions").want(200).safe("en").has("Is sent", "Held back", `found "<b>"`, "document.n").raw)
	if got := strings.Count(page, "crm_deal_updated</span>"); got != 2 || strings.Contains(page, "crm_task") {
		t.Errorf("%d events are tried, want the 2 of that name", got)
	}
	b.post(path+"/conditions", "body", `{"document":{"n":1e400}}`, "changed", "n", "origin", "erp").want(200).safe("en").has("does not hold", "found 1e400", "holds", `found "erp"`)
	b.post(path+"/conditions", "body", "</textarea><script>alert(1)</script>").want(422).safe("en").has("This is not an event in JSON.")
	s.signedIn(acmeRead, "en").get(path + "/conditions").want(200).lacks("<textarea")

	b.post(path, slices.Concat(hook, row("", "eq", ""))...).leads(path)
	if got := stored(); got != "[]" {
		t.Errorf("after emptying the rows: %s", got)
	}
}

// TestConsoleEventTypes shows the catalogue and sends a sample to a webhook that is for it.
func TestConsoleEventTypes(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x", "event_name", "crm_deal_*", "name", evilName)).want(201).id()
	b := s.signedIn(acme, "en")
	b.get("/event_types").want(200).safe("en").has("crm_deal_created", "receiver.py", "receiver.go", "ed25519.mjs", "webhook-signature")
	s.signedIn(acme, "pt-BR").get("/event_types/crm_deal_updated").want(200).safe("pt-BR").has("Exemplo", "deal_stage", "JSON Schema")
	b.get("/event_types/crm_deal_created").want(200).safe("en").has(id, "Send sample")
	b.get("/event_types/crm_task_created").want(200).safe("en").has("No webhook takes this event.").lacks(id)
	b.get("/event_types/crm_nope_at_all").want(404)
	note := b.post("/event_types/crm_deal_deleted/send", "webhook_id", id).leads("/notifications/")
	b.get(note).want(200).has("crm_deal_deleted", "A sample event is on its way.")
	if got := s.changes(acme, "?object="+id)[0]; got["action"] != "testWebhook" || member(got["actor"], "kind") != "console" {
		t.Errorf("the newest change is %v", got)
	}
	b.post("/event_types/crm_task_created/send", "webhook_id", id).want(422).safe("en")
	s.signedIn(other, "en").post("/event_types/crm_deal_created/send", "webhook_id", id).want(404)
	read := s.signedIn(acmeRead, "en")
	read.get("/event_types/crm_deal_created").want(200).lacks("Send sample")
	read.post("/event_types/crm_deal_created/send", "webhook_id", id).want(403)
}

// TestConsoleSearchFilter: what a search found is narrowed by event and day.
func TestConsoleSearchFilter(t *testing.T) {
	t.Parallel()
	x := exhibit(t)
	b := x.signedIn(acme, "en")
	today := time.Now().UTC()
	yesterday, tomorrow := today.AddDate(0, 0, -1).Format(time.DateOnly), today.AddDate(0, 0, 1).Format(time.DateOnly)
	x.until("it is found", func() bool { return strings.Contains(string(b.get("/search?q=t-1").raw), "/events/") })
	for filter, want := range map[string]bool{
		query("q", "t-1", "event_name", "crm_deal_created"): true, query("q", "t-1", "event_name", "crm_task_created"): false,
		query("q", "t-1", "since", yesterday, "until", tomorrow): true, query("q", "t-1", "until", "2026-01-01"): false, query("q", "t-1", "since", "soon"): true,
	} {
		found := b.get("/search" + filter).want(200).safe("en")
		if got := strings.Contains(string(found.raw), "/events/"); got != want {
			t.Errorf("%s finds an event: %v, want %v", filter, got, want)
		}
		if !want {
			found.has("matches the filter", `name="since"`, `name="q" value="t-1"`)
		}
	}
}

func TestConsoleFailures(t *testing.T) {
	t.Parallel()
	x := exhibit(t)
	b := x.signedIn(acme, "en")
	n := x.matched("acme", x.hook, `{"transaction_uuid":"more"}`)
	for range notification.MaxAttempts {
		x.attempted(n, delivery.Timeout)
	}
	x.until("both are listed", func() bool { return strings.Contains(string(b.get("/failures").raw), n.ID) })
	b.get("/failures").want(200).has(x.failed, n.ID, "Send all again (2)", "Timeout")
	today, tomorrow := time.Now().UTC().Format(time.DateOnly), time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly)
	for filter, want := range map[string]int{
		query("event_name", "crm_deal_created"): 2, query("event_name", "crm_task_created"): 0, query("event_name", "<b>"): 2,
		query("since", today): 2, query("since", tomorrow, "until", tomorrow): 0, query("until", "2026-01-01"): 0, query("until", "yesterday"): 2,
		query("webhook_id", x.hook, "event_name", "crm_deal_created", "since", today, "until", tomorrow): 2,
	} {
		found := b.get("/failures" + filter).want(200).safe("en")
		if n := strings.Count(string(found.raw), `name="id"`); n != want {
			t.Errorf("%s: %d failures, want %d", filter, n, want)
		}
		if want == 0 {
			found.has("No notification matches the filter.")
			b.post("/failures/resend", append(fields(filter), "all", "1")...).leads("/failures" + filter) // nothing is sent
			b.get("/failures").want(200).has("Choose at least one notification.", n.ID)
		}
	}
	b.post("/failures/resend").leads("/failures")
	b.get("/failures").want(200).has("Choose at least one notification.")
	b.post("/failures/resend", "id", n.ID).leads("/failures")
	b.get("/failures").want(200).has("1 notification is being sent again.")
	b.get("/notifications/"+n.ID).want(200).has("It was sent again (send 2)", "send 2")
	x.until("it is no failure any more", func() bool { return !strings.Contains(string(b.get("/failures").raw), n.ID) })
	b.post("/failures/resend", "all", "1", "webhook_id", x.hook).leads("/failures?webhook_id=" + x.hook)
	b.get("/failures").want(200).has("1 notification is being sent again.")
	b.get("/notifications/" + x.failed).want(200).has("send 2")
}

// fields are the pairs of a query string.
func fields(q string) (pairs []string) {
	values, _ := url.ParseQuery(strings.TrimPrefix(q, "?"))
	for name, value := range values {
		pairs = append(pairs, name, value[0])
	}
	return pairs
}

func TestConsoleTail(t *testing.T) {
	t.Parallel()
	x := exhibit(t)
	b := x.signedIn(acme, "pt-BR")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.url+"/tail/stream?outcome=failed", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Language", "pt-BR")
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Content-Security-Policy") == "" {
		t.Fatalf("status %d with %v", resp.StatusCode, resp.Header)
	}
	foreign := x.do(other, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	x.attempted(x.matched("globex", foreign, `{"transaction_uuid":"not-yours"}`), delivery.Timeout)
	x.attempted(x.matched("acme", x.hook, `{"transaction_uuid":"good"}`), "")
	n := x.matched("acme", x.hook, `{"transaction_uuid":"bad"}`)
	x.attempted(n, delivery.Status5xx)
	lines := bufio.NewScanner(resp.Body)
	var event strings.Builder
	for lines.Scan() && !strings.Contains(event.String(), "</tr>") {
		if line, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			event.WriteString(line)
		}
	}
	row := event.String()
	for _, want := range []string{"/notifications/" + n.ID, "Falhou", "HTTP 500", "&lt;script&gt;alert(1)", `\u202Egpj`} {
		if !strings.Contains(row, want) {
			t.Errorf("the row lacks %q: %s", want, row)
		}
	}
	if strings.Contains(row, "<script") || strings.Contains(row, "\u202e") {
		t.Errorf("the row has markup of a stranger: %s", row)
	}
}

func TestConsoleBrokerAway(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	b := s.signedIn(acme, "en")
	s.nats.Stop()
	b.get("/webhooks").want(200).safe("en")
	b.get("/notifications/" + id).want(503).safe("en").has("message broker does not answer")
	s.nats.Run()
}
