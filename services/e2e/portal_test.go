package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// crm is another site, whose page has a frame.
type crm struct {
	url, strange string // the site's address, and another one of it that is not on the list
	frame        atomic.Value
}

func newCRM(t *testing.T) *crm {
	t.Helper()
	c := &crm{}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		if r.URL.Path == "/" {
			fmt.Fprintf(w, `<link rel="icon" href="data:,"><h1>CRM</h1><iframe src="%s" width="1100" height="700"></iframe>`, c.frame.Load())
		}
	}))
	t.Cleanup(srv.Close)
	// The two are sites of their own: localhost and 127.0.0.1.
	c.url, c.strange = strings.Replace(srv.URL, "127.0.0.1", "localhost", 1), strings.Replace(srv.URL, "127.0.0.1", "elsewhere.localhost", 1)
	return c
}

// testPortalInAFrame shows the console in a frame of another site, in a browser that sends no third-party cookies: a
// customer goes on, changes the webhook, signs out. A site that is not on the list gets no frame.
func testPortalInAFrame(t *testing.T, s *system, site *crm) {
	c := newChrome(t, "Blocked autofocusing", chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("test-third-party-cookie-phaseout", true),
		// Frames of another site stay in the page's process, where the test can reach them.
		chromedp.Flag("disable-site-isolation-trials", true), chromedp.Flag("disable-features", "IsolateOrigins,site-per-process,Translate"))

	var third atomic.Bool
	api, err := url.Parse(s.APIURL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(api)
			r.Out.Host = r.In.Host
			r.SetXForwarded()
			if _, err := r.In.Cookie("third"); err == nil {
				third.Store(true)
			}
		},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Add("Set-Cookie", "third=1; Path=/; Secure; SameSite=None") // what such a browser keeps away
			return nil
		},
	})
	t.Cleanup(proxy.Close)
	h := s.register(dealCreated, "https://hooks.example.com/deals")
	link := func() string {
		t.Helper()
		var made struct {
			URL string `json:"url"`
		}
		s.call(http.MethodPost, "/crm/v2/portal_links", map[string]any{"webhook_id": h.ID, "scope": "write", "theme": map[string]any{"accent": "#7a1f5c"}}, &made)
		return proxy.URL + strings.TrimPrefix(made.URL, s.APIURL)
	}

	site.frame.Store(link())
	c.do("the CRM's page", chromedp.Navigate(site.url+"/"), shown("iframe"))
	c.inFrame("go on", "#go-on", "#traffic")
	c.inFrame("suspend", "#suspend-open", "#suspend:popover-open button.primary")
	c.inFrame("confirm", "#suspend button.primary", ".notice-ok")
	c.inFrame("a new secret", "button[popovertarget=rotate]", "#rotate:popover-open button.primary")
	c.inFrame("confirm", "#rotate button.primary", "#secret")
	c.inFrame("the other language", "button[lang=pt-BR]", "html[lang=pt-BR] #traffic")
	c.inFrame("the tail", "a[href='/tail']", "#tail-state.on")
	if third.Load() {
		t.Error("the browser sends third-party cookies: the test shows nothing")
	}
	c.inFrame("sign out", "form[action='/sign-out'] button", "p[role=alert]")

	c.patient.Store(true) // it says that it refuses
	site.frame.Store(link())
	c.do("a strange page", chromedp.Navigate(site.strange+"/"), shown("iframe"))
	c.until("it gets no frame", `document.querySelector("iframe").contentDocument === null`)
	frames, err := chromedp.Run(c.ctx, chromedp.Nodes(chromedp.CSS("iframe")))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := chromedp.Run(c.ctx, chromedp.Nodes(chromedp.CSS("#go-on"), chromedp.FromNode(frames[0]), chromedp.AtLeast(0))); err == nil && len(n) > 0 {
		t.Error("a site that is not on the list shows the console")
	}
}

// inFrame clicks on an element in the page's frame and waits until another one is shown there. The frame is looked up
// for each: it is another document after each click.
func (c *chrome) inFrame(what, selector, then string) {
	c.t.Helper()
	try := func(selector string, action func(in chromedp.QueryOption) step) {
		c.t.Helper()
		var err error
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			ctx, cancel := context.WithTimeout(c.ctx, 3*time.Second)
			var frames []*chromedp.Node
			if frames, err = chromedp.Run(ctx, chromedp.Nodes(chromedp.CSS("iframe"))); err == nil {
				err = chromedp.Do(ctx, action(chromedp.FromNode(frames[0])))
			}
			cancel()
			if err == nil {
				return
			}
		}
		c.t.Fatalf("%s: %s: %v", what, selector, err)
	}
	try(selector, func(in chromedp.QueryOption) step {
		return chromedp.Click(chromedp.CSS(selector), in, chromedp.NodeVisible)
	})
	try(then, func(in chromedp.QueryOption) step { return chromedp.WaitVisible(chromedp.CSS(then), in) })
}
