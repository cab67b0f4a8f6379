package console

import (
	"html/template"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gancho/pkg/condition"
	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/seal"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/revocation"
)

var place = regexp.MustCompile(`\{[a-z]+\}`)

func TestEveryTextIsInEveryLanguage(t *testing.T) {
	t.Parallel()
	for key, text := range allTexts() {
		for _, l := range languages() {
			s := text.in(l)
			if s == "" || strings.TrimSpace(s) != s || strings.ContainsAny(s, "<>\n") {
				t.Errorf("%s in %s: %q", key, l, s)
			}
			got, want := place.FindAllString(s, -1), place.FindAllString(text.en, -1)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
				t.Errorf("%s in %s has the places %v, want %v", key, l, got, want)
			}
		}
	}
}

// TestEveryTextExistsAndIsUsed reads the templates and the code.
func TestEveryTextExistsAndIsUsed(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	var source strings.Builder
	for _, pattern := range []string{"*.go", "templates/*.html"} {
		files, err := fs.Glob(os.DirFS("."), pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if f == "texts.go" || strings.HasSuffix(f, "_test.go") {
				continue
			}
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(text)
		}
	}
	for _, m := range regexp.MustCompile(`(?:\b(?:t|ts) |\.(?:html|text)\()"([a-z0-9_.]+[a-z0-9_])"`).FindAllStringSubmatch(source.String(), -1) {
		used[m[1]] = true
		if !known(m[1]) {
			t.Errorf("the catalogue has no %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`\bcount "([a-z0-9_.]+)"`).FindAllStringSubmatch(source.String(), -1) {
		for _, n := range []string{".one", ".other"} {
			if used[m[1]+n] = true; !known(m[1] + n) {
				t.Errorf("the catalogue has no %s", m[1]+n)
			}
		}
	}
	// Keys that are put together from words of closed lists.
	var made []string
	for _, s := range notification.States() {
		made = append(made, "state."+string(s))
	}
	for _, s := range []string{"active", "suspended", "disabled"} {
		made = append(made, "state."+s)
	}
	for _, s := range []replays.State{replays.Preview, replays.Running, replays.Paused, replays.Done, replays.Cancelled} {
		made = append(made, "replay.state."+string(s))
	}
	for _, k := range []notification.Kind{notification.KindParked, notification.KindCancelled, notification.KindFailed, notification.KindExpired} {
		made = append(made, "step."+string(k))
	}
	for _, r := range delivery.Reasons() {
		made = append(made, "reason."+string(r))
	}
	for _, r := range []string{notification.Suspended, notification.Disabled, notification.Saturated, notification.Superseded} {
		made = append(made, "reason."+r)
	}
	for _, o := range condition.Ops() {
		made = append(made, "op."+string(o))
	}
	for _, s := range spans() {
		made = append(made, spanKey(s))
	}
	for _, o := range outcomes() {
		made = append(made, "outcome."+o)
	}
	for _, why := range []webhook.Why{webhook.OtherName, webhook.ByCondition, webhook.RegisteredLater, webhook.IsDisabled} {
		made = append(made, "event.why."+string(why))
	}
	for _, p := range []string{"dns", "connect", "tls", "first_byte", "other", "no_answer"} {
		made = append(made, "phase."+p)
	}
	for _, key := range made {
		if used[key] = true; !known(key) {
			t.Errorf("the catalogue has no %s", key)
		}
	}
	for key := range allTexts() {
		if !used[key] && !strings.HasPrefix(key, "problem.") && !strings.Contains(source.String(), `"`+key+`"`) {
			t.Errorf("%s is never used", key)
		}
	}
}

func TestVisible(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Negócios & 日本 👩‍💻": "Negócios & 日本 👩‍💻", "a\u202eb\u2066c": `a\u202Eb\u2066c`, "a\nb\x00": `a\u000Ab\u0000`, "\u200bx\ufeff": `\u200Bx\uFEFF`,
		"\xff": "\ufffd", "<b>": "<b>",
	} {
		if got := visible(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := visibleBody("a\r\n\tb\x1b[31m\u202e"); got != "a\n\tb\\u001B[31m\\u202E" {
		t.Errorf("body: %q", got)
	}
}

func TestTextsEscape(t *testing.T) {
	t.Parallel()
	if got := english.html("done.deleted", "name", `<b>{name}&`); got != "“&lt;b&gt;{name}&amp;” was deleted." {
		t.Errorf("got %s", got)
	}
	if got := english.html("replay.zone", "zone", template.HTML("<i>")); got != "Times are in <i>." {
		t.Errorf("got %s", got)
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		l    language
		n    any
		want string
	}{{english, 0, "0"}, {english, 1234567, "1,234,567"}, {portuguese, uint64(12345), "12.345"}, {english, "999", "999"}, {portuguese, 1000, "1.000"}} {
		if got, err := tc.l.number(tc.n); got != tc.want || err != nil {
			t.Errorf("%v: got %s, %v, want %s", tc.n, got, err, tc.want)
		}
	}
	if _, err := english.number("1<b>"); err == nil {
		t.Error("no number must be an error")
	}
	if got := portuguese.milliseconds(1530); got != "1,5 s" {
		t.Errorf("got %s", got)
	}
}

func TestDraw(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a := index.Activity{Span: 24 * time.Hour}
	a.Bars[index.Bars-1] = index.Bar{Delivered: 1, Open: 1}
	a.Bars[index.Bars-2] = index.Bar{Failed: 300}
	c := english.draw(a, now, 5, 2, 32)
	last, before := c.Bars[index.Bars-1], c.Bars[index.Bars-2]
	if c.Span != "span.24h" || c.Delivered != 1 || c.Open != 1 || c.Failed != 300 || c.Total != 302 || len(last.Parts) != 2 || before.Failed != 300 {
		t.Errorf("chart %+v", c)
	}
	if !last.To.Equal(now) || !last.From.Equal(now.Add(-time.Hour)) || !before.To.Equal(last.From) {
		t.Errorf("the last bar is from %v to %v", last.From, last.To)
	}
	for _, b := range c.Bars {
		for _, p := range b.Parts {
			if p.Y < 0 || p.Y+p.Height > c.Height {
				t.Errorf("a part is outside: %+v", p)
			}
		}
	}
	for _, span := range spans() {
		if c := english.draw(index.Activity{Span: span}, now, 5, 2, 32); c.Span != spanKey(span) || c.Total != 0 {
			t.Errorf("an idle webhook's chart: %s, %d", c.Span, c.Total)
		}
	}
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	s := &sessions{keys: seal.New(), ended: revocation.New(nil)}
	v := newSession("token")
	if d := time.Until(v.Ends); d < sessionLasts-time.Minute || d > sessionLasts {
		t.Errorf("a session lasts %v", d)
	}
	if got := s.open(s.sealed(v)); got == nil || got.Token != "token" {
		t.Errorf("opened: %+v", got)
	}
	if other := (&sessions{keys: seal.New(), ended: revocation.New(nil)}); other.open(s.sealed(v)) != nil {
		t.Error("opened under another key")
	}
	v.Ends = time.Now().Add(-time.Second)
	if s.open(s.sealed(v)) != nil {
		t.Error("a session that has ended is open")
	}
}
