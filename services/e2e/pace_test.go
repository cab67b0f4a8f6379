package e2e

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gancho/services/internal/testsystem"
)

// testMaxPerMinute: two dispatchers together keep to the limit of a URL, and one goes on when the other is killed that
// sent to it. Another URL of the same receiver does not notice. Those that wait say why, and go when the limit does.
//
// As many requests as the limit allows since the first event was published are an upper bound on any machine: a busy
// one makes fewer.
func testMaxPerMinute(t *testing.T, s *system) {
	const perMinute, events = 120, 200
	s.AddDispatcher()
	rc := newReceiver(t, succeed)
	free, limited := s.register(dealCreated, rc.URL+"/free"), s.register(dealCreated, rc.URL+"/limited")
	limit := func(n any) {
		t.Helper()
		if status := s.call(http.MethodPut, "/crm/v2/webhooks/"+limited.ID, map[string]any{"max_per_minute": n}, nil); status != http.StatusOK {
			t.Fatalf("set the limit %v: status %d", n, status)
		}
		s.registered.Store(time.Now().UnixNano())
	}
	limit(perMinute)
	s.settle()
	began := time.Now()
	txs := s.publishMany(events)
	waiting := ids(dealCreated, limited, txs)
	arrived := func() (n int) {
		seen := rc.snapshot()
		for _, id := range waiting {
			n += len(seen[id])
		}
		if most := 1 + int(time.Since(began)*perMinute/time.Minute); n > most {
			t.Fatalf("%d requests within %v of a limit of %d per minute, want at most %d", n, time.Since(began), perMinute, most)
		}
		return n
	}

	s.waitListed(free, ids(dealCreated, free, txs), "delivered")
	if n := arrived(); n == events {
		t.Error("a URL without a limit waits for one that has one")
	}
	last := waiting[events-1]
	if n := s.waitAll([]string{last}, "parked")[0]; n.Reason != "saturated" {
		t.Errorf("the last one is parked for %q", n.Reason)
	}
	var why struct {
		Explain struct{ Reason, Text, Next string }
	}
	s.call(http.MethodGet, "/crm/v2/notifications/"+last, nil, &why)
	if e := why.Explain; e.Reason != "url_saturated" || !strings.Contains(e.Text, "at most 120 requests per minute") || !strings.Contains(e.Next, "all of them are sent by about") {
		t.Errorf("why the last one waits: %+v", e)
	}
	s.Until("the list says why they wait", func() bool {
		var page list
		s.call(http.MethodGet, "/crm/v2/webhooks/"+limited.ID+"/notifications?page[size]=200&state=parked", nil, &page)
		return len(page.Data) > 0 && !slices.ContainsFunc(page.Data, func(n note) bool { return n.Reason != "saturated" })
	})

	// Both take notifications in, one sends those of the URL.
	attempts := func(d *testsystem.Process) (n int) {
		for line := range strings.Lines(d.Log()) {
			if strings.Contains(line, `"msg":"attempt"`) && strings.Contains(line, limited.ID) {
				n++
			}
		}
		return n
	}
	sender, heir := s.Dispatchers[0], s.Dispatchers[1]
	had := attempts(heir)
	now := attempts(sender)
	s.Until("one of them sends", func() bool { return attempts(sender) > now || attempts(heir) > had })
	if attempts(heir) > had {
		sender, heir = heir, sender
	}
	sender.Kill()
	before, killed := attempts(heir), time.Now()
	s.Until("the other one sends", func() bool { arrived(); return attempts(heir) >= before+5 })
	t.Logf("%d requests in %v, the last five %v after a kill", arrived(), time.Since(began), time.Since(killed))

	limit(nil)
	s.waitListed(limited, waiting, "delivered")
	repeated := 0
	for id, numbers := range rc.snapshot() {
		repeated += len(numbers) - 1
		if slices.ContainsFunc(numbers, func(n string) bool { return n != "1" }) {
			t.Errorf("notification %s was tried %v", id, numbers)
		}
	}
	if repeated > mostRepeated {
		t.Errorf("%d requests were made again after a kill", repeated)
	}
}
