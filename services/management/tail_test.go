package management_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"gancho/pkg/delivery"
)

// follow opens a tail and returns a function that reads the next attempt.
func (s *instance) follow(ctx context.Context, token, query string) (next func() map[string]any) {
	s.t.Helper()
	return s.stream(ctx, token, "/crm/v2/tail"+query, "")
}

// stream opens a stream, behind the event with that id when there is one.
func (s *instance) stream(ctx context.Context, token, path, lastID string) (next func() map[string]any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
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

// TestTailEvents streams events as they are stored, and goes on behind the last one that was seen.
func TestTailEvents(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	send := func(token, name, body string, headers ...string) (id, sequence string) {
		t.Helper()
		sent := s.do(token, "POST", "/crm/v2/events/"+name, body, headers...).want(202).data()
		return text(sent, "event_id"), fmt.Sprint(sent["sequence"])
	}
	send(acme, "crm_deal_created", `{"before":true}`)
	all := s.stream(t.Context(), acme, "/crm/v2/tail/events", "")
	deals := s.stream(t.Context(), acmeRead, "/crm/v2/tail/events?event_name=crm_deal_*", "")
	send(other, "crm_deal_created", `{"foreign":true}`)
	task, _ := send(acme, "crm_task_created", "{\n \"n\": 1.50 }")
	deal, sequence := send(acme, "crm_deal_created", `{"n":1e400}`, "Gancho-Changed", "a, b.c", "Gancho-Origin", "erp")
	last, _ := send(acme, "crm_deal_deleted", `{}`)
	for _, want := range []struct{ id, name, body string }{
		{task, "crm_task_created", "{\n \"n\": 1.50 }"}, {deal, "crm_deal_created", `{"n":1e400}`}, {last, "crm_deal_deleted", `{}`},
	} {
		e := all()
		body, err := base64.StdEncoding.DecodeString(text(e, "body"))
		if err != nil || e["id"] != want.id || e["event_name"] != want.name || string(body) != want.body {
			t.Errorf("event %v %s, want %v", e, body, want)
		}
	}
	if e := deals(); e["id"] != deal || fmt.Sprint(e["changed"]) != "[a b.c]" || e["origin"] != "erp" {
		t.Errorf("the first deal is %v", e)
	}
	if e := s.stream(t.Context(), acme, "/crm/v2/tail/events", sequence)(); e["id"] != last {
		t.Errorf("behind event %s comes %v, want %s", sequence, e, last)
	}
	s.do(acme, "GET", "/crm/v2/tail/events?event_name=crm_nope", nil).refused(422, "bad_parameter", "?event_name")
	s.do(acme, "GET", "/crm/v2/tail/events", nil, "Last-Event-ID", "x").refused(422, "bad_last_event_id", "")
}
