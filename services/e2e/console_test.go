package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// chrome is a tab of a real browser. What the page or the browser complains about, such as a script's error
// or a breach of the Content-Security-Policy, fails the test.
type chrome struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // chromedp keeps the browser in it

	patient atomic.Bool // complaints do not fail the test
	ignored string      // nor do those with this text
}

// newChrome starts a headless Chromium that ends with the test. Complaints that hold ignored, if not "", do not count.
func newChrome(t *testing.T, ignored string, more ...chromedp.ExecAllocatorOption) *chrome {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: starts chromium, which may not be installed")
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), slices.Concat(chromedp.DefaultExecAllocatorOptions[:], []chromedp.ExecAllocatorOption{
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("lang", "en"),
	}, more)...)
	t.Cleanup(stop)
	ctx, closeTab := chromedp.NewContext(allocator)
	t.Cleanup(closeTab)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start chromium (the package chromium, or google-chrome): %v", err)
	}
	complaints := chromedp.Console(ctx)
	c := &chrome{t: t, ctx: ctx, ignored: ignored}
	told := make(chan struct{})
	go func() {
		defer close(told)
		for m, err := range complaints {
			if err != nil {
				return
			}
			switch m.Type { // the others are advice
			case chromedp.ConsoleWarning, chromedp.ConsoleError, chromedp.ConsoleException:
				if !c.patient.Load() && (c.ignored == "" || !strings.Contains(fmt.Sprint(m), c.ignored)) {
					t.Errorf("the browser's console: %s", m)
				}
			}
		}
	}()
	t.Cleanup(func() { closeTab(); <-told })
	return c
}

type step = chromedp.Action[chromedp.Void]

// replaced is Chromium's answer about an element of a document that gave way to another one before anything was done.
const replaced = "Could not find node with given id"

// do runs steps, each of which waits for its element.
func (c *chrome) do(what string, steps ...step) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	for _, step := range steps {
		err := chromedp.Do(ctx, step)
		for err != nil && strings.Contains(err.Error(), replaced) && ctx.Err() == nil {
			err = chromedp.Do(ctx, step)
		}
		if err != nil {
			c.t.Fatalf("%s: %v\nthe page says:\n%s", what, err, c.text("body"))
		}
	}
}

// text is what an element shows.
func (c *chrome) text(selector string) string {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS(selector)))
	if err != nil {
		return err.Error()
	}
	return text
}

// follow clicks a link by script: the rows of a live list move under a mouse.
func (c *chrome) follow(what, selector string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](fmt.Sprintf("document.querySelector(%q).click() === undefined", selector))); err != nil {
		c.t.Fatalf("%s: %v\nthe page says:\n%s", what, err, c.text("body"))
	}
}

// until waits until a condition of JavaScript holds on the page.
func (c *chrome) until(what, condition string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](condition, chromedp.WithPollingTimeout(time.Minute))); err != nil {
		c.t.Fatalf("%s: %v\nthe page says:\n%s", what, err, c.text("body"))
	}
}

func click(selector string) step { return chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible) }

func enter(selector, text string) step {
	return chromedp.SendKeys(chromedp.CSS(selector), text, chromedp.NodeVisible)
}
func shown(selector string) step { return chromedp.WaitVisible(chromedp.CSS(selector)) }
func gone(selector string) step  { return chromedp.WaitNotPresent(chromedp.CSS(selector)) }

// testConsoleInABrowser does what an owner does on a bad day: sign in, register a webhook, see it fail as it
// happens, find it suspended, resume it once its receiver works, and send again what was given up.
func testConsoleInABrowser(t *testing.T, s *system) {
	c := newChrome(t, "")
	rc := newReceiver(t, func(w http.ResponseWriter, _ string) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `<script>document.title = "taken over"</script>`)
	})

	c.do("sign in", chromedp.Navigate(s.APIURL+"/"), enter("#token", token+"\r"), shown("h1"), shown("a[href='/webhooks/new']"))
	c.do("register", click("a[href='/webhooks/new']"), enter("#f-name", "Negócios <script>"), enter("#f-event_name", dealCreated),
		enter("#f-url", rc.URL+"/in"), click("form.form button.primary"), shown("#secret"))
	h := hook{ID: s.path(c)[len("/webhooks/"):]}

	c.do("watch", chromedp.Navigate(s.APIURL+"/tail"), shown("#tail-state.on"))
	first := s.publish(dealCreated)
	c.do("a failure appears", shown("#tail tbody tr .chip-failed"))
	id := ids(dealCreated, h, []string{first})[0]
	c.follow("its row", "#tail tbody tr th a")
	c.do("its timeline", shown("#timeline"))
	if got := s.path(c); got != "/notifications/"+id {
		t.Errorf("the row leads to %s, want the notification %s", got, id)
	}
	c.until("it fails for good before the reader's eyes", `document.querySelectorAll("#timeline .step-failed").length === 6 && document.querySelector("#chips .chip-permanently_failed") !== null`)
	c.do("the answer", click("#response-0 summary"), shown("#response-0 pre"))
	if got := c.text("#response-0 pre"); !strings.Contains(got, `<script>document.title = "taken over"</script>`) {
		t.Errorf("the answer is shown as %q", got)
	}

	c.do("the webhook", chromedp.Navigate(s.APIURL+"/webhooks/"+h.ID), shown("#rows tbody tr"))
	s.publish(dealCreated)
	c.do("its suspension appears", shown("#resume"), gone("#suspend-open"))
	second := s.publish(dealCreated)
	c.do("what comes now waits", shown("#rows .chip-parked"))
	if got := c.text("#suspension"); !strings.Contains(got, "Suspended: it always failed") || !strings.Contains(got, "500") {
		t.Errorf("the banner says %q", got)
	}
	rc.become(succeed)
	c.do("resume", click("#resume"), gone("#resume"), shown("#chips .chip-active"), shown("#suspend-open"))
	c.do("what waited is delivered", shown("#rows .chip-delivered"))
	s.waitAll(ids(dealCreated, h, []string{second}), "delivered")

	c.do("send again", chromedp.Navigate(s.APIURL+"/failures"), click("input[value='"+id+"']"), click("button[data-some]"), shown(".notice-ok"))
	c.do("it is on its way", chromedp.Navigate(s.APIURL+"/notifications/"+id), shown("#timeline .step-delivered"), shown("#chips .chip-delivered"))
	s.waitAll([]string{id}, "delivered")

	c.do("sign out", click("form[action='/sign-out'] button"), shown("#token"))
}

// path is where the browser is.
func (s *system) path(c *chrome) string {
	s.t.Helper()
	at, err := chromedp.Run(c.ctx, chromedp.Location())
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimPrefix(at, s.APIURL)
}
