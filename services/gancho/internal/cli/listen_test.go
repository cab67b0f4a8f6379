package cli

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"gancho/pkg/delivery"
)

// TestListen forwards events to a receiver as a webhook would, until the API refuses.
func TestListen(t *testing.T) {
	t.Parallel()
	bodies := []string{"{\n \"n\": 1.50 }", `{"n":1e400}`, `{}`}
	ids := []string{"8f0d6c1e-7f4a-5a52-8f0b-2b9f9f0c6a10", "8f0d6c1e-7f4a-5a52-8f0b-2b9f9f0c6a11", "8f0d6c1e-7f4a-5a52-8f0b-2b9f9f0c6a12"}
	var stream strings.Builder
	stream.WriteString(": welcome\nretry: 1\n\n")
	for i, body := range bodies {
		fmt.Fprintf(&stream, "event: event\nid: %d\ndata: {\"id\":%q,\"event_name\":\"crm_deal_created\",\"stored_at\":\"2026-01-21T10:00:00.5Z\",\"body\":%q}\n\n",
			i+1, ids[i], base64.StdEncoding.EncodeToString([]byte(body)))
	}
	f := newAPI(t, map[string][]answer{"GET /crm/v2/tail/events": {
		{status: 200, header: map[string]string{"Content-Type": "text/event-stream"}, body: stream.String()},
		{status: 403, body: `{"errors":[{"code":"forbidden","detail":"enough of it"}]}`},
	}})
	var mu sync.Mutex // an aborted answer orders nothing
	var got []*http.Request
	var received []string
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got, received = append(got, r), append(received, string(body))
		if len(got) == 2 {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		if len(got) == 3 {
			panic(http.ErrAbortHandler) // an answer that never comes
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer receiver.Close()

	out := run(t, f.URL, "", "listen", "--forward", receiver.URL+"/hooks?a=1", "--event", "crm_deal_*")
	mu.Lock()
	defer mu.Unlock()
	if out.code != exitDenied || !strings.Contains(out.stderr, "enough of it") || !strings.Contains(out.stderr, "connecting again") {
		t.Errorf("exit %d: %s", out.code, out.stderr)
	}
	if diff := cmp.Diff(received, bodies); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(f.seen[0], "GET /crm/v2/tail/events?event_name=crm_deal_%2A") {
		t.Errorf("asked %s", f.seen[0])
	}
	secret, err := delivery.ParseSecret(regexp.MustCompile(`whsec_\S+`).FindString(out.stderr))
	if err != nil {
		t.Fatalf("no secret in %s", out.stderr)
	}
	seen := map[string]bool{}
	for i, r := range got {
		at, _ := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64)
		id := r.Header.Get("webhook-id")
		if want := delivery.Sign(id, time.Unix(at, 0), []byte(bodies[i]), [][]byte{secret}); r.Header.Get("webhook-signature") != want || uuid.Validate(id) != nil || seen[id] {
			t.Errorf("request %d: %v", i, r.Header)
		}
		seen[id] = true
		if r.Method != "POST" || r.RequestURI != "/hooks?a=1" || r.Header.Get("Gancho-Event") != "crm_deal_created" || r.Header.Get("Gancho-Attempt") != "1" ||
			r.Header.Get("Gancho-Event-Time") != "2026-01-21T10:00:00.500000000Z" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("request %d: %s %s %v", i, r.Method, r.RequestURI, r.Header)
		}
	}
	lines := strings.Split(strings.TrimSpace(regexp.MustCompile(`\d+\.\d+`).ReplaceAllString(out.stdout, "<ms>")), "\n")
	for i, answer := range []string{"204", "302", "none"} {
		if i+1 >= len(lines) || !strings.Contains(lines[i+1], answer) || !strings.Contains(lines[i+1], ids[i]) {
			t.Errorf("line %d lacks %s: %s", i, answer, out.stdout)
		}
	}
	for _, bad := range []string{"localhost:3000", "ftp://x/", "/hooks"} {
		if out := run(t, f.URL, "", "listen", "--forward", bad); out.code != exitUsage {
			t.Errorf("--forward %s: exit %d", bad, out.code)
		}
	}
}
