package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var quiet = log.New(io.Discard, "", 0)

// seen is a request as it arrived.
type seen struct {
	Method, URI, Proto string
	Header             http.Header
	Body               string
}

func recording(ch chan<- seen, status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		ch <- seen{r.Method, r.RequestURI, r.Proto, r.Header.Clone(), string(body)}
		w.WriteHeader(status)
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	h2 := ca.server(t)
	h2.NextProtos = []string{"h2"}
	for _, proto := range []struct {
		name string
		cfg  *tls.Config
	}{{"HTTP/1.1", ca.server(t)}, {"HTTP/2.0", h2}} {
		for _, method := range []string{"POST", "PUT", "PATCH", "GET", "DELETE"} {
			t.Run(proto.name+" "+method, func(t *testing.T) {
				t.Parallel()
				ch := make(chan seen, 1)
				url := receiver(t, proto.cfg.Clone(), recording(ch, 200))
				r := request(url + "/hooks/a%2Fb?token=1")
				r.Method, r.Attempt, r.Replay = method, 6, "replay-1"
				r.EventTime = time.Date(2026, 1, 21, 17, 58, 22, 5000, time.FixedZone("BRT", -3*3600))
				r.AuthHeader, r.AuthKey = "X-Api-Key", "canary"
				r.Secrets = append(r.Secrets, make([]byte, 32))

				before := time.Now().Unix()
				o := newSender(t, ca, 5*time.Second).Send(t.Context(), r)
				expect(t, o, "delivered")
				got := <-ch

				stamp := got.Header.Get("Webhook-Timestamp")
				ts, err := strconv.ParseInt(stamp, 10, 64)
				if err != nil || ts < before || ts > time.Now().Unix() {
					t.Errorf("webhook-timestamp %q", stamp)
				}
				want := seen{method, "/hooks/a%2Fb?token=1", proto.name, http.Header{
					"Content-Type":      {"application/json"},
					"Content-Length":    {strconv.Itoa(len(event))},
					"User-Agent":        {"Gancho/test"},
					"X-Api-Key":         {"canary"},
					"Gancho-Event":      {"crm_deal_created"},
					"Gancho-Attempt":    {"6"},
					"Gancho-Event-Time": {"2026-01-21T20:58:22.000005000Z"},
					"Gancho-Replay":     {"replay-1"},
					"Webhook-Id":        {r.NotificationID},
					"Webhook-Timestamp": {stamp},
					"Webhook-Signature": {Sign(r.NotificationID, time.Unix(ts, 0), r.Body, r.Secrets)},
				}, event}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("request as received (-want +got):\n%s", diff)
				}
				if n := len(strings.Fields(got.Header.Get("Webhook-Signature"))); n != 2 {
					t.Errorf("%d signatures while rotating, want 2", n)
				}

				delete(want.Header, "Content-Length")
				want.Header["X-Api-Key"] = []string{"***"}
				want.Header["Webhook-Signature"] = []string{"***"}
				if diff := cmp.Diff(want.Header, o.RequestHeaders); diff != "" {
					t.Errorf("RequestHeaders (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestSign(t *testing.T) {
	t.Parallel()
	// The published example of Standard Webhooks.
	key, err := ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	id, ts, body := "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)
	if got := Sign(id, ts, body, [][]byte{key}); got != want {
		t.Errorf("Sign = %q, want %q", got, want)
	}
	_, other := NewSecret()
	two := strings.Split(Sign(id, ts, body, [][]byte{other, key}), " ")
	if len(two) != 2 || two[1] != want || two[0] == want {
		t.Errorf("while rotating: %q, want the newer first and %q second", two, want)
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	text, key := NewSecret()
	got, err := ParseSecret(text)
	if err != nil || len(key) != 32 || string(got) != string(key) {
		t.Errorf("ParseSecret(%q) = %x, %v, want %x", text, got, err, key)
	}
	if again, _ := NewSecret(); again == text {
		t.Error("two secrets are equal")
	}
	for _, bad := range []string{
		"", "whsec_", "canary", "whsec_!canary", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2Y=", "whsec_" + strings.Repeat("AAAA", 22),
	} {
		if key, err := ParseSecret(bad); err == nil {
			t.Errorf("ParseSecret(%q) = %x", bad, key)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		timeout time.Duration
		ok      bool
	}{
		{100 * time.Millisecond, true},
		{5 * time.Second, true},
		{time.Minute, true},
		{0, false},
		{-time.Second, false},
		{99 * time.Millisecond, false},
		{time.Minute + 1, false},
		{5, false},
	} {
		err := Config{Timeout: tc.timeout}.Validate()
		if (err == nil) != tc.ok {
			t.Errorf("%v: %v", tc.timeout, err)
		}
		if err != nil && !strings.Contains(err.Error(), "ATTEMPT_TIMEOUT") {
			t.Errorf("the error does not name the variable: %v", err)
		}
	}
}

// TestInternalError: what cannot be sent is not, and the outcome does not repeat it.
func TestInternalError(t *testing.T) {
	t.Parallel()
	rec := newRaw(t, nil, func(net.Conn) {})
	s := newSender(t, nil, time.Second)
	for _, tc := range []struct {
		name   string
		change func(*Request)
	}{
		{"no body", func(r *Request) { r.Body = nil }},
		{"no signing key", func(r *Request) { r.Secrets = nil }},
		{"method", func(r *Request) { r.Method = "PO ST" }},
		{"URL", func(r *Request) { r.URL = "http://127.0.0.1:80/\ncanary" }},
		{"relative URL", func(r *Request) { r.URL = "/canary" }},
		{"scheme", func(r *Request) { r.URL = "ftp://127.0.0.1/canary" }},
		{"event name", func(r *Request) { r.EventName = "a\r\ncanary: b" }},
		{"no event name", func(r *Request) { r.EventName = "" }},
		{"notification id", func(r *Request) { r.NotificationID = "canary\n" }},
		{"notification id with a dot", func(r *Request) { r.NotificationID = "a.b" }},
		{"replay", func(r *Request) { r.Replay = "canary\n" }},
		{"auth header", func(r *Request) { r.AuthHeader, r.AuthKey = "a b", "canary" }},
		{"auth key", func(r *Request) { r.AuthHeader, r.AuthKey = "X-Key", "canary\r\nX: y" }},
		{"auth header without key", func(r *Request) { r.AuthHeader = "X-Key" }},
		{"idempotency key", func(r *Request) { r.AuthHeader, r.AuthKey = "idempotency-KEY", "canary" }},
		{"other idempotency key", func(r *Request) { r.AuthHeader, r.AuthKey = "x-idempotency-key", "canary" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request(rec.url)
			tc.change(&r)
			o := s.Send(t.Context(), r)
			expect(t, o, "internal_error")
			if strings.Contains(o.Detail, "canary") {
				t.Errorf("detail repeats the input: %q", o.Detail)
			}
		})
	}
	if n := rec.accepted(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

func TestCanceled(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	url := receiver(t, nil, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		close(arrived)
		<-r.Context().Done()
	})
	s := newSender(t, nil, time.Minute)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-arrived
		cancel(errors.New("stop"))
	}()
	o := s.Send(ctx, request(url))
	expect(t, o, "canceled")
	if o.Reason != "" {
		t.Errorf("reason %q, want none", o.Reason)
	}
	expect(t, s.Send(ctx, request(url)), "canceled")
	s.Close()
	expect(t, s.Send(t.Context(), request(url)), "canceled")
}

// TestPhases: times are measured on a new connection, and only the answer's on a kept one.
func TestPhases(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	url := receiver(t, ca.server(t), func(http.ResponseWriter, *http.Request) {})
	s := newSender(t, ca, 5*time.Second)
	first := s.Send(t.Context(), request(url))
	expect(t, first, "delivered")
	if p := first.Phases; p.Connect <= 0 || p.TLS <= 0 || p.FirstByte <= 0 || p.Connect+p.TLS+p.FirstByte > first.Duration {
		t.Errorf("first attempt: %+v in %v", p, first.Duration)
	}
	second := s.Send(t.Context(), request(url))
	expect(t, second, "delivered")
	if p := second.Phases; p.DNS+p.Connect+p.TLS != 0 || p.FirstByte <= 0 || p.FirstByte > second.Duration {
		t.Errorf("second attempt: %+v in %v, want only the first byte", p, second.Duration)
	}
}
