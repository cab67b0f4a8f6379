package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html"
	"html/template"
	"io/fs"
	"maps"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gancho/pkg/bytesize"
	"gancho/pkg/notification"
	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// pages are the templates, by language and name.
type pages map[language]map[string]*template.Template

// loadPages parses every page together with the layout and the parts they share.
func loadPages() (pages, error) {
	names, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return nil, err
	}
	assets, err := assetNames()
	if err != nil {
		return nil, err
	}
	all := pages{}
	for _, l := range languages() {
		all[l] = map[string]*template.Template{}
		base, err := template.New("").Funcs(l.funcs(assets)).Option("missingkey=error").ParseFS(templateFiles,
			"templates/layout.html", "templates/parts.html")
		if err != nil {
			return nil, fmt.Errorf("parse layout: %w", err)
		}
		for _, name := range names {
			if name == "templates/layout.html" || name == "templates/parts.html" {
				continue
			}
			t, err := base.Clone()
			if err == nil {
				t, err = t.ParseFS(templateFiles, name)
			}
			if err != nil {
				return nil, fmt.Errorf("parse %s: %w", name, err)
			}
			all[l][strings.TrimSuffix(path.Base(name), ".html")] = t
		}
	}
	return all, nil
}

// page is the input of every template.
type page struct {
	Title string // key of the catalogue
	Name  string // shown before the title, of strangers
	Tab   string // of the navigation
	Data  any
	// Poll is how often the page asks for its newest state; 0 for never.
	Poll time.Duration

	Lang     language
	Account  string
	Operator bool
	ReadOnly bool
	SignedIn bool
	Path     string
	Flash    *flash
	Bound    bool // to one webhook: nothing else is offered
	Theme    portal.Theme
}

// PollMS is Poll in milliseconds.
func (p page) PollMS() int64 { return p.Poll.Milliseconds() }

// refreshHeader marks a request of the script, see console.js.
const refreshHeader = "Gancho-Refresh"

// show writes a page. It is made whole before its first byte is sent, so a page is never half an error.
func (c *Console) show(v *visit, status int, name string, p page) error {
	p.Lang, p.Path = v.lang, v.r.URL.RequestURI()
	p.Account, p.Operator, p.ReadOnly = v.caller.Account, v.caller.Operator, v.caller.ReadOnly
	if v.r.Method == http.MethodPost { // its address shows nothing
		p.Path, p.Poll = "/webhooks", 0
	}
	// A page that refreshes itself shows only parts of the answer: a flash would be lost.
	if p.SignedIn = v.session != nil; p.SignedIn && v.r.Header.Get(refreshHeader) == "" {
		p.Flash = c.sessions.takeFlash(v.w, v.r, v.session)
	}
	c.dress(v, &p)
	var b bytes.Buffer
	if err := c.pages[v.lang][name].ExecuteTemplate(&b, "layout", p); err != nil {
		return fmt.Errorf("make page %s: %w", name, err)
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.Header().Set("Content-Language", string(v.lang))
	v.w.WriteHeader(status)
	_, _ = v.w.Write(b.Bytes()) // the browser may be gone
	return nil
}

// failure is the content of an error page.
type failure struct {
	Status  int
	Heading string
	Text    string // key of the catalogue, "" when there is only Detail
	Detail  string // in English
}

func (c *Console) showProblem(v *visit, e *problem.Error) {
	if e.RetryAfter > 0 {
		v.w.Header().Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	status := httpstatus.Of(e)
	f := failure{Status: status, Heading: "error.other"}
	switch e.Kind { //nolint:exhaustive // the others share a heading
	case problem.Missing:
		f.Heading = "error.not_found"
	case problem.Forbidden:
		f.Heading = "error.forbidden"
	case problem.Conflict:
		f.Heading = "error.conflict"
	case problem.Limited:
		f.Heading = "error.too_many"
	case problem.Unavailable:
		f.Heading = "error.unavailable"
	}
	if len(e.Problems) > 0 {
		f.Detail = e.Problems[0].Detail
		if key := "problem." + e.Problems[0].Code; known(key) {
			f.Text = key
		}
	}
	if err := c.show(v, status, "error", page{Title: f.Heading, Data: f}); err != nil {
		v.w.WriteHeader(http.StatusInternalServerError)
		c.Log.Error("the error page cannot be made: " + err.Error())
	}
}

// funcs of the templates.
func (l language) funcs(assets map[string]string) template.FuncMap {
	return template.FuncMap{
		"t": l.html, "ts": l.text, "count": l.count,
		"time": when, "ms": l.milliseconds, "bytes": l.size, "number": l.number,
		"plain": visible, "body": visibleBody, "link": objectLink, "search": searchLink,
		"asset":     func(name string) string { return "/static/" + assets[name] },
		"languages": languages,
		"rfc3339":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"seconds":   l.seconds,
		"sorted":    func(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) },
		"string":    func(s any) string { return fmt.Sprint(s) },
		"state":     func(s string) string { return "state." + s },
		"reason":    l.reason,
		"dict":      dict,
		"states":    notification.States,
		"add":       func(a, b int) int { return a + b },
		"english":   func() bool { return l == english },
	}
}

// dict makes a map of pairs, for templates that call others.
func dict(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		key, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: %v is no name", pairs[i])
		}
		m[key] = pairs[i+1]
	}
	return m, nil
}

// when shows a time: in UTC, until the script puts it into the viewer's zone. The forms: relative ("3 min
// ago"), full (date and time), clock (time of day) and countdown (the time until then).
func when(form string, t any) (template.HTML, error) {
	var at time.Time
	switch v := t.(type) {
	case time.Time:
		at = v
	case *time.Time:
		if v != nil {
			at = *v
		}
	default:
		return "", fmt.Errorf("time: %T is none", t)
	}
	if at.IsZero() {
		return "–", nil
	}
	at = at.UTC()
	return template.HTML(fmt.Sprintf(`<time datetime="%s" data-form="%s">%s</time>`, //nolint:gosec // nothing of it is a stranger's
		at.Format("2006-01-02T15:04:05.000Z07:00"), html.EscapeString(form), at.Format("2006-01-02 15:04:05 UTC"))), nil
}

// moment is when for code.
func moment(form string, t time.Time) template.HTML {
	h, _ := when(form, t) // a time is one
	return h
}

// number writes n with the language's separators.
func (l language) number(n any) (string, error) {
	switch p := n.(type) {
	case *uint64:
		if p != nil {
			n = *p
		}
	case *int:
		if p != nil {
			n = *p
		}
	}
	digits := fmt.Sprint(n)
	for _, r := range digits {
		if !unicode.IsDigit(r) {
			return "", fmt.Errorf("number: %v is none", n)
		}
	}
	separator := ","
	if l == portuguese {
		separator = "."
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + separator + digits[i:]
	}
	return digits, nil
}

// decimal writes f with one digit after the point, or none where it says nothing.
func (l language) decimal(f float64) string {
	s := strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0")
	if l == portuguese {
		s = strings.Replace(s, ".", ",", 1)
	}
	return s
}

func (l language) milliseconds(ms float64) string {
	switch {
	case ms < 10:
		return l.decimal(ms) + " ms"
	case ms < 1000:
		return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
	}
	return l.decimal(ms/1000) + " s"
}

func (l language) seconds(n uint64) string {
	switch {
	case n < 120:
		return strconv.FormatUint(n, 10) + " s"
	case n < 7200:
		return strconv.FormatUint((n+59)/60, 10) + " min"
	}
	return l.decimal(float64(n)/3600) + " h"
}

func (l language) size(n any) (string, error) {
	var b uint64
	switch v := n.(type) {
	case int:
		b = uint64(max(v, 0))
	case uint64:
		b = v
	default:
		return "", fmt.Errorf("bytes: %T is no size", n)
	}
	value, unit := bytesize.Of(b)
	return l.decimal(value) + " " + unit, nil
}

// visible shows a stranger's text on one line: control characters, and those that change the direction
// of writing or cannot be seen, as their code.
func visible(v any) string {
	if p, ok := v.(*string); ok {
		if p == nil {
			return ""
		}
		v = *p
	}
	return reveal(fmt.Sprint(v), false)
}

// visibleBody is visible for a text of several lines.
func visibleBody(v any) string {
	if b, ok := v.([]byte); ok {
		v = string(b)
	}
	return reveal(strings.ReplaceAll(fmt.Sprint(v), "\r\n", "\n"), true)
}

func reveal(s string, lines bool) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return hidden(r, lines) || r == unicode.ReplacementChar }) {
		return s
	}
	var b strings.Builder
	for _, r := range s { // bytes that are not UTF-8 come as U+FFFD
		if hidden(r, lines) {
			fmt.Fprintf(&b, `\u%04X`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func hidden(r rune, lines bool) bool {
	if lines && (r == '\n' || r == '\t') {
		return false
	}
	// Joiners are part of how scripts and emoji are written.
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) && r != '\u200c' && r != '\u200d' || r == '\u2028' ||
		r == '\u2029'
}

// static is one file of the console.
type static struct {
	body []byte
	kind string
}

// ServeHTTP serves the file, whose name changes with its content.
func (s static) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	harden(w.Header())
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("Content-Type", s.kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(s.body)))
	_, _ = w.Write(s.body) // the browser may be gone
}

// assetNames maps each file to the name it is served under.
func assetNames() (map[string]string, error) {
	names := map[string]string{}
	err := fs.WalkDir(staticFiles, "static", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := staticFiles.ReadFile(p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		ext := path.Ext(p)
		names[path.Base(p)] = strings.TrimSuffix(path.Base(p), ext) + "." +
			base64.RawURLEncoding.EncodeToString(sum[:9]) + ext
		return nil
	})
	return names, err
}

func loadStatic() (map[string]static, error) {
	names, err := assetNames()
	if err != nil {
		return nil, err
	}
	files := map[string]static{}
	for name, served := range names {
		body, err := staticFiles.ReadFile("static/" + name)
		if err != nil {
			return nil, err
		}
		kind := mime.TypeByExtension(path.Ext(name))
		switch path.Ext(name) { // not the machine's opinion
		case ".css":
			kind = "text/css; charset=utf-8"
		case ".js":
			kind = "text/javascript; charset=utf-8"
		case ".svg":
			kind = "image/svg+xml"
		}
		files[served] = static{body, kind}
	}
	return files, nil
}
