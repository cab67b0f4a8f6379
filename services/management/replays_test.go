package management_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

func TestReplay(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	began := time.Now().UTC().Format(time.RFC3339)
	delivered := s.matched("acme", hookID, `{"transaction_uuid":"d"}`)
	s.attempted(delivered, "")
	failed := s.matched("acme", hookID, `{"transaction_uuid":"f"}`)
	for range 6 {
		s.attempted(failed, delivery.Status5xx)
	}
	retrying := s.matched("acme", hookID, `{"transaction_uuid":"r"}`)
	s.attempted(retrying, delivery.Timeout)
	pending := s.matched("acme", hookID, `{"transaction_uuid":"p"}`)
	// An event from before the webhook, and one that is none of its business.
	for _, subject := range []string{event.Subject("acme", "crm_deal_created"), event.Subject("acme", "crm_task_created"), event.Subject("globex", "crm_deal_created")} {
		if _, err := eventstream.Publish(t.Context(), s.bus, subject, uuid.NewString(), nil, []byte(`{"transaction_uuid":"n"}`)); err != nil {
			t.Fatal(err)
		}
	}
	// A body above EVENT_MAX_BYTES is no event, though the broker has room for it.
	large := fmt.Appendf(nil, `{"n":%q}`, strings.Repeat("x", s.cfg.Limits.EventMaxBytes))
	if _, err := eventstream.Publish(t.Context(), s.bus, event.Subject("acme", "crm_deal_created"), uuid.NewString(), nil, large); err != nil {
		t.Fatal(err)
	}
	never := event.NotificationID(event.ID("acme", "crm_deal_created", "n"), uuid.MustParse(hookID))

	run := func(more map[string]any) (id string, job map[string]any) {
		t.Helper()
		more["from"] = began
		d := s.do(acme, "POST", "/crm/v2/webhooks/"+hookID+"/replays", more).want(201).data()
		if d["state"] != "preview" || d["sent"] != 0.0 {
			t.Fatalf("preview = %v", d)
		}
		id = text(d, "id")
		s.do(acme, "POST", "/crm/v2/replays/"+id+"/pause", nil).refused(409, "wrong_state", "")
		s.do(acme, "POST", "/crm/v2/replays/"+id+"/start", nil).want(200)
		s.until("the replay is done", func() bool {
			job = s.do(acme, "GET", "/crm/v2/replays/"+id, nil).want(200).data()
			return job["state"] == "done"
		})
		return id, job
	}
	newest := func(id string) *notification.Notification {
		t.Helper()
		m, err := lane.Pending(t.Context(), s.bus, "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}

	id, job := run(map[string]any{"state": "permanently_failed"})
	if job["total"] != 1.0 || job["sent"] != 1.0 || job["skipped"] != 5.0 {
		t.Errorf("only the failed one: %v", job)
	}
	if m := newest(failed.ID); m.Send != 2 || m.Replay != id || m.Journal != failed.Journal || string(m.Body) != string(failed.Body) {
		t.Errorf("sent again: %+v", m)
	}
	if d := s.do(acme, "GET", "/crm/v2/notifications/"+failed.ID, nil).want(200).data(); d["state"] != "pending" || d["replay_id"] != id {
		t.Errorf("failed one = %v", d)
	}

	_, job = run(map[string]any{"rate": 1000})
	if job["events"] != 6.0 || job["sent"] != 2.0 || job["skipped"] != 4.0 { // the failed one is on its way again
		t.Errorf("all: %v", job)
	}
	if m := newest(delivered.ID); m.Send != 2 {
		t.Errorf("delivered one: %+v", m)
	}
	if m := newest(never); m.Send != 1 || m.Journal != 0 {
		t.Errorf("the one that was never sent: %+v", m)
	}
	for name, n := range map[string]*notification.Notification{"retrying": retrying, "pending": pending} {
		if m := newest(n.ID); m.Send != 1 {
			t.Errorf("the %s one was sent again: %+v", name, m)
		}
	}
	s.do(other, "GET", "/crm/v2/replays/"+id, nil).refused(404, "not_found", "")
	if r := s.do(acme, "GET", "/crm/v2/webhooks/"+hookID+"/replays", nil).want(200); len(r.rows()) != 2 {
		t.Errorf("list = %s", r.raw)
	}
}

func TestReplayRefuses(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	path := "/crm/v2/webhooks/" + hookID + "/replays"
	ago := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	s.do(acme, "POST", path, map[string]any{}).refused(422, "required", "/data/from")
	s.do(acme, "POST", path, map[string]any{"from": "yesterday"}).refused(422, "bad_time", "/data/from")
	s.do(acme, "POST", path, map[string]any{"from": "2999-01-01T00:00:00Z"}).refused(422, "bad_range", "/data/from")
	s.do(acme, "POST", path, map[string]any{"from": ago, "to": ago}).refused(422, "bad_range", "/data/from")
	s.do(acme, "POST", path, map[string]any{"from": ago, "state": "retrying"}).refused(422, "bad_state", "/data/state")
	s.do(acme, "POST", path, map[string]any{"from": ago, "rate": 0}).refused(422, "bad_rate", "/data/rate")
	s.do(acme, "POST", path, map[string]any{"from": ago, "rate": 1.5}).refused(422, "wrong_type", "/data/rate")
	s.do(acme, "POST", "/crm/v2/webhooks/"+uuid.NewString()+"/replays", map[string]any{"from": ago}).refused(404, "not_found", "")

	// Nothing in the range: a preview of nothing that is done at once.
	id := s.do(acme, "POST", path, map[string]any{"from": ago}).want(201).id()
	s.do(acme, "POST", "/crm/v2/replays/"+id+"/start", nil).want(200)
	s.until("done", func() bool {
		return s.do(acme, "GET", "/crm/v2/replays/"+id, nil).want(200).data()["state"] == "done"
	})
	s.do(acme, "DELETE", "/crm/v2/replays/"+id, nil).refused(409, "wrong_state", "")
	for range 20 {
		id = s.do(acme, "POST", path, map[string]any{"from": ago}).want(201).id()
	}
	s.until("twenty are enough", func() bool { return s.do(acme, "POST", path, map[string]any{"from": ago}).status == 409 })
	s.do(acme, "DELETE", "/crm/v2/replays/"+id, nil).want(204)
	s.do(acme, "DELETE", "/crm/v2/replays/"+id, nil).want(204)
	s.do(acme, "POST", "/crm/v2/replays/"+id+"/start", nil).refused(409, "wrong_state", "")
}

// TestReplaySurvives pauses a replay, goes on, stops its runner in the middle and has another finish it.
func TestReplaySurvives(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	const events = 300
	began := time.Now().Add(-time.Second).UTC().Format(time.RFC3339)
	for i := range events {
		if _, err := eventstream.Publish(t.Context(), s.bus, event.Subject("acme", "crm_deal_created"), uuid.NewString(), nil, fmt.Appendf(nil, `{"transaction_uuid":"n-%d"}`, i)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	first, stopped := s.runUntil(ctx)
	id := s.at(first, acme, "POST", "/crm/v2/webhooks/"+hookID+"/replays", map[string]any{"from": began, "rate": 100}).want(201).id()
	path := "/crm/v2/replays/" + id
	progress := func() (string, float64) {
		d := s.do(acme, "GET", path, nil).want(200).data()
		return text(d, "state"), number(d, "sent")
	}
	s.at(first, acme, "POST", path+"/start", nil).want(200)
	s.until("some are sent", func() bool { _, sent := progress(); return sent > 0 })
	s.at(first, acme, "POST", path+"/pause", nil).want(200)
	s.at(first, acme, "POST", path+"/pause", nil).want(200)
	bucket, err := s.bus.Bucket(t.Context(), topology.BucketReplays)
	if err != nil {
		t.Fatal(err)
	}
	s.until("its runner has left off", func() bool {
		e, err := bucket.Get(t.Context(), "acme."+id)
		var job struct{ State, Runner string }
		return err == nil && json.Unmarshal(e.Value, &job) == nil && job.State == "paused" && job.Runner == ""
	})
	_, paused := progress()
	if n, err := s.arrived(); err != nil || paused != float64(n) {
		t.Errorf("it says %v are sent, and %d are (%v)", paused, n, err)
	}
	s.at(first, acme, "POST", path+"/resume", nil).want(200)
	s.until("more are sent", func() bool { _, sent := progress(); return sent > paused })
	stop()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	s.until("another replica finishes it", func() bool { state, _ := progress(); return state == "done" })
	if _, sent := progress(); sent != events {
		t.Errorf("sent = %v, want %d", sent, events)
	}
	if n, err := s.arrived(); err != nil || n != events {
		t.Errorf("%d notifications arrived (%v), want each of %d once", n, err, events)
	}
}

// TestReplayIsCancelled: row 92 of the bad inputs. A running replay of many events stops when its owner cancels it,
// is shown as cancelled with the number it has sent, and cannot go on.
func TestReplayIsCancelled(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	const events = 300
	began := time.Now().Add(-time.Second).UTC().Format(time.RFC3339)
	for i := range events {
		if _, err := eventstream.Publish(t.Context(), s.bus, event.Subject("acme", "crm_deal_created"), uuid.NewString(), nil, fmt.Appendf(nil, `{"transaction_uuid":"n-%d"}`, i)); err != nil {
			t.Fatal(err)
		}
	}
	id := s.do(acme, "POST", "/crm/v2/webhooks/"+hookID+"/replays", map[string]any{"from": began, "rate": 20}).want(201).id() // 15 s, were it not cancelled
	path := "/crm/v2/replays/" + id
	s.do(acme, "POST", path+"/start", nil).want(200)
	s.until("some are sent", func() bool { return number(s.do(acme, "GET", path, nil).want(200).data(), "sent") > 0 })
	s.do(other, "DELETE", path, nil).refused(404, "not_found", "")
	s.do(acmeRead, "DELETE", path, nil).refused(403, "read_only", "")
	s.do(acme, "DELETE", path, nil).want(204)
	s.do(acme, "DELETE", path, nil).want(204)
	bucket, err := s.bus.Bucket(t.Context(), topology.BucketReplays)
	if err != nil {
		t.Fatal(err)
	}
	s.until("its runner has left off", func() bool {
		e, err := bucket.Get(t.Context(), "acme."+id)
		var job struct{ Runner string }
		return err == nil && json.Unmarshal(e.Value, &job) == nil && job.Runner == ""
	})
	d := s.do(acme, "GET", path, nil).want(200).data()
	n, err := s.arrived()
	if err != nil || d["state"] != "cancelled" || number(d, "sent") != float64(n) || n == 0 || n >= events {
		t.Errorf("replay = %v, and %d notifications arrived (%v)", d, n, err)
	}
	for _, verb := range []string{"start", "pause", "resume"} {
		s.do(acme, "POST", path+"/"+verb, nil).refused(409, "wrong_state", "")
	}
}

// TestReplayOfADeadRunner takes up a job whose runner went without a word, after its last note.
func TestReplayOfADeadRunner(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	id := uuid.NewString()
	var at [3]uint64
	for i := range at {
		p, err := eventstream.Publish(t.Context(), s.bus, event.Subject("acme", "crm_deal_created"), uuid.NewString(), nil, fmt.Appendf(nil, `{"transaction_uuid":"n-%d"}`, i))
		if err != nil {
			t.Fatal(err)
		}
		at[i] = p.Sequence
	}
	// The first is noted, the second was sent after the note, the third was not sent.
	eventID := event.ID("acme", "crm_deal_created", "n-1")
	if err := lane.Notify(s.bus, &notification.Notification{
		Account: "acme", ID: event.NotificationID(eventID, uuid.MustParse(hookID)), WebhookID: hookID, EventID: eventID,
		EventName: "crm_deal_created", EventSequence: at[1], EventTime: time.Now(), Send: 1, Replay: id, Body: []byte(`{}`),
	}).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	bucket, err := s.bus.Bucket(t.Context(), topology.BucketReplays)
	if err != nil {
		t.Fatal(err)
	}
	job := fmt.Appendf(nil, `{"id":%q,"account_id":"acme","webhook_id":%q,"from":"2026-01-01T00:00:00Z","to":"2999-01-01T00:00:00Z","rate":50,"state":"running",
		"events":3,"sent":1,"position":%d,"runner":"gone","beat_at":%q}`, id, hookID, at[0], time.Now().Add(-time.Minute).Format(time.RFC3339))
	if _, err := bucket.Create(t.Context(), "acme."+id, job); err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	s.until("it is done", func() bool {
		d = s.do(acme, "GET", "/crm/v2/replays/"+id, nil).want(200).data()
		return d["state"] == "done"
	})
	if n, err := s.arrived(); d["sent"] != 3.0 || err != nil || n != 2 {
		t.Errorf("job = %v, %d messages (%v); want 3 sent, 2 of them stored in this test", d, n, err)
	}
}

// TestReplayPausesAtOnce: a fast replay that is paused sends hardly more, and says exactly how many it sent.
func TestReplayPausesAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	const events = 2000
	began := time.Now().Add(-time.Second).UTC().Format(time.RFC3339)
	for i := range events {
		if _, err := eventstream.Publish(t.Context(), s.bus, event.Subject("acme", "crm_deal_created"), uuid.NewString(), nil, fmt.Appendf(nil, `{"transaction_uuid":"n-%d"}`, i)); err != nil {
			t.Fatal(err)
		}
	}
	id := s.do(acme, "POST", "/crm/v2/webhooks/"+hookID+"/replays", map[string]any{"from": began, "rate": 1000}).want(201).id()
	path := "/crm/v2/replays/" + id
	s.do(acme, "POST", path+"/start", nil).want(200)
	s.until("some are sent", func() bool { n, err := s.arrived(); return err == nil && n > 0 })
	s.do(acme, "POST", path+"/pause", nil).want(200)
	paused, err := s.arrived()
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := s.bus.Bucket(t.Context(), topology.BucketReplays)
	if err != nil {
		t.Fatal(err)
	}
	s.until("its runner has stopped", func() bool {
		e, err := bucket.Get(t.Context(), "acme."+id)
		var job struct{ State, Runner string }
		return err == nil && json.Unmarshal(e.Value, &job) == nil && job.State == "paused" && job.Runner == ""
	})
	n, err := s.arrived()
	if err != nil || n >= events || n > paused+200 {
		t.Errorf("%d were sent when the pause was answered, %d in the end (%v)", paused, n, err)
	}
	if sent := number(s.do(acme, "GET", path, nil).want(200).data(), "sent"); sent != float64(n) {
		t.Errorf("it says %v are sent, and %d are", sent, n)
	}
}
