package delivery

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// client is one of the token server at url.
func client(url string) *OAuth2 {
	return &OAuth2{TokenURL: url + "/token", ClientID: "crm", ClientSecret: "s3cret-of-client"}
}

// tokens is a token server that issues token-1, token-2 and so on, which live for seconds.
type tokenServer struct {
	url     string
	issued  atomic.Int64
	seconds atomic.Int64
}

func newTokenServer(tb testing.TB, cfg *tls.Config, seconds int64) *tokenServer {
	ts := &tokenServer{}
	ts.seconds.Store(seconds)
	ts.url = receiver(tb, cfg, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":%d}`, ts.issued.Add(1), ts.seconds.Load())
	})
	return ts
}

func TestTokenRequest(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	h2 := ca.server(t)
	h2.NextProtos = []string{"h2"}
	for name, cfg := range map[string]*tls.Config{"http": nil, "https1": ca.server(t), "https2": h2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var form url.Values
			var id, secret, accept string
			var got []string
			server := receiver(t, cfg, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if r.URL.Path != "/token" {
					got = append(got, r.Header.Get("Authorization")+" "+r.Header.Get("X-Api-Key"))
					return
				}
				_ = r.ParseForm()
				form, accept = r.PostForm, r.Header.Get("Accept")
				id, secret, _ = r.BasicAuth()
				_, _ = io.WriteString(w, `{"access_token":"opaque.to-us","token_type":"bearer","expires_in":"3600"}`)
			})
			s := newSender(t, ca, 5*time.Second)
			r := request(server + "/hook")
			r.AuthHeader, r.AuthKey = "X-Api-Key", "beside it"
			r.OAuth2 = &OAuth2{TokenURL: server + "/token?tenant=a%26b", ClientID: "crm:eu", ClientSecret: "a b+c%d:é", Scope: "hooks read", Audience: "https://api.test/?x=1"}
			for range 2 {
				o := s.Send(t.Context(), r)
				if !o.Delivered {
					t.Fatal(o.Detail)
				}
				if shown := o.RequestHeaders.Get("Authorization"); shown != mask {
					t.Errorf("the log keeps %q", shown)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if want := "Bearer opaque.to-us beside it"; len(got) != 2 || got[0] != want || got[1] != want {
				t.Errorf("the receiver got %q, want %q twice", got, want)
			}
			// RFC 6749, section 2.3.1: id and secret are form-encoded before they are joined.
			if id != "crm%3Aeu" || secret != "a+b%2Bc%25d%3A%C3%A9" {
				t.Errorf("the client is %q, %q", id, secret)
			}
			if want := "audience=https%3A%2F%2Fapi.test%2F%3Fx%3D1&grant_type=client_credentials&scope=hooks+read"; form.Encode() != want {
				t.Errorf("the form is %s, want %s", form.Encode(), want)
			}
			if accept != "application/json" {
				t.Errorf("Accept: %s", accept)
			}
		})
	}
}

// TestTokenLife: a token is used until a tenth of its life or 30 s, whichever is less, is left.
func TestTokenLife(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		answer string
		used   time.Duration
	}{
		{`{"access_token":"t","expires_in":3600}`, 3570 * time.Second},
		{`{"access_token":"t","expires_in":300}`, 270 * time.Second},
		{`{"access_token":"t","expires_in":299}`, 269100 * time.Millisecond},
		{`{"access_token":"t","expires_in":10.0}`, 9 * time.Second},
		{`{"access_token":"t","expires_in":"10"}`, 9 * time.Second},
		{`{"access_token":"t","expires_in":1}`, 900 * time.Millisecond},
		{`{"access_token":"t","expires_in":0}`, 0},
		{`{"access_token":"t","expires_in":-5}`, 0},
		{`{"access_token":"t","expires_in":1e300}`, longestLife - leastLeft},
		{`{"access_token":"t","expires_in":null}`, unknownLife - leastLeft},
		{`{"access_token":"t"}`, unknownLife - leastLeft},
	} {
		_, life, err := parseToken([]byte(tc.answer))
		if err != nil {
			t.Errorf("%s: %v", tc.answer, err)
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			o := client("http://127.0.0.1")
			f := &fetch{done: make(chan struct{})}
			o.end(f, "t", life, nil)
			if used := time.Until(o.until); used != tc.used {
				t.Errorf("%s: used for %v, want %v", tc.answer, used, tc.used)
			}
		})
	}
}

// TestTokenIsFetchedOnce however many attempts wait for it, and again after a 401, once.
func TestTokenIsFetchedOnce(t *testing.T) {
	t.Parallel()
	const n = 50
	ts := newTokenServer(t, nil, 3600)
	var refused atomic.Bool
	server := receiver(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if refused.Load() && r.Header.Get("Authorization") == "Bearer token-1" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	s := newSender(t, nil, 10*time.Second)
	r := request(server)
	r.OAuth2 = client(ts.url)
	all := func() (delivered, unauthorized int64) {
		var ok, no atomic.Int64
		var group sync.WaitGroup
		for range n {
			group.Go(func() {
				switch o := s.Send(t.Context(), r); {
				case o.Delivered:
					ok.Add(1)
				case o.Status == http.StatusUnauthorized && o.Reason == Status4xx:
					no.Add(1)
				default:
					t.Error(o.Detail)
				}
			})
		}
		group.Wait()
		return ok.Load(), no.Load()
	}
	if ok, _ := all(); ok != n || ts.issued.Load() != 1 {
		t.Fatalf("%d delivered with %d tokens, want %d with 1", ok, ts.issued.Load(), n)
	}
	refused.Store(true)
	if ok, no := all(); ok+no != n || no == 0 || ts.issued.Load() > 2 {
		t.Errorf("%d delivered and %d refused with %d tokens, want 2", ok, no, ts.issued.Load())
	}
	if ok, _ := all(); ok != n || ts.issued.Load() != 2 {
		t.Errorf("after the 401: %d delivered with %d tokens, want %d with 2", ok, ts.issued.Load(), n)
	}
	ts.seconds.Store(0)
	r.OAuth2.drop("token-2")
	for range 3 {
		if o := s.Send(t.Context(), r); !o.Delivered {
			t.Fatal(o.Detail)
		}
	}
	if got := ts.issued.Load(); got != 5 {
		t.Errorf("%d tokens, want 5: those that end at once are not kept", got)
	}
}

// TestBadTokenServers: whatever a token server does is an outcome of the attempt, and the receiver gets no request.
func TestBadTokenServers(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	answer := func(status int, body string) string {
		return receiver(t, nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://127.0.0.1/elsewhere")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
	}
	says := func(text string) string {
		return newRaw(t, nil, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, text)
		}).url
	}
	hangs := newRaw(t, nil, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }).url
	drips := newRaw(t, nil, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
		_, _ = io.Copy(io.Discard, c)
	}).url
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for _, tc := range []struct {
		name, url string
		want      Reason
		detail    string // a part
		after     time.Duration
	}{
		{"hangs", hangs, Timeout, ": the answer took longer than 300ms", 0},
		{"hangs in its body", drips, Timeout, ": its answer took longer than 300ms", 0},
		{"cut", says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), BadResponse, "no JSON object", 0},
		{"cut inside a chunk", says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"), BadResponse, "ended before its time", 0},
		{"500", answer(500, "boom"), Status5xx, ": it answered with status 500", 7 * time.Second},
		{"refuses the client", answer(401, `{"error":"invalid_client","error_description":"s3cret-of-client"}`), Status4xx, "status 401 (invalid_client)", 7 * time.Second},
		{"repeats the secret as its code", answer(400, `{"error":"s3cret-of-client"}`), Status4xx, "status 400", 7 * time.Second},
		{"gone", answer(410, ""), Status4xx, "status 410", 7 * time.Second},
		{"too many", answer(429, ""), RateLimited, "status 429", 7 * time.Second},
		{"redirects", answer(307, ""), Redirect, "status 307", 7 * time.Second},
		{"100 KB token", answer(200, `{"access_token":"`+strings.Repeat("t", 100<<10)+`"}`), BadResponse, "larger than 64 KiB", 0},
		{"10 KB token", answer(200, `{"access_token":"`+strings.Repeat("t", 10<<10)+`"}`), BadResponse, "its token has 10240 bytes; receivers take at most 8192", 0},
		{"endless", answer(200, strings.Repeat(" ", 1<<20)), BadResponse, "larger than 64 KiB", 0},
		{"garbage", answer(200, "<html>"), BadResponse, "no JSON object", 0},
		{"another type of JSON", answer(200, `["t"]`), BadResponse, "no JSON object", 0},
		{"nothing", answer(204, ""), BadResponse, "no JSON object", 0},
		{"no token", answer(200, `{}`), BadResponse, "no access_token", 0},
		{"an empty one", answer(200, `{"access_token":""}`), BadResponse, "no access_token", 0},
		{"a number", answer(200, `{"access_token":1}`), BadResponse, "no JSON object", 0},
		{"two lines", answer(200, `{"access_token":"a\r\nX-Admin: 1"}`), BadResponse, "characters that no header may have", 0},
		{"another type", answer(200, `{"access_token":"t","token_type":"mac"}`), BadResponse, "not of the type Bearer", 0},
		{"life that is no number", answer(200, `{"access_token":"t","expires_in":"soon"}`), BadResponse, "expires_in is not a number", 0},
		{"not HTTP", says("s3cret-of-client\r\n\r\n"), BadResponse, `the answer is not HTTP: it begins with "***"`, 0},
		{"many headers", says("HTTP/1.1 200 OK\r\n" + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 70) + "\r\n"), HeaderLimit, "larger than 64 KiB", 0},
		{"hangs up", says(""), Connect, "connection was lost before an answer", 0},
		{"is not there", "http://" + closed.Addr().String(), Connect, "connecting: ", 0},
		{"another authority", receiver(t, other.server(t), func(http.ResponseWriter, *http.Request) {}), TLS, "TLS handshake: ", 0},
		{"an address inside", "http://192.168.7.7", BlockedAddress, "address 192.168.7.7 is refused", 0},
		{"a name inside", "http://auth.invalid", DNS, "looking up auth.invalid", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			server := receiver(t, nil, func(http.ResponseWriter, *http.Request) { requests.Add(1) })
			timeout := 5 * time.Second
			if tc.want == Timeout {
				timeout = 300 * time.Millisecond
			}
			s := newSender(t, ca, timeout)
			r := request(server)
			r.OAuth2 = client(tc.url)
			o := s.Send(t.Context(), r)
			if o.Delivered || o.Canceled || o.Reason != tc.want || !strings.Contains(o.Detail, tc.detail) || o.RetryAfter != tc.after {
				t.Errorf("got %q %q after %v, want %q %q after %v", o.Reason, o.Detail, o.RetryAfter, tc.want, tc.detail, tc.after)
			}
			if !strings.HasPrefix(o.Detail, "the token server ") || strings.Contains(o.Detail, "s3cret") || strings.Contains(o.Detail, "receiver") && tc.want != BadResponse {
				t.Errorf("the detail is %q", o.Detail)
			}
			// The status is the receiver's: one that answers 410 would be disabled.
			if o.Status != 0 || o.RequestHeaders != nil || requests.Load() != 0 {
				t.Errorf("status %d, headers %v, %d requests", o.Status, o.RequestHeaders, requests.Load())
			}
			if o.Duration > timeout+bound {
				t.Errorf("it took %v", o.Duration)
			}
		})
	}
}

// TestSlowToken: token and request share the attempt's time.
func TestSlowToken(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	server := receiver(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			time.Sleep(2 * time.Second) // so that a second time of 3 s would be noticed
			_, _ = io.WriteString(w, `{"access_token":"t"}`)
			return
		}
		<-release
	})
	s := newSender(t, nil, 3*time.Second)
	r := request(server)
	r.OAuth2 = client(server)
	o := s.Send(t.Context(), r)
	if o.Reason != Timeout || !strings.Contains(o.Detail, "; the token took ") || o.Duration > 3*time.Second+bound {
		t.Errorf("got %q %q after %v", o.Reason, o.Detail, o.Duration)
	}
}

// TestLateWaiter: an attempt that waits for a fetch that began before it has its own whole time.
func TestLateWaiter(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	first := make(chan struct{})
	server := receiver(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/token" {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if asked.Add(1) == 1 {
			close(first)
			<-r.Context().Done() // until the first attempt gives up
			return
		}
		_, _ = io.WriteString(w, `{"access_token":"t"}`)
	})
	s := newSender(t, nil, 10*time.Second)
	o := client(server)
	done := make(chan *failure, 1)
	go func() {
		_, failed, _ := s.bearer(t.Context(), &attempt{deadline: time.Now().Add(100 * time.Millisecond)}, o)
		done <- failed
	}()
	<-first
	if token, failed, err := s.bearer(t.Context(), &attempt{deadline: time.Now().Add(10 * time.Second)}, o); token != "t" || failed != nil || err != nil {
		t.Errorf("the second: %q, %+v, %v", token, failed, err)
	}
	if failed := <-done; failed == nil || failed.reason != Timeout {
		t.Errorf("the first: %+v", failed)
	}
}

// TestStopWhileATokenIsFetched: a stop ends the wait without a verdict, and the others' fetch goes on.
func TestStopWhileATokenIsFetched(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	server := receiver(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			close(asked)
			<-release
			_, _ = io.WriteString(w, `{"access_token":"t"}`)
		}
	})
	s := newSender(t, nil, 10*time.Second)
	r := request(server)
	r.OAuth2 = client(server)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Outcome, 2)
	go func() { done <- s.Send(ctx, r) }()
	<-asked
	go func() { done <- s.Send(t.Context(), r) }()
	cancel()
	if o := <-done; !o.Canceled || o.Reason != "" || o.RequestHeaders != nil {
		t.Errorf("canceled: %+v", o)
	}
	close(release)
	if o := <-done; !o.Delivered {
		t.Errorf("the other: %q %q", o.Reason, o.Detail)
	}
}

// TestEchoedToken: a receiver that repeats the token does not bring it into the log.
func TestEchoedToken(t *testing.T) {
	t.Parallel()
	server := receiver(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			_, _ = io.WriteString(w, `{"access_token":"canary-token"}`)
			return
		}
		got := r.Header.Get("Authorization")
		w.Header().Set("X-Got", got)
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, got+" "+base64.StdEncoding.EncodeToString([]byte("canary-token")))
	})
	s := newSender(t, nil, 5*time.Second)
	r := request(server)
	r.OAuth2 = client(server)
	o := s.Send(t.Context(), r)
	if text := fmt.Sprint(o.ResponseHeaders, string(o.ResponseBody), o.Detail, o.RequestHeaders); strings.Contains(text, "canary") || strings.Contains(text, "Y2FuYXJ5") {
		t.Errorf("the outcome holds the token: %s", text)
	}
	if string(o.ResponseBody) != "*** ***" {
		t.Errorf("the body is %q", o.ResponseBody)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"access_token":"t","token_type":"Bearer","expires_in":3600}`))
	f.Add([]byte(`{"access_token":"t","expires_in":"1e9"}`))
	f.Add([]byte(`{"expires_in":NaN}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		token, life, err := parseToken(body)
		if err == nil && (!fits(token) || len(token) > maxTokenBytes || life < 0 || life > longestLife) {
			t.Fatalf("%q lives %v", token, life)
		}
	})
}
