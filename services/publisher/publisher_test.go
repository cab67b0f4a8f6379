package publisher

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/condition"
	"gancho/pkg/event"
	"gancho/pkg/numbers"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
	"gancho/pkg/webhook"
	"gancho/services/internal/testsystem"
)

// rig is a publisher on a real broker; the test plays the CRM and looks at the streams.
type rig struct {
	t        *testing.T
	js       jetstream.JetStream
	webhooks *bus.Bucket
	stop     func()
	broker   *bustest.Server
	log      *zap.Logger
	metrics  *prometheus.Registry
	limits   topology.Limits
}

func newRig(t *testing.T) *rig { t.Helper(); return newRigWith(t, bustest.Limits()) }

func newRigWith(t *testing.T, l topology.Limits) *rig {
	t.Helper()
	r := &rig{t: t, limits: l, broker: bustest.Start(t), log: bustest.Logger(t), metrics: prometheus.NewRegistry()}
	b := r.broker.Connect("test")
	err := b.Create(t.Context(), l) // an owner would set back what tests edit
	if err != nil {
		t.Fatal(err)
	}
	if r.webhooks, err = b.Bucket(t.Context(), topology.BucketWebhooks); err != nil {
		t.Fatal(err)
	}
	r.js = r.broker.JetStream()
	return r
}

func (r *rig) start() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg := Config{Bus: bus.Config{URL: r.broker.URL()}, Limits: r.limits}
	r.metrics = prometheus.NewRegistry() // of this run
	proc := &service.Process{Name: "publisher", Log: r.log, Metrics: r.metrics, Health: service.NewHealth()}
	go func() { done <- Run(ctx, cfg, proc) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("publisher: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
}

func (r *rig) webhook(account string, pattern webhook.Pattern, status webhook.Status, when ...string) *webhook.Webhook {
	r.t.Helper()
	w := newWebhook(account, pattern, status)
	for _, line := range when {
		c, err := condition.Parse(line)
		if err != nil {
			r.t.Fatal(err)
		}
		w.Conditions = append(w.Conditions, c)
	}
	if err := r.register(w); err != nil {
		r.t.Fatal(err)
	}
	return w
}

func newWebhook(account string, pattern webhook.Pattern, status webhook.Status) *webhook.Webhook {
	id := uuid.New()
	return &webhook.Webhook{ID: id.String(), UUID: id, Account: account, EventName: pattern, Method: "POST", URL: "https://receiver.example/", Status: status, Version: 1}
}

func (r *rig) register(w *webhook.Webhook) error {
	body, err := registry.Sign(seal.New(), w)
	if err == nil {
		_, err = r.webhooks.Put(r.t.Context(), w.Key(), body)
	}
	return err
}

// notificationOf returns the id of the notification of an event without a document.
func notificationOf(account, transaction string, w *webhook.Webhook) string {
	return event.NotificationID(event.ID(account, "crm_deal_created", transaction), w.UUID)
}

func (r *rig) publish(subject, body string, header nats.Header) {
	r.t.Helper()
	if _, err := r.js.PublishMsg(r.t.Context(), &nats.Msg{Subject: subject, Header: header, Data: []byte(body)}); err != nil {
		r.t.Fatal(err)
	}
}

// stored waits until the publisher has settled every event, and returns the stream's messages.
func (r *rig) stored(stream string) []*jetstream.RawStreamMsg {
	r.t.Helper()
	r.until("the publisher has settled every event", func() bool {
		c, err := r.js.Consumer(r.t.Context(), topology.Events, topology.ConsumerPublisher)
		if err != nil {
			return false
		}
		events, err := r.js.Stream(r.t.Context(), topology.Events)
		if err != nil {
			r.t.Fatal(err)
		}
		info := c.CachedInfo()
		return info.NumPending == 0 && info.NumAckPending == 0 && info.AckFloor.Stream == events.CachedInfo().State.LastSeq
	})
	s, err := r.js.Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	out := make([]*jetstream.RawStreamMsg, state.LastSeq-state.FirstSeq+1)
	r.together(len(out), func(i int) (err error) {
		out[i], err = s.GetMsg(r.t.Context(), state.FirstSeq+uint64(i))
		return err
	})
	return out
}

// together calls do with 0 to n-1, many at once: one by one, each would wait for the broker.
func (r *rig) together(n int, do func(i int) error) {
	r.t.Helper()
	var calls errgroup.Group
	calls.SetLimit(64)
	for i := range n {
		calls.Go(func() error { return do(i) })
	}
	if err := calls.Wait(); err != nil {
		r.t.Fatal(err)
	}
}

// manyWebhooks registers n webhooks of the account for every event.
func (r *rig) manyWebhooks(account string, n int) {
	r.t.Helper()
	r.together(n, func(int) error { return r.register(newWebhook(account, "*", webhook.Active)) })
}

const body = `{"event_name":"crm_deal_created","transaction_uuid":"t-1","n":1.50}`

func TestFansOutToWhatMatches(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	exact := r.webhook("acme", "crm_deal_created", webhook.Active)
	wild := r.webhook("acme", "crm_deal_*", webhook.Active)
	r.webhook("acme", "crm_task_created", webhook.Active)
	r.webhook("acme", "crm_deal_created", webhook.Disabled)
	r.webhook("other", "*", webhook.Active)
	r.start()
	r.publish("crm.events.acme.crm_deal_created", body, nil)
	r.publish("crm.events.acme.crm_deal_created", body, nil) // the same again
	r.publish("crm.events.nobody.crm_deal_created", body, nil)
	var got []string
	for _, m := range r.stored(topology.Notifications) {
		if string(m.Data) != body {
			t.Errorf("body: got %s", m.Data)
		}
		got = append(got, m.Header.Get("Gancho-Notification-Id"))
	}
	id := event.ID("acme", "crm_deal_created", "t-1")
	want := []string{event.NotificationID(id, exact.UUID), event.NotificationID(id, wild.UUID)}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("notifications: got %v, want %v", got, want)
	}
}

func TestWebhookCountsAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	r.webhook("warm", "*", webhook.Active)
	r.publish("crm.events.warm.crm_deal_created", body, nil)
	r.stored(topology.Notifications) // the publisher runs
	for i := range 20 {
		account := fmt.Sprint("acme", i)
		r.webhook(account, "*", webhook.Active)
		deadline := time.Now().Add(time.Second) // what the contract promises; in practice milliseconds
		for n := 0; ; n++ {
			before := len(r.stored(topology.Notifications))
			r.publish("crm.events."+account+".crm_deal_created", fmt.Sprintf(`{"transaction_uuid":"try-%d"}`, n), nil)
			if len(r.stored(topology.Notifications)) > before {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a new webhook does not count after a second")
			}
		}
	}
}

func TestRejectsWithReasonAndGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.webhook("acme", "*", webhook.Active)
	r.start()
	for _, tc := range []struct{ subject, body, reason string }{
		{"crm.events.acme.crm_deal_created", `[1]`, "not_object"},
		{"crm.events.acme.crm_deal_created", `{"a":`, "bad_json"},
		{"crm.events.acme", `{}`, "bad_subject"},
		{"crm.events.acme.crm_deal_created", `{"event_name":"crm_deal_updated"}`, "event_name_mismatch"},
		{"crm.events.acme.crm_deal_created", `{"transaction_uuid":"a.b"}`, "bad_transaction_uuid"},
	} {
		r.publish(tc.subject, tc.body, nil)
		all := r.stored(topology.Rejected)
		last := all[len(all)-1]
		if last.Header.Get("Gancho-Reason") != tc.reason || last.Header.Get("Gancho-Subject") != tc.subject || string(last.Data) != tc.body {
			t.Errorf("%s: got %v %q", tc.reason, last.Header, last.Data)
		}
	}
	r.publish("crm.events.acme.crm_deal_created", body, nil)
	if n := len(r.stored(topology.Notifications)); n != 1 {
		t.Errorf("the event behind them: got %d notifications, want 1", n)
	}
}

func TestCloudEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.webhook("acme", "*", webhook.Active)
	r.start()
	r.publish("crm.events.acme.crm_lead_created", `{ "raw" : true }`, nats.Header{
		"ce-id": {"ce-1"}, "ce-type": {"crm_lead_created"}, "ce-source": {"/crm"}, "ce-specversion": {"1.0"},
	})
	all := r.stored(topology.Notifications)
	want := event.NotificationID(event.ID("acme", "crm_lead_created", "ce-1"), w.UUID)
	if len(all) != 1 || all[0].Header.Get("Gancho-Notification-Id") != want || string(all[0].Data) != `{ "raw" : true }` {
		t.Errorf("got %+v", all)
	}
}

// TestBulkChange: two documents under one transaction_uuid are two events, and each again is the same one.
func TestBulkChange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.webhook("acme", "*", webhook.Active)
	r.start()
	want := map[string]bool{}
	for range 2 {
		for _, document := range []string{"a", "b"} {
			r.publish("crm.events.acme.crm_deal_updated", fmt.Sprintf(`{"transaction_uuid":"t","document":{"id":%q}}`, document), nil)
			want[event.NotificationID(event.ID("acme", "crm_deal_updated", "t/"+document), w.UUID)] = true
		}
	}
	got := map[string]bool{}
	all := r.stored(topology.Notifications)
	for _, m := range all {
		got[m.Header.Get("Gancho-Notification-Id")] = true
	}
	if len(all) != 2 || !maps.Equal(got, want) {
		t.Errorf("%d notifications %v, want %v", len(all), got, want)
	}
}

// TestCloudEventsStructured: the wrapper's event goes on, and one that cannot is rejected with its wrapper.
func TestCloudEventsStructured(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.webhook("acme", "*", webhook.Active)
	r.start()
	const head = `{"specversion":"1.0","id":"ce-9","source":"/crm","type":"crm_lead_created","data":`
	r.publish("crm.events.acme.crm_lead_created", head+`{ "raw" : 1.50 } }`, nats.Header{"Gancho-Origin": {"app-7"}, "Gancho-Changed": {"name"}})
	all := r.stored(topology.Notifications)
	want := event.NotificationID(event.ID("acme", "crm_lead_created", "ce-9"), w.UUID)
	if len(all) != 1 || all[0].Header.Get("Gancho-Notification-Id") != want || string(all[0].Data) != `{ "raw" : 1.50 }` {
		t.Errorf("got %+v", all)
	}
	r.publish("crm.events.acme.crm_lead_created", head+`[]}`, nil)
	if rejected := r.stored(topology.Rejected); len(rejected) != 1 || string(rejected[0].Data) != head+`[]}` || rejected[0].Header.Get("Gancho-Reason") != "not_object" {
		t.Errorf("rejected: %+v", rejected)
	}
}

// events returns how many events had that result.
func (r *rig) events(result string) float64 { return r.counter("gancho_events_total", result) }

// counter returns the sum of a counter's values with those values of labels, 0 when there are none.
func (r *rig) counter(name string, labels ...string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := func(value string) bool {
				return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == value })
			}
			if !slices.ContainsFunc(labels, func(value string) bool { return !has(value) }) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// until waits for a state of things.
func (r *rig) until(what string, reached func() bool) {
	r.t.Helper()
	waittest.Until(r.t, what, reached)
}

// TestNobodyListens: row 59 of the bad inputs. An event that no webhook matches is settled and counted.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	r := newRig(t)
	r.log = zap.New(core)
	r.webhook("acme", "crm_task_created", webhook.Active)
	r.webhook("other", "*", webhook.Active)
	r.start()
	for i := range 3 {
		r.publish("crm.events.acme.crm_deal_created", fmt.Sprintf(`{"transaction_uuid":"t-%d"}`, i), nil)
	}
	if n := len(r.stored(topology.Notifications)); n != 0 {
		t.Errorf("%d notifications", n)
	}
	if n := len(r.stored(topology.Rejected)); n != 0 {
		t.Errorf("%d rejected", n)
	}
	if none, matched := r.events("no_webhooks"), r.events("matched"); none != 3 || matched != 0 {
		t.Errorf("%v counted without webhooks, %v as matched; want 3 and 0", none, matched)
	}
	seen := map[any]bool{}
	for _, line := range logs.FilterMessage("event matched by no webhook").All() {
		if f := line.ContextMap(); line.Level == zap.DebugLevel && f["account_id"] == "acme" && f["event_name"] == "crm_deal_created" {
			seen[f["transaction_uuid"]] = true
		}
	}
	if !maps.Equal(seen, map[any]bool{"t-0": true, "t-1": true, "t-2": true}) {
		t.Errorf("lines at debug: %v", seen)
	}
}

// TestConditionsHoldBack publishes events with bodies and headers of which each webhook wants some.
func TestConditionsHoldBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	all := r.webhook("acme", "crm_deal_created", webhook.Active)
	large := r.webhook("acme", "crm_deal_*", webhook.Active, "document.n gt 9007199254740992")
	moved := r.webhook("acme", "crm_deal_created", webhook.Active, "$changed contains deal_stage", "$origin ne erp")
	r.webhook("other", "*", webhook.Active, "document.gone exists")
	r.start()
	want := map[string][]*webhook.Webhook{"a": {all}, "b": {all, large}, "c": {all, large, moved}, "d": {all}}
	r.publish("crm.events.acme.crm_deal_created", `{"transaction_uuid":"a","document":{"n":9007199254740992}}`, nil)
	r.publish("crm.events.acme.crm_deal_created", `{"transaction_uuid":"b","document":{"n":9007199254740993}}`, nats.Header{"Gancho-Changed": {"n"}})
	r.publish("crm.events.acme.crm_deal_created", `{"transaction_uuid":"c","document":{"n":1e400}}`, nats.Header{"Gancho-Changed": {"n, deal_stage.id"}})
	r.publish("crm.events.acme.crm_deal_created", `{"transaction_uuid":"d"}`, nats.Header{"Gancho-Changed": {"deal_stage"}, "Gancho-Origin": {"erp"}})
	r.publish("crm.events.other.crm_deal_created", `{}`, nil)
	got := map[string]int{}
	for _, m := range r.stored(topology.Notifications) {
		got[m.Header.Get("Gancho-Notification-Id")]++
	}
	notifications := 0
	for transaction, hooks := range want {
		for _, w := range hooks {
			notifications++
			if got[notificationOf("acme", transaction, w)] != 1 {
				t.Errorf("event %s: no notification for %v", transaction, w.Conditions)
			}
		}
	}
	if len(got) != notifications {
		t.Errorf("%d notifications, want %d", len(got), notifications)
	}
	if matched, held := r.events("matched"), r.events("held_back"); matched != 4 || held != 1 {
		t.Errorf("%v events counted as matched, %v as held back; want 4 and 1", matched, held)
	}
	if held := r.counter("gancho_notifications_held_back_total"); held != 6 {
		t.Errorf("%v notifications counted as held back, want 6", held)
	}
	if got, want := r.held(all, large, moved), map[string]uint64{large.ID: 2, moved.ID: 3}; !maps.Equal(got, want) {
		t.Errorf("stats count as held back %v, want %v", got, want)
	}
}

// held returns how many events the statistics count as held back, by webhook.
func (r *rig) held(webhooks ...*webhook.Webhook) map[string]uint64 {
	r.t.Helper()
	now := time.Now().UTC().Truncate(24 * time.Hour)
	out := map[string]uint64{}
	keeper := numbers.New(r.broker.Connect("numbers"), r.log)
	for _, w := range webhooks {
		of, err := keeper.Webhook(r.t.Context(), w.Account, w.ID, now.Add(-24*time.Hour), now.Add(48*time.Hour), 24*time.Hour)
		if err != nil {
			r.t.Fatal(err)
		}
		for i := range of {
			if n := of[i].Held; n > 0 {
				out[w.ID] += n
			}
		}
	}
	return out
}

// TestHeldBackCountsOnce: events that come again, because their consumer began again or their acknowledgement was lost,
// count once for each webhook, however many hold them back.
func TestHeldBackCountsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const hooks, events = numbers.HeldPerMessage + 1, 3
	var all []*webhook.Webhook
	for range hooks {
		all = append(all, r.webhook("acme", "crm_deal_created", webhook.Active, "document.n gt 1"))
	}
	r.webhook("acme", "crm_deal_created", webhook.Active)
	r.start()
	for i := range events {
		r.publish("crm.events.acme.crm_deal_created", fmt.Sprintf(`{"transaction_uuid":"t-%d","document":{"n":1}}`, i), nil)
	}
	if n := len(r.stored(topology.Held)); n != 2*events {
		t.Fatalf("%d messages on HELD, want 2 for each event", n)
	}
	r.stop()
	// All over again, with a broker that has forgotten all message ids.
	if err := r.js.DeleteConsumer(t.Context(), topology.Events, topology.ConsumerPublisher); err != nil {
		t.Fatal(err)
	}
	held, err := r.js.Stream(t.Context(), topology.Held)
	if err != nil {
		t.Fatal(err)
	}
	cfg := held.CachedInfo().Config
	cfg.Duplicates = 100 * time.Millisecond
	if _, err := r.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	// One part of the first event was not stored before the crash.
	if err := held.DeleteMsg(t.Context(), held.CachedInfo().State.FirstSeq); err != nil {
		t.Fatal(err)
	}
	r.until("the broker has forgotten the message ids", func() bool {
		ack, err := r.js.PublishMsg(t.Context(), &nats.Msg{
			Subject: "gancho.held.probe.1.0", Header: nats.Header{nats.MsgIdHdr: {"acme:" + fmt.Sprint(events) + ":1"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return !ack.Duplicate
	})
	r.start()
	bytes := 0
	for _, m := range r.stored(topology.Held) {
		bytes += len(m.Data)
	}
	if bytes != 16*hooks*events {
		t.Errorf("HELD names %d webhooks, want %d of %d events", bytes/16, hooks, events)
	}
	want := map[string]uint64{all[0].ID: events, all[hooks-1].ID: events}
	if got := r.held(all[0], all[hooks-1]); !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// TestUnreadableConditionWaits: an event of an account with a condition that only a newer publisher knows waits for
// one; the events of others go on.
func TestUnreadableConditionWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.webhook("acme", "crm_deal_created", webhook.Active, "document.n gt 1")
	r.webhook("other", "*", webhook.Active)
	w.Conditions[0].Op = "matches"
	value, err := registry.Sign(seal.New(), w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.webhooks.Put(t.Context(), w.Key(), value); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.publish("crm.events.acme.crm_deal_created", `{"document":{"n":1}}`, nil)
	r.publish("crm.events.other.crm_deal_created", `{}`, nil)
	r.until("the other account's event is handled and acme's waits", func() bool {
		return r.events("matched") == 1 && r.counter("gancho_newer_messages_total") > 0
	})
	w.Conditions[0].Op = condition.Gte
	if value, err = registry.Sign(seal.New(), w); err != nil {
		t.Fatal(err)
	}
	if _, err := r.webhooks.Put(t.Context(), w.Key(), value); err != nil {
		t.Fatal(err)
	}
	r.stored(topology.Notifications)
	if n := r.events("matched"); n != 2 {
		t.Errorf("%v events matched, want 2", n)
	}
}

// TestTextStaysText: rows 52, 60 and 68 of the bad inputs. Whatever text is in an event or in its headers, the
// body goes on byte for byte, the headers do not, and the log holds none of it.
func TestTextStaysText(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	r := newRig(t)
	r.log = zap.New(core)
	r.webhook("acme", "*", webhook.Active)
	r.start()
	const canary = "c4n4ry"
	headers := nats.Header{
		"traceparent": {"00-" + canary + "-x-01"}, "tracestate": {canary}, "baggage": {strings.Repeat(canary+"=1,", 1500)},
		"X-Other": {canary + "\x1b[2J\xff"}, "ce-source": {canary + "</script>"},
	}
	bodies := []string{
		"{\r\n\t\"name\" : \"" + canary + "<script>alert(1)</script>\\r\\n{\\\"level\\\":\\\"error\\\"}\" }\r\n",
		`{"name":"` + canary + `\u001b[31m\u0000\u202e` + "\u2028\u202e\x7f" + `"}`,
		"{\"name\":\"" + canary + "\xff\xc0\xaf\", \"half\":\"\\ud800\"}",
		`{"event_name":"crm_deal_created","other":1,"other":"` + canary + `","Event_Name":7}`,
	}
	for _, b := range bodies {
		r.publish("crm.events.acme.crm_deal_created", b, headers)
	}
	for _, b := range []string{
		`{"name":"` + canary, "[\"" + canary + "\x00\"]", `{"transaction_uuid":"` + canary + `\n"}`, `{"event_name":"` + canary + `"}`,
		`{"event_name":"crm_deal_created","event_name":"` + canary + `"}`,
	} {
		r.publish("crm.events.acme.crm_deal_created", b, headers)
	}
	if n := len(r.stored(topology.Rejected)); n != 5 {
		t.Errorf("%d rejected, want 5", n)
	}
	all := r.stored(topology.Notifications)
	if len(all) != len(bodies) {
		t.Fatalf("%d notifications, want %d", len(all), len(bodies))
	}
	for _, m := range all {
		if !slices.Contains(bodies, string(m.Data)) {
			t.Errorf("this body was not sent: %q", m.Data)
		}
		if text := fmt.Sprint(m.Header); strings.Contains(text, canary) || m.Header.Get("traceparent") != "" {
			t.Errorf("headers went on: %.300s", text)
		}
	}
	r.stop()
	for _, line := range logs.All() {
		if text := fmt.Sprint(line.Message, line.ContextMap()); strings.Contains(text, canary) {
			t.Errorf("logged: %.300s", text)
		}
	}
}

// TestLargestEvent: rows 47 and 48 of the bad inputs. The broker's limit leaves room for headers, so a body may
// be larger than EVENT_MAX_BYTES and still be stored: it is no event. One of exactly that is, and arrives whole.
func TestLargestEvent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.webhook("acme", "*", webhook.Active)
	r.start()
	of := func(size int) string {
		const head, tail = `{"n":"`, `"}`
		return head + strings.Repeat("x", size-len(head)-len(tail)) + tail
	}
	most := bustest.Limits().EventMaxBytes
	const subject = "crm.events.acme.crm_deal_created"
	for _, size := range []int{most + 1, most + 900} {
		r.publish(subject, of(size), nil)
		all := r.stored(topology.Rejected)
		if len(all) == 0 {
			t.Fatalf("%d bytes were not rejected", size)
		}
		last := all[len(all)-1]
		if last.Header.Get("Gancho-Reason") != "not_object" || last.Header.Get("Gancho-Subject") != subject || string(last.Data) != of(size) {
			t.Errorf("%d bytes: got %v and %d bytes", size, last.Header, len(last.Data))
		}
	}
	if n := len(r.stored(topology.Notifications)); n != 0 {
		t.Errorf("%d notifications of what is no event", n)
	}
	r.publish(subject, of(most), nats.Header{"Nats-Msg-Id": {strings.Repeat("i", 64+1+64+1+128)}})
	if all := r.stored(topology.Notifications); len(all) != 1 || string(all[0].Data) != of(most) {
		t.Errorf("%d notifications of the largest event, want it whole", len(all))
	}
}

// TestFanOutIsWholeAfterAStop: row 58 of the bad inputs. A publisher that is stopped or killed in the middle of a
// large fan-out, where a full stream holds it, loses none of the notifications and doubles none.
func TestFanOutIsWholeAfterAStop(t *testing.T) {
	t.Parallel()
	const many, some = 3 * page, 2*page - 16
	full := func(r *rig, messages int64) {
		r.t.Helper()
		s, err := r.js.Stream(r.t.Context(), topology.Notifications)
		if err != nil {
			r.t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		cfg.MaxMsgs = messages
		if _, err := r.js.UpdateStream(r.t.Context(), cfg); err != nil {
			r.t.Fatal(err)
		}
	}
	begin := func(t *testing.T) *rig {
		t.Helper()
		r := newRig(t)
		r.manyWebhooks("acme", many)
		full(r, some)
		r.publish("crm.events.acme.crm_deal_created", body, nil)
		return r
	}
	halfway := func(r *rig) {
		r.t.Helper()
		r.until(fmt.Sprint("there are ", some, " notifications"), func() bool {
			s, err := r.js.Stream(r.t.Context(), topology.Notifications)
			if err != nil {
				r.t.Fatal(err)
			}
			return s.CachedInfo().State.Msgs == some
		})
	}
	whole := func(r *rig) {
		r.t.Helper()
		seen := map[string]int{}
		for _, m := range r.stored(topology.Notifications) {
			seen[m.Header.Get("Gancho-Webhook-Id")]++
		}
		if len(seen) != many {
			r.t.Errorf("%d webhooks have a notification, want %d", len(seen), many)
		}
		for id, n := range seen {
			if n != 1 {
				r.t.Errorf("webhook %s has %d notifications", id, n)
			}
		}
	}
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		r := begin(t)
		r.start()
		halfway(r)
		done := make(chan struct{})
		go func() { defer close(done); r.stop() }()
		full(r, -1)
		<-done
		whole(r) // no other publisher is there to complete it
	})
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		r := begin(t)
		p := testsystem.NewProcess(t, "publisher", []string{brokerOfChild + "=" + r.broker.URL()}, os.Args[0])
		p.Start()
		t.Cleanup(p.Kill)
		halfway(r)
		p.Kill()
		full(r, -1)
		// The broker hands the event out again after its wait, which is not waited for here.
		s, err := r.js.Stream(t.Context(), topology.Events)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Consumer(t.Context(), topology.ConsumerPublisher)
		if err != nil {
			t.Fatal(err)
		}
		cfg := c.CachedInfo().Config
		cfg.AckWait = 10 * time.Millisecond
		if c, err = s.UpdateConsumer(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		m, err := c.Next(jetstream.FetchMaxWait(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
		r.start()
		whole(r)
	})
}

// brokerOfChild makes of this test a publisher, for another test to kill.
const brokerOfChild = "GANCHO_TEST_PUBLISHER_OF"

func TestMain(m *testing.M) {
	url := os.Getenv(brokerOfChild)
	if url == "" {
		os.Exit(m.Run())
	}
	proc := &service.Process{Name: "publisher", Log: zap.NewNop(), Metrics: prometheus.NewRegistry(), Health: service.NewHealth()}
	if err := Run(context.Background(), Config{Bus: bus.Config{URL: url}, Limits: bustest.Limits()}, proc); err != nil {
		panic(err)
	}
}

// TestLargeFanOutHoldsUpNothing: 3,000 webhooks match the first event; the one behind it is stored before the
// last of them.
func TestLargeFanOutHoldsUpNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t)
	const many = 3_000
	r.manyWebhooks("large", many)
	r.webhook("small", "*", webhook.Active)
	r.publish("crm.events.large.crm_deal_created", body, nil)
	r.publish("crm.events.small.crm_deal_created", body, nil)
	r.start()
	all := r.stored(topology.Notifications)
	if len(all) != many+1 {
		t.Fatalf("got %d notifications, want %d", len(all), many+1)
	}
	seen := map[string]bool{}
	small := 0
	for i, m := range all {
		seen[m.Header.Get("Gancho-Notification-Id")] = true
		if m.Header.Get("Gancho-Account") == "small" {
			small = i
		}
	}
	if len(seen) != many+1 {
		t.Errorf("%d distinct notifications of %d", len(seen), many+1)
	}
	if small > many/2 {
		t.Errorf("the small account's notification is number %d of %d", small, len(all))
	}
}
