package client

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func attempt(id string) string {
	return "id: " + id + "\nevent: attempt\ndata: {\"notification_id\":\"" + id + "\",\ndata: \"outcome\":\"delivered\"}\n\n"
}

func streamOf(text string) *http.Response {
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}}, Body: io.NopCloser(strings.NewReader(text))}
}

// drip is a body that brings a comment every 45 s, so many times.
type drip struct{ left int }

func (d *drip) Read(b []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	d.left--
	time.Sleep(45 * time.Second) // of the bubble
	return copy(b, ": still here\n"), nil
}

func TestTail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var asked []string
		began := time.Now()
		c := newClient(t, func(r *http.Request) (*http.Response, error) {
			asked = append(asked, time.Since(began).String()+" "+r.URL.RawQuery+" "+r.Header.Get("Last-Event-ID"))
			switch len(asked) {
			case 1: // two attempts, with comments and lines that a newer server may send
				return streamOf(": welcome\n\n" + attempt("a") + "event: note\r\ndata: {\"outcome\":\"x\"}\r\n\r\nfuture: 1\nretry: 2000\n\n" + strings.ReplaceAll(attempt("b"), "\n", "\r\n")), nil
			case 2:
				return nil, errors.New("connection refused")
			case 3:
				return answer(503, slowDown, "Retry-After", "5"), nil
			case 4: // lives on comments for 90 s, then goes silent
				stream := streamOf("")
				stream.Body = io.NopCloser(io.MultiReader(&drip{2}, silence{r.Context()}))
				return stream, nil
			case 5:
				return streamOf(attempt("c") + "data: {\"notification_id\":\"cut off\""), nil
			case 6:
				return streamOf("event: end\ndata: {\"reason\":\"too_slow\"}\n\n"), nil
			}
			stop()
			return nil, ctx.Err()
		})
		var got, lost []string
		err := c.Tail(ctx, Watch{WebhookID: "w", Outcome: "failed"}, func(r Result[Attempt]) error {
			got = append(got, r.Value.NotificationID)
			return nil
		}, func(err error) { lost = append(lost, err.Error()) })
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a", "b", "c"}, got); diff != "" {
			t.Error(diff)
		}
		want := []string{
			"0s outcome=failed&webhook_id=w ",
			"2s outcome=failed&webhook_id=w b",   // the server's wish
			"6s outcome=failed&webhook_id=w b",   // twice that
			"14s outcome=failed&webhook_id=w b",  // and again: longer than the 5 s it asked for
			"3m0s outcome=failed&webhook_id=w b", // after a minute of silence, and twice that
			"3m2s outcome=failed&webhook_id=w c", // something came
			"3m6s outcome=failed&webhook_id=w c",
		}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Error(diff)
		}
		if len(lost) != 6 || !strings.Contains(lost[3], "nothing came for a minute") || !strings.Contains(lost[5], "too_slow") {
			t.Errorf("lost: %q", lost)
		}
	})
}

func TestTailEnds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer func() *http.Response
		show   error
		want   string
	}{
		"refused": {func() *http.Response {
			return answer(401, `{"errors":[{"code":"bad_token","detail":"the token is not good"}]}`)
		}, nil, "the token is not good"},
		"unknown": {func() *http.Response {
			return answer(404, `{"errors":[{"code":"not_found","detail":"no such webhook"}]}`)
		}, nil, "no such webhook"},
		"not a stream": {func() *http.Response { return answer(200, `{}`) }, nil, "something else than a stream"},
		"nobody reads": {func() *http.Response { return streamOf(attempt("a")) }, io.ErrClosedPipe, io.ErrClosedPipe.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, func(*http.Request) (*http.Response, error) { return tc.answer(), nil })
			err := c.Tail(t.Context(), Watch{}, func(Result[Attempt]) error { return tc.show }, func(err error) { t.Error("lost:", err) })
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestTailRefusesEndlessLines(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"one line":   "data: " + strings.Repeat("x", maxEvent) + "\n\n",
		"many lines": strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 2000) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &stream{most: maxEvent, show: func(string, []byte) error { t.Error("shown"); return nil }}
			if err := s.read(strings.NewReader(text), func() {}); !errors.Is(err, errTooLong) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestTailEvents reads events with all their bytes, and goes on behind the last one.
func TestTailEvents(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 2<<20)
	event := func(id, body string) string {
		return "event: event\nid: " + id + "\ndata: {\"id\":\"e" + id + "\",\"event_name\":\"crm_deal_created\",\"body\":\"" + base64.StdEncoding.EncodeToString([]byte(body)) + "\"}\n\n"
	}
	synctest.Test(t, func(t *testing.T) {
		var asked, got []string
		c := newClient(t, func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.URL.Path+"?"+r.URL.RawQuery+" "+r.Header.Get("Last-Event-ID"))
			if len(asked) == 1 {
				return streamOf(": welcome\n\n" + event("7", "{\n}") + event("9", large) + "event: attempt\ndata: {}\n\n"), nil
			}
			return streamOf(event("12", "{}")), nil
		})
		stop := errors.New("enough")
		err := c.TailEvents(t.Context(), "crm_deal_*", func(e StoredEvent) error {
			if got = append(got, e.ID+" "+string(e.Body)); len(got) == 3 {
				return stop
			}
			return nil
		}, func(error) {})
		if !errors.Is(err, stop) {
			t.Errorf("it ended with %v", err)
		}
		if diff := cmp.Diff(asked, []string{"/base/crm/v2/tail/events?event_name=crm_deal_%2A ", "/base/crm/v2/tail/events?event_name=crm_deal_%2A 9"}); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(got, []string{"e7 {\n}", "e9 " + large, "e12 {}"}); diff != "" {
			t.Errorf("%.500s", diff)
		}
	})
}
