package management_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"gancho/pkg/notification"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/command"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// monitor does with the commands what the suspension-monitor does: sets and removes flags.
type monitor struct {
	mu       sync.Mutex
	commands []command.Command
}

func (s *instance) monitor(ctx context.Context) *monitor {
	s.t.Helper()
	m := &monitor{}
	commands, err := command.Consume(ctx, s.bus)
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	ctx, stop := context.WithCancel(ctx)
	s.t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = commands.Pull(ctx, func(c command.Command, _ uint64) error {
				defer m.note(c)
				if c.Verb == command.Resume {
					s.unflag(ctx, c.Account, c.URLKey)
					return nil
				}
				s.flag(ctx, suspension.Flag{Account: c.Account, URLKey: c.URLKey, URLHost: c.URLHost, State: suspension.Suspended, ByHand: true, Since: c.At, Reason: suspension.ReasonByHand})
				return nil
			})
		}
	}()
	return m
}

func (m *monitor) note(c command.Command) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commands = append(m.commands, c)
}

func (m *monitor) last() command.Command {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commands[len(m.commands)-1]
}

func (m *monitor) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.commands)
}

func (s *instance) flag(ctx context.Context, f suspension.Flag) {
	bucket, err := s.bus.Bucket(ctx, topology.BucketSuspensions)
	if err == nil {
		var body []byte
		if body, err = json.Marshal(f); err == nil {
			_, err = bucket.Put(ctx, f.Key().String(), body)
		}
	}
	if err != nil && ctx.Err() == nil { // else the test has ended
		s.t.Error(err)
	}
}

func (s *instance) unflag(ctx context.Context, account, urlKey string) {
	bucket, err := s.bus.Bucket(ctx, topology.BucketSuspensions)
	if err == nil {
		err = bucket.Delete(ctx, account+"."+urlKey, 0)
	}
	if err != nil && ctx.Err() == nil {
		s.t.Error(err)
	}
}

func TestSuspension(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	m := s.monitor(t.Context())
	create := func(event string) string {
		return s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x", "event_name", event)).want(201).id()
	}
	id, sibling := create("crm_deal_created"), create("crm_deal_updated")
	path := "/crm/v2/webhooks/" + id

	// By hand: both webhooks of the URL are suspended, with their waiting notifications.
	r := s.do(acme, "POST", path+"/suspend", `{"data":{}}`).want(200)
	sus := object(r.data(), "suspension")
	if r.data()["status"] != "suspended" || sus["reason"] != "by_hand" || sus["until"] != nil || sus["parked"] != 0.0 {
		t.Errorf("suspended = %s", r.raw)
	}
	s.until("the command is noted", func() bool { return m.count() == 1 })
	c := m.last()
	if c.Verb != "suspend" || c.Account != "acme" || c.URLHost != "hooks.example.com" || c.WebhookID != id || c.By == "" || c.By == acme {
		t.Errorf("command = %+v", c)
	}
	n := s.parked(id, c.URLKey, `{"transaction_uuid":"s"}`, notification.Suspended)
	sus = object(s.do(acme, "GET", path, nil).want(200).data(), "suspension")
	if sus["parked"] != 1.0 || sus["oldest_parked_at"] == nil {
		t.Errorf("suspension = %v", sus)
	}
	d := s.do(acme, "GET", "/crm/v2/notifications/"+n.ID, nil).want(200).data()
	if e := object(d, "explain"); d["state"] != "parked" || e["reason"] != "url_suspended" {
		t.Errorf("parked = %v", d)
	}
	for _, w := range s.do(acme, "GET", "/crm/v2/webhooks", nil).want(200).rows() {
		if parked := object(w, "suspension")["parked"]; w["status"] != "suspended" || (parked == 1.0) != (w["id"] == id) {
			t.Errorf("listed = %v", w)
		}
	}

	if r := s.do(acme, "POST", path+"/resume", nil).want(200); r.data()["status"] != "active" || r.data()["suspension"] != nil {
		t.Errorf("resumed = %s", r.raw)
	}
	s.do(acme, "POST", path+"/resume", nil).want(200)
	s.until("the monitor has read all", func() bool { return m.count() == 3 })

	// A change lifts it too, from the URL it had; a PUT that changes nothing does not.
	since := time.Now().UTC().Add(-time.Hour)
	flagged := suspension.Flag{
		Account: "acme", URLKey: c.URLKey, URLHost: c.URLHost, State: suspension.Suspended, Since: since, Until: time.Now().UTC().Add(time.Hour),
		Trips: 2, Reason: suspension.ReasonAlwaysFailing, Evidence: suspension.Evidence{Failures: 21, FirstAt: since, LastAt: since, Statuses: []string{"500", "timeout"}},
	}
	s.flag(t.Context(), flagged)
	s.until("the flag is seen", func() bool { return s.do(acme, "GET", path, nil).data()["status"] == "suspended" })
	commands := m.count()
	if r := s.do(acme, "PUT", path, hook("https://hooks.example.com/x")).want(200); r.data()["status"] != "suspended" || m.count() != commands {
		t.Errorf("unchanged = %s", r.raw)
	}
	sus = object(s.do(acme, "GET", path, nil).want(200).data(), "suspension")
	if e := object(sus, "evidence"); sus["reason"] != "always_failing" || sus["until"] == nil || e["failures"] != 21.0 || len(array(e, "statuses")) != 2 {
		t.Errorf("suspension = %v", sus)
	}
	if r := s.do(acme, "PUT", path, map[string]any{"url": "https://new.example.com/"}).want(200); r.data()["status"] != "active" {
		t.Errorf("moved = %s", r.raw)
	}
	s.until("the command is noted", func() bool { return m.count() == commands+1 })
	if got := m.last(); got.Verb != "resume" || got.URLKey != c.URLKey || got.URLHost != "hooks.example.com" {
		t.Errorf("command = %+v", got)
	}

	// The suspension of a URL ends with the last webhook that has it.
	s.flag(t.Context(), flagged)
	last := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	commands = m.count()
	s.do(acme, "DELETE", "/crm/v2/webhooks/"+last, nil).want(204)
	if m.count() != commands {
		t.Errorf("with a webhook of the URL left: %+v", m.last())
	}
	moved := s.do(acme, "PUT", "/crm/v2/webhooks/"+sibling, map[string]any{"url": "https://other.example.com/"}).want(200)
	s.flag(t.Context(), flagged)
	last = s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	s.until("the flag is seen", func() bool {
		return s.do(acme, "GET", "/crm/v2/webhooks/"+last, nil).data()["status"] == "suspended"
	})
	commands = m.count()
	s.do(acme, "DELETE", "/crm/v2/webhooks/"+last, nil).want(204)
	s.until("the command is noted", func() bool { return m.count() == commands+1 })
	if got := m.last(); got.Verb != "resume" || got.URLKey != c.URLKey || got.WebhookID != last {
		t.Errorf("command = %+v", got)
	}
	s.do(acme, "PUT", "/crm/v2/webhooks/"+moved.id(), map[string]any{"url": "https://hooks.example.com/x"}).want(200)

	// What the owner set comes before the suspension.
	s.flag(t.Context(), flagged)
	if r := s.do(acme, "PUT", "/crm/v2/webhooks/"+sibling, map[string]any{"status": "disabled"}); r.data()["status"] != "disabled" {
		t.Errorf("disabled = %s", r.raw)
	}
	// Another account's webhook with the same URL is its own.
	foreign := s.do(other, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201)
	if foreign.data()["status"] != "active" {
		t.Errorf("foreign = %s", foreign.raw)
	}
}

// A notification that was parked because its URL had many requests open waits for the probe once the URL is suspended.
func TestExplainParkedBeforeSuspension(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	key := webhook.URLKey("https://hooks.example.com/x")
	n := s.parked(id, key, `{"transaction_uuid":"s"}`, notification.Saturated)
	path := "/crm/v2/notifications/" + n.ID
	if e := object(s.do(acme, "GET", path, nil).want(200).data(), "explain"); e["reason"] != "url_saturated" || !strings.Contains(text(e, "next"), "oldest first") {
		t.Errorf("saturated: %v", e)
	}
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	s.flag(t.Context(), suspension.Flag{
		Account: "acme", URLKey: key, URLHost: "hooks.example.com", State: suspension.Suspended, Since: time.Now().UTC(), Until: until,
		Reason: suspension.ReasonAlwaysFailing, Evidence: suspension.Evidence{Failures: 20, Statuses: []string{"500"}},
	})
	s.until("the flag is seen", func() bool {
		return object(s.do(acme, "GET", path, nil).want(200).data(), "explain")["reason"] == "url_suspended"
	})
	due := until.Format("2006-01-02 15:04:05 UTC")
	r := s.do(acme, "GET", path, nil, "Accept-Language", "pt-BR")
	if next := text(object(r.want(200).data(), "explain"), "next"); !strings.Contains(next, "testada de novo em "+due) {
		t.Errorf("Portuguese: %s", next)
	}
	if next := text(object(s.do(acme, "GET", path, nil).want(200).data(), "explain"), "next"); !strings.Contains(next, "tried again at "+due) {
		t.Errorf("English: %s", next)
	}
}

func TestSuspensionWithoutMonitor(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	if r := s.do(acme, "POST", "/crm/v2/webhooks/"+id+"/suspend", nil).want(202); r.data()["status"] != "active" {
		t.Errorf("nobody has done it yet: %s", r.raw)
	}
}
