package management_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/delivery"
	"gancho/pkg/numbers"
)

// TestNumbers: the sums are those of what happened.
func TestNumbers(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	const events = 9
	for i := range events {
		n := s.matched("acme", id, fmt.Sprintf(`{"transaction_uuid":"t-%d"}`, i))
		if i%3 == 0 {
			s.attempted(n, delivery.Status5xx)
		}
		s.attempted(n, "")
	}
	held := numbers.Held{Account: "acme", Sequence: 1, Webhooks: []uuid.UUID{uuid.New(), uuid.MustParse(id)}}
	notes, err := held.Start(t.Context(), s.bus)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range notes {
		if err := n.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stats := "/crm/v2/webhooks/" + id + "/stats"
	for _, step := range []string{"", "?step=1m", "?step=1h", "?step=1d"} {
		rows := s.do(acme, "GET", stats+step, nil).want(200).rows()
		var delivered, failed, of5xx, pending, held float64
		for _, r := range rows {
			held += number(r, "held_back")
			delivered += number(object(r, "attempts"), "delivered")
			failed += number(object(r, "attempts"), "failed")
			if reasons := object(r, "reasons"); reasons["status_5xx"] != nil {
				of5xx += number(reasons, "status_5xx")
				if share := number(r, "success_share"); share != 0.75 || number(object(r, "duration_ms"), "p99") < 11 || number(object(r, "duration_ms"), "p50") > 14 {
					t.Errorf("step %q: %v", step, r)
				}
			} else if r["success_share"] != nil || object(r, "duration_ms")["p50"] != nil {
				t.Errorf("step %q: a step without attempts is %v", step, r)
			}
			if states := object(r, "notifications"); states["pending"] != nil {
				pending += number(states, "pending")
			}
		}
		if delivered != events || failed != 3 || of5xx != 3 || pending != events || held != 1 {
			t.Errorf("step %q: %v delivered, %v failed, %v of them 5xx, %v pending, %v held back", step, delivered, failed, of5xx, pending, held)
		}
	}
	usage := s.do(operator, "GET", "/crm/v2/usage?step=1d&account_id=acme", nil).want(200).rows()
	var sum [6]float64
	for _, u := range usage {
		if u["account_id"] != "acme" {
			t.Errorf("of another account: %v", u)
		}
		for i, name := range []string{"events", "event_bytes", "notifications", "attempts", "delivered", "failed"} {
			sum[i] += number(u, name)
		}
	}
	if sum != [6]float64{events, events * float64(len(`{"transaction_uuid":"t-0"}`)), events, events + 3, events, 3} {
		t.Errorf("usage %v", sum)
	}
	if all := s.do(operator, "GET", "/crm/v2/usage?step=1d", nil).want(200).rows(); len(all) == 0 {
		t.Error("an operator sees no account")
	}
	if r := s.do(operator, "GET", "/crm/v2/usage", nil, "X-Account-Id", "globex").want(200).rows(); len(r) != 0 {
		t.Errorf("an account that did nothing: %v", r)
	}
	s.do(acme, "GET", "/crm/v2/usage", nil).refused(403, "operator_only", "")
	s.do("", "GET", "/crm/v2/usage", nil).want(401)
	s.do(other, "GET", stats, nil).refused(404, "not_found", "")
	old := url.QueryEscape(time.Now().Add(-72 * time.Hour).UTC().Format(time.RFC3339))
	for query, pointer := range map[string]string{
		"step=2h": "?step", "from=yesterday": "?from", "step=1m&from=" + old: "?from", "to=" + old + "&from=2040-01-01T00:00:00Z": "?to",
		"step=1d&from=2026-01-02T15:30:00Z&to=2026-01-02T15:20:00Z": "?to",
	} {
		s.do(acme, "GET", stats+"?"+query, nil).refused(422, "bad_parameter", pointer)
	}
	s.do(operator, "GET", "/crm/v2/usage?account_id=a.b", nil).refused(422, "bad_parameter", "?account_id")
}
