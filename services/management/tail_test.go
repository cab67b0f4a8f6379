package management_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"gancho/pkg/delivery"
)

// follow opens a tail and returns a function that reads the next attempt.
func (s *site) follow(ctx context.Context, token, query string) (next func() map[string]any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/crm/v2/tail"+query, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Fatalf("tail answers %d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(resp.Body)
	return func() map[string]any {
		s.t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var a map[string]any
				if err := json.Unmarshal([]byte(data), &a); err != nil {
					s.t.Fatalf("%v: %s", err, data)
				}
				return a
			}
		}
		s.t.Fatalf("the tail ended: %v", lines.Err())
		return nil
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	otherID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/y")).want(201).id()
	foreign := s.do(other, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()

	all := s.follow(t.Context(), acme, "")
	failed := s.follow(t.Context(), acmeRead, "?outcome=failed&webhook_id="+hookID)
	stranger := s.matched("globex", foreign, `{"transaction_uuid":"f"}`)
	s.attempted(stranger, "")
	first := s.matched("acme", hookID, `{"transaction_uuid":"a"}`)
	s.attempted(first, "")
	second := s.matched("acme", otherID, `{"transaction_uuid":"b"}`)
	s.attempted(second, delivery.Timeout)
	third := s.matched("acme", hookID, `{"transaction_uuid":"c"}`)
	s.attempted(third, delivery.Status5xx)
	for _, want := range []string{first.ID, second.ID, third.ID} {
		if a := all(); a["notification_id"] != want || a["number"] != 1.0 {
			t.Errorf("attempt %v, want one of %s", a, want)
		}
	}
	if a := failed(); a["notification_id"] != third.ID || a["webhook_id"] != hookID || a["reason"] != "status_5xx" || a["state"] != "retrying" || a["next_attempt_at"] == nil {
		t.Errorf("failed = %v, want only that of %s", a, third.ID)
	}
	s.do(acme, "GET", "/crm/v2/tail?outcome=lost", nil).refused(422, "bad_parameter", "?outcome")
	s.do(acme, "GET", "/crm/v2/tail?webhook_id=x", nil).refused(422, "bad_parameter", "?webhook_id")
	s.do(acme, "GET", "/crm/v2/tail?webhook_id="+foreign, nil).refused(404, "not_found", "")
}
