package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// transport answers requests without a network, so that time can be that of a bubble.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, body string, header ...string) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}
}

func newClient(t *testing.T, f transport) *Client {
	t.Helper()
	c, err := New(Config{URL: "https://gancho.example/base/", Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	c.http.Transport = f
	return c
}

const slowDown = `{"errors":[{"code":"rate_limited","detail":"this token makes more requests than it may"}]}`

func TestRateLimit(t *testing.T) {
	t.Parallel()
	type said struct {
		status int
		body   string
		header []string
	}
	ok := said{200, `{"data":{}}`, nil}
	for name, tc := range map[string]struct {
		answers []said // the last one stays
		calls   int
		took    time.Duration
		status  int // of the error, 0 for none
	}{
		"waits as told":     {[]said{{429, slowDown, []string{"Retry-After", "7"}}, ok}, 2, 7 * time.Second, 0},
		"waits without":     {[]said{{429, slowDown, nil}, ok}, 2, time.Second, 0},
		"waits for a proxy": {[]said{{429, "<html>", []string{"Content-Type", "text/html", "Retry-After", "2"}}, ok}, 2, 2 * time.Second, 0},
		"not for ever":      {[]said{{429, slowDown, []string{"Retry-After", "1"}}}, maxTries, (maxTries - 1) * time.Second, 429},
		"not too long":      {[]said{{429, slowDown, []string{"Retry-After", "61"}}}, 1, 0, 429},
		"nothing else":      {[]said{{503, slowDown, []string{"Retry-After", "1"}}}, 1, 0, 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				c := newClient(t, func(r *http.Request) (*http.Response, error) {
					calls++
					if body, _ := io.ReadAll(r.Body); string(body) != `{"x":1}` {
						t.Errorf("call %d has the body %q", calls, body)
					}
					a := tc.answers[min(calls, len(tc.answers))-1]
					return answer(a.status, a.body, a.header...), nil
				})
				began := time.Now()
				_, err := c.SendEvent(t.Context(), "crm_deal_created", []byte(`{"x":1}`))
				refused, _ := errors.AsType[*Error](err)
				if tc.status == 0 && err != nil || tc.status != 0 && (refused == nil || refused.Status != tc.status) {
					t.Errorf("got %v, want status %d", err, tc.status)
				}
				if took := time.Since(began); calls != tc.calls || took != tc.took {
					t.Errorf("%d calls in %v; want %d in %v", calls, took, tc.calls, tc.took)
				}
			})
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 21, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, " 5 ": 5 * time.Second, "-1": 0, "soon": 0, "99999999999": 0,
		"Wed, 21 Jan 2026 12:00:30 GMT": 30 * time.Second, "Wed, 21 Jan 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cfg  Config
		want string // the base, "" for an error
	}{
		"default":       {Config{Token: "t"}, DefaultURL},
		"slash":         {Config{URL: "https://gancho.example/", Token: "t"}, "https://gancho.example"},
		"whole prefix":  {Config{URL: "https://gancho.example/crm/v2/", Token: "t"}, "https://gancho.example"},
		"below a path":  {Config{URL: "https://example.com/gancho", Token: "t"}, "https://example.com/gancho"},
		"no scheme":     {Config{URL: "gancho.example", Token: "t"}, ""},
		"other scheme":  {Config{URL: "ftp://gancho.example", Token: "t"}, ""},
		"user":          {Config{URL: "https://me:pass@gancho.example", Token: "t"}, ""},
		"query":         {Config{URL: "https://gancho.example/?a=b", Token: "t"}, ""},
		"no token":      {Config{}, ""},
		"token of file": {Config{Token: "t\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := New(tc.cfg)
			if (err == nil) != (tc.want != "") {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if err == nil && c.URL() != tc.want {
				t.Errorf("got %s, want %s", c.URL(), tc.want)
			}
		})
	}
}

// TestTokenStays sees that no answer makes the client send its token anywhere else.
func TestTokenStays(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked elsewhere: %s", r.URL)
	}))
	defer elsewhere.Close()
	calls := 0
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/notifications") && calls == 1:
			_, _ = io.WriteString(w, `{"data":[{"id":"1"}],"links":{"next":"`+elsewhere.URL+`/x?cursor=2"},"has_more":true}`)
		case strings.HasSuffix(r.URL.Path, "/notifications"):
			if got := r.URL.RequestURI(); got != "/crm/v2/webhooks/w/notifications?cursor=2" {
				t.Errorf("asked %s", got)
			}
			_, _ = io.WriteString(w, `{"data":[{"id":"2"}],"links":{"next":null},"has_more":false}`)
		default:
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}
	}))
	defer api.Close()
	c, err := New(Config{URL: api.URL, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	var ids string
	for n, err := range c.Notifications(t.Context(), "w", Range{}, 0, nil) {
		if err != nil {
			t.Fatal(err)
		}
		ids += n.Value.ID
	}
	if ids != "12" {
		t.Errorf("got %q, want both pages", ids)
	}
	_, err = c.Webhook(t.Context(), "w")
	if unexpected, ok := errors.AsType[*Unexpected](err); !ok || unexpected.Status != 307 {
		t.Errorf("got %v, want a refused redirect", err)
	}
}

func TestAnswersThatAreNotGanchos(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]func() *http.Response{
		"HTML":         func() *http.Response { return answer(200, "<html>", "Content-Type", "text/html") },
		"HTML error":   func() *http.Response { return answer(404, "<html>", "Content-Type", "text/html") },
		"empty error":  func() *http.Response { return answer(500, `{}`) },
		"list":         func() *http.Response { return answer(200, `{"data":[1]}`) },
		"cut off":      func() *http.Response { return answer(200, `{"data":{"id":`) },
		"much too big": func() *http.Response { return answer(200, strings.Repeat(" ", maxAnswer+1)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, func(*http.Request) (*http.Response, error) { return a(), nil })
			_, err := c.Webhook(t.Context(), "w")
			if _, ok := errors.AsType[*Unexpected](err); !ok {
				t.Errorf("got %v (%T)", err, err)
			}
		})
	}
}

func TestPathsAreEscaped(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(r *http.Request) (*http.Response, error) {
		if want := "https://gancho.example/base/crm/v2/webhooks/..%2Fnotifications%2Fx%3Fy"; r.URL.String() != want {
			t.Errorf("asked %s, want %s", r.URL, want)
		}
		return answer(200, `{"data":{}}`), nil
	})
	if _, err := c.Webhook(t.Context(), "../notifications/x?y"); err != nil {
		t.Fatal(err)
	}
}

// silence is a body that never brings anything, until its request ends.
type silence struct{ ctx context.Context } //nolint:containedctx // of the request

func (s silence) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }
func (silence) Close() error               { return nil }

func TestSilentServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: silence{r.Context()}}, nil
		})
		began := time.Now()
		_, err := c.Webhook(t.Context(), "w")
		if _, ok := errors.AsType[*NoAnswer](err); !ok || time.Since(began) != callWithin {
			t.Errorf("got %v after %v, want no answer after %v", err, time.Since(began), callWithin)
		}
	})
}
