package bus_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// service is a service's bus whose log and metrics the test reads.
type service struct {
	*bus.Bus

	t   *testing.T
	log *observer.ObservedLogs
	reg *prometheus.Registry
}

// always has every pull take a look.
const always = time.Nanosecond

func connect(t *testing.T, s *bustest.Server, name string, look time.Duration) *service {
	t.Helper()
	core, log := observer.New(zap.WarnLevel)
	reg := prometheus.NewRegistry()
	b, err := bus.Connect(bus.Config{URL: s.URL()}, name, zap.New(core), reg)
	if err != nil {
		t.Fatal(err)
	}
	b.LookEvery(look)
	t.Cleanup(b.Close)
	return &service{b, t, log, reg}
}

// restored returns gancho_jetstream_restored_total of a kind.
func (s *service) restored(kind string) float64 {
	s.t.Helper()
	families, err := s.reg.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "gancho_jetstream_restored_total" && m.GetLabel()[0].GetValue() == kind {
				return m.GetCounter().GetValue()
			}
		}
	}
	s.t.Fatalf("no gancho_jetstream_restored_total{kind=%q}", kind)
	return 0
}

// reported checks that the log has the edit as an error, and that the service was not ready for it.
func (s *service) reported(kind, name, change string) {
	s.t.Helper()
	asError, asReason := false, false
	for _, e := range s.log.All() {
		fields := fmt.Sprint(e.ContextMap())
		switch {
		case e.Level == zap.ErrorLevel && e.Message == "a "+kind+" was edited while services ran; setting it back":
			asError = asError || e.ContextMap()[kind] == name && strings.Contains(fields, change)
		case e.Message == "waiting":
			asReason = asReason || strings.Contains(fields, "settings of "+kind+" "+name+": edited while services ran: ") && strings.Contains(fields, change)
		}
	}
	if !asError || !asReason {
		s.t.Errorf("%s %s, %s: logged as an error: %v, as a reason: %v; log: %v", kind, name, change, asError, asReason, s.log.All())
	}
}

// idle pulls from a lane that is empty, which takes a look.
func idle(t *testing.T, p *lane.Puller) {
	t.Helper()
	if n, err := p.Pull(t.Context(), 1, bus.Unbounded, func(*lane.Delivery) {}); n != 0 || err != nil {
		t.Fatalf("pulled %d, %v; want nothing", n, err)
	}
}

func consumerConfig(t *testing.T, js jetstream.JetStream, stream, name string) jetstream.ConsumerConfig {
	t.Helper()
	c, err := js.Consumer(t.Context(), stream, name)
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo().Config
}

func editConsumer(t *testing.T, js jetstream.JetStream, stream, name string, edit func(*jetstream.ConsumerConfig)) {
	t.Helper()
	cfg := consumerConfig(t, js, stream, name)
	edit(&cfg)
	if _, err := js.UpdateConsumer(t.Context(), stream, cfg); err != nil {
		t.Fatal(err)
	}
}

func streamConfig(t *testing.T, js jetstream.JetStream, name string) jetstream.StreamConfig {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config
}

func editStream(t *testing.T, js jetstream.JetStream, name string, edit func(*jetstream.StreamConfig)) {
	t.Helper()
	cfg := streamConfig(t, js, name)
	edit(&cfg)
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// TestEditedConsumerIsSetBack: row 72 of the bad inputs. A service that pulls an edited consumer says so,
// is not ready, and sets it back as soon as the broker lets it.
func TestEditedConsumerIsSetBack(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits()).Close()
	js, d := s.JetStream(), connect(t, s, "dispatcher", always)
	retries, err := lane.Retries(t.Context(), d.Bus, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	before := consumerConfig(t, js, topology.Retries, topology.ConsumerRetries)
	edits := map[string]func(*jetstream.ConsumerConfig){
		"max_deliver 5 -> 2":              func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 2 },
		"ack_wait 1m0s -> 1s":             func(c *jetstream.ConsumerConfig) { c.AckWait = time.Second },
		"max_ack_pending 500000 -> 1":     func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1 },
		"headers_only false -> true":      func(c *jetstream.ConsumerConfig) { c.HeadersOnly = true },
		"inactive_threshold 0s -> 1h0m0s": func(c *jetstream.ConsumerConfig) { c.InactiveThreshold = time.Hour },
		"max_batch 0 -> 7":                func(c *jetstream.ConsumerConfig) { c.MaxRequestBatch = 7 },
		"max_expires 0s -> 2s":            func(c *jetstream.ConsumerConfig) { c.MaxRequestExpires = 2 * time.Second },
		"max_bytes 0 -> 1000":             func(c *jetstream.ConsumerConfig) { c.MaxRequestMaxBytes = 1000 },
		"filter_subjects gancho.retries.due.> -> gancho.retries.due.acme.>": func(c *jetstream.ConsumerConfig) {
			c.FilterSubject = "gancho.retries.due.acme.>"
		},
	}
	editConsumer(t, js, topology.Retries, topology.ConsumerRetries, func(c *jetstream.ConsumerConfig) {
		for _, edit := range edits {
			edit(c)
		}
	})
	idle(t, retries)
	if diff := cmp.Diff(before, consumerConfig(t, js, topology.Retries, topology.ConsumerRetries)); diff != "" {
		t.Error("all at once (-before +after):\n" + diff)
	}
	for change := range edits {
		d.reported("consumer", topology.ConsumerRetries, change)
	}
	// Without what it says of itself, and in ways that change others: the ack wait goes with the backoff.
	editConsumer(t, js, topology.Retries, topology.ConsumerRetries, func(c *jetstream.ConsumerConfig) {
		c.Metadata, c.BackOff = nil, []time.Duration{time.Second, 2 * time.Second}
		c.PriorityPolicy, c.PriorityGroups = jetstream.PriorityPolicyOverflow, []string{"a"}
	})
	idle(t, retries)
	if diff := cmp.Diff(before, consumerConfig(t, js, topology.Retries, topology.ConsumerRetries)); diff != "" {
		t.Error("with the backoff (-before +after):\n" + diff)
	}
	d.reported("consumer", topology.ConsumerRetries, "backoff none -> 1s,2s")
	d.reported("consumer", topology.ConsumerRetries, "priority_groups none -> a")
	if got := d.restored("consumer"); got != 2 || d.State() != "" {
		t.Errorf("set back %v times, state %q; want 2, ready", got, d.State())
	}

	// The stream, whose owner is down, allows no more: not ready as long as that lasts.
	editConsumer(t, js, topology.Retries, topology.ConsumerRetries, func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 3 })
	editStream(t, js, topology.Retries, func(c *jetstream.StreamConfig) { c.ConsumerLimits.MaxAckPending = 3 })
	for range 2 {
		idle(t, retries)
		if want := "settings of consumer dispatcher-retries: edited while services ran: max_ack_pending 500000 -> 3"; d.State() != want {
			t.Errorf("state %q, want %q", d.State(), want)
		}
	}
	if n := d.log.FilterMessage("trouble with the broker; trying again").Len(); n != 1 {
		t.Errorf("the refusal was logged %d times, want once a minute", n)
	}
	editStream(t, js, topology.Retries, func(c *jetstream.StreamConfig) { c.ConsumerLimits.MaxAckPending = 0 })
	waittest.Until(t, "ready", func() bool { idle(t, retries); return d.State() == "" })
	if diff := cmp.Diff(before, consumerConfig(t, js, topology.Retries, topology.ConsumerRetries)); diff != "" {
		t.Error("in the end (-before +after):\n" + diff)
	}
}

// TestReplicasOfOneConsumer: two that are configured differently, as while a change is rolled out, leave each
// other alone, also after one of them set the consumer back.
func TestReplicasOfOneConsumer(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits())
	js, one, two := s.JetStream(), connect(t, s, "dispatcher", always), connect(t, s, "dispatcher", always)
	first, err := lane.First(t.Context(), one.Bus, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	second, err := lane.First(t.Context(), two.Bus, 45*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	both := func(rounds int, ackWait time.Duration, byOne, byTwo float64) {
		t.Helper()
		for range rounds {
			idle(t, first)
			idle(t, second)
			if got := consumerConfig(t, js, topology.Notifications, topology.ConsumerFirst).AckWait; got != ackWait {
				t.Fatalf("ack wait %s, want %s", got, ackWait)
			}
		}
		if one.restored("consumer") != byOne || two.restored("consumer") != byTwo || one.State() != "" || two.State() != "" {
			t.Errorf("set back %v and %v times, want %v and %v; states %q, %q", one.restored("consumer"), two.restored("consumer"), byOne, byTwo, one.State(), two.State())
		}
	}
	both(3, 45*time.Second, 0, 0)
	editConsumer(t, js, topology.Notifications, topology.ConsumerFirst, func(c *jetstream.ConsumerConfig) { c.AckWait = time.Second })
	both(3, 30*time.Second, 1, 0)
	one.reported("consumer", topology.ConsumerFirst, "ack_wait 45s -> 1s")
}

// TestPausedConsumer: a pause is an act on purpose. It is reported, not undone, and what else is edited is set back
// without ending it.
func TestPausedConsumer(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits())
	js, d := s.JetStream(), connect(t, s, "dispatcher", always)
	first, err := lane.First(t.Context(), d.Bus, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Hour)
	if _, err := js.PauseConsumer(t.Context(), topology.Notifications, topology.ConsumerFirst, end); err != nil {
		t.Fatal(err)
	}
	want := "consumer dispatcher: paused until " + end.UTC().Format(time.RFC3339)
	for round := range 3 {
		idle(t, first)
		if d.State() != want {
			t.Errorf("state %q, want %q", d.State(), want)
		}
		if round == 1 {
			editConsumer(t, js, topology.Notifications, topology.ConsumerFirst, func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 1 })
		}
	}
	cfg := consumerConfig(t, js, topology.Notifications, topology.ConsumerFirst)
	if cfg.MaxDeliver != -1 || cfg.PauseUntil == nil || !cfg.PauseUntil.Equal(end) || d.restored("consumer") != 1 {
		t.Errorf("max_deliver %d, paused until %v, set back %v times; want -1, %v, once", cfg.MaxDeliver, cfg.PauseUntil, d.restored("consumer"), end)
	}
	if logged := d.log.FilterMessage("waiting").FilterField(zap.String("for", want)).Len(); logged != 1 {
		t.Errorf("the pause was logged %d times", logged)
	}
	if _, err := js.ResumeConsumer(t.Context(), topology.Notifications, topology.ConsumerFirst); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "ready", func() bool { idle(t, first); return d.State() == "" })

	// Management answers without its index of recent notifications.
	m := connect(t, s, "management", always)
	index, err := journal.Consume(t.Context(), m.Bus, topology.ConsumerIndex)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.PauseConsumer(t.Context(), topology.Attempts, topology.ConsumerIndex, end); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "degraded", func() bool {
		if _, err := index.Pull(t.Context(), 1, 0); err != nil {
			t.Fatal(err)
		}
		return strings.HasPrefix(m.Degraded(), "consumer management-index: paused until ")
	})
	if m.State() != "" {
		t.Errorf("not ready: %s", m.State())
	}
}

// TestWhatAConsumerSaysOfItself survives the broker, is added to consumers that were made without it, and takes
// what the broker adds of its own for ours.
func TestWhatAConsumerSaysOfItself(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits()).Close() // else that one would set the stream back
	js, d := s.JetStream(), connect(t, s, "dispatcher", always)
	if _, err := js.CreateConsumer(t.Context(), topology.Notifications, jetstream.ConsumerConfig{
		Durable: topology.ConsumerFirst, AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Second,
	}); err != nil {
		t.Fatal(err)
	}
	editStream(t, js, topology.MaxDeliveries, func(c *jetstream.StreamConfig) { c.ConsumerLimits.InactiveThreshold = time.Hour })
	first, err := lane.First(t.Context(), d.Bus, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	exhausted, err := lane.Exhausted(t.Context(), d.Bus)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // field: value
		topology.ConsumerFirst:         "max_deliver=-1 ack_wait=1m0s max_ack_pending=50000 backoff= filter_subjects= headers_only=false inactive_threshold=0s max_batch=0 max_expires=0s max_bytes=0 priority_groups=",
		topology.ConsumerMaxDeliveries: "max_deliver=-1 ack_wait=30s max_ack_pending=1000 backoff= filter_subjects= headers_only=false inactive_threshold=1h0m0s max_batch=0 max_expires=0s max_bytes=0 priority_groups=",
	}
	for range 2 {
		for stream, name := range map[string]string{topology.Notifications: topology.ConsumerFirst, topology.MaxDeliveries: topology.ConsumerMaxDeliveries} {
			if got := consumerConfig(t, js, stream, name).Metadata["gancho.settings"]; got != want[name] {
				t.Errorf("%s: %q, want %q", name, got, want[name])
			}
		}
		s.Restart()
		waittest.Until(t, "the broker is back", func() bool { _, err := js.AccountInfo(t.Context()); return err == nil && d.State() == "" })
		waittest.Until(t, "pulls work", func() bool {
			_, err := first.Pull(t.Context(), 1, bus.Unbounded, func(*lane.Delivery) {})
			return err == nil
		})
		waittest.Until(t, "pulls work", func() bool {
			return exhausted.Pull(t.Context(), func(*lane.Retry) error { return nil }) == nil
		})
	}
	if got := d.restored("consumer"); got != 0 || d.State() != "" {
		t.Errorf("set back %v times, state %q; want never, ready", got, d.State())
	}
}

// TestEditedStreamIsSetBack: row 72 of the bad inputs, for streams and buckets. Only the owner sets
// back what would lose or refuse messages; ages and sizes that operators choose stay as they are.
func TestEditedStreamIsSetBack(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits()).Close()
	js := s.JetStream()
	owner := connect(t, s, "publisher", 20*time.Millisecond) // and the other owners but the dispatcher
	for _, o := range []topology.Owner{topology.Publisher, topology.Monitor, topology.Management} {
		if err := owner.Own(t.Context(), o, bustest.Limits()); err != nil {
			t.Fatal(err)
		}
	}
	type edit struct {
		stream, change string
		edit           func(*jetstream.StreamConfig)
	}
	setBack := func(by *service, e edit) {
		t.Helper()
		kind, name := "stream", e.stream
		if bucket, is := strings.CutPrefix(name, "KV_"); is {
			kind, name = "bucket", bucket
		}
		before, count := streamConfig(t, js, e.stream), by.restored(kind)
		editStream(t, js, e.stream, e.edit)
		waittest.Until(t, e.stream+" is set back: "+e.change, func() bool { return by.restored(kind) > count && by.State() == "" })
		if diff := cmp.Diff(before, streamConfig(t, js, e.stream)); diff != "" {
			t.Errorf("%s, %s (-before +after):\n%s", e.stream, e.change, diff)
		}
		if got := by.restored(kind); got != count+1 {
			t.Errorf("%s, %s: counted %v times, want once", e.stream, e.change, got-count)
		}
		by.reported(kind, name, e.change)
	}

	// Another owner's settings are left to it.
	editStream(t, js, topology.Retries, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour })
	// Operators' choices stay when the rest is set back.
	editStream(t, js, topology.Notifications, func(c *jetstream.StreamConfig) {
		c.MaxBytes, c.MaxMsgSize, c.Duplicates, c.Subjects = 1<<30, 1<<20, time.Minute, append(c.Subjects, "gancho.later.*")
		c.AllowDirect, c.Compression, c.Description = false, jetstream.S2Compression, "ours"
	})
	editStream(t, js, topology.Events, func(c *jetstream.StreamConfig) { c.MaxAge, c.MaxBytes = time.Hour, 1<<30 })
	for _, e := range []edit{
		{topology.Notifications, "max_age none -> 1h0m0s", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }},
		{topology.Notifications, "max_msgs none -> 10", func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }},
		{topology.Notifications, "max_msgs_per_subject none -> 1", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }},
		{topology.Notifications, "max_consumers none -> 9", func(c *jetstream.StreamConfig) { c.MaxConsumers = 9 }},
		{topology.Notifications, "discard DiscardNew -> DiscardOld", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }},
		{topology.Notifications, "retention Limits -> Interest", func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }},
		{topology.Notifications, "allow_atomic true -> false", func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false }},
		{topology.Notifications, "no_ack false -> true", func(c *jetstream.StreamConfig) { c.NoAck = true }},
		{topology.Notifications, "consumer_limits {0s 0} -> {1m0s 0}", func(c *jetstream.StreamConfig) { c.ConsumerLimits.InactiveThreshold = time.Minute }},
		{topology.Notifications, "subject_transform none -> gancho.later.* to lost.{{wildcard(1)}}", func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "gancho.later.*", Destination: "lost.{{wildcard(1)}}"}
		}},
		{topology.Events, "subjects crm.events.> -> crm.events.acme.>", func(c *jetstream.StreamConfig) { c.Subjects = []string{"crm.events.acme.>"} }},
		{"KV_WEBHOOKS", "max_age none -> 1h0m0s", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }},
		{"KV_WEBHOOKS", "max_bytes none -> 1000", func(c *jetstream.StreamConfig) { c.MaxBytes = 1000 }},
		{"KV_WEBHOOKS", "max_msgs none -> 10", func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }},
		{"KV_WEBHOOKS", "max_msgs_per_subject 64 -> 1", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }},
		{"KV_WEBHOOKS", "allow_rollup_hdrs false -> true", func(c *jetstream.StreamConfig) { c.AllowRollup = true }},
		{"KV_SUSPENSIONS", "max_msgs_per_subject 1 -> 64", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 64 }},
		{"KV_WEBHOOKS", "discard DiscardNew -> DiscardOld", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }},
		{"KV_WEBHOOKS", "discard_new_per_subject false -> true", func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = true }},
		{"KV_SUSPENSIONS", "allow_rollup_hdrs true -> false", func(c *jetstream.StreamConfig) { c.AllowRollup = false }},
	} {
		setBack(owner, e)
	}
	if c := streamConfig(t, js, topology.Events); c.MaxAge != time.Hour || c.MaxBytes != 1<<30 {
		t.Errorf("CRM_EVENTS: max_age %s, max_bytes %d; the operator had chosen others", c.MaxAge, c.MaxBytes)
	}
	if c := streamConfig(t, js, topology.Retries); c.MaxAge != time.Hour {
		t.Error("RETRIES was set back by services that do not own it")
	}

	// What differs when the owner starts is left alone, until it was put right once.
	dispatcher := connect(t, s, "dispatcher", 20*time.Millisecond)
	if err := dispatcher.Own(t.Context(), topology.Dispatcher, bustest.Limits()); err != nil {
		t.Fatal(err)
	}
	unlimited := edit{topology.Retries, "max_bytes none -> 1000000", func(c *jetstream.StreamConfig) { c.MaxBytes = 1_000_000 }}
	setBack(dispatcher, unlimited)
	if c := streamConfig(t, js, topology.Retries); c.MaxAge != time.Hour {
		t.Error("an age that was there before the owner was set back")
	}
	editStream(t, js, topology.Retries, func(c *jetstream.StreamConfig) { c.MaxAge = 0 })
	setBack(dispatcher, unlimited) // a look lies between
	setBack(dispatcher, edit{topology.Retries, "max_age none -> 2h0m0s", func(c *jetstream.StreamConfig) { c.MaxAge = 2 * time.Hour }})
	setBack(dispatcher, edit{"KV_LEASES", "max_age 4s -> none", func(c *jetstream.StreamConfig) { c.MaxAge = 0 }})
	setBack(dispatcher, edit{topology.Parked, "max_consumers 10000 -> 1", func(c *jetstream.StreamConfig) { c.MaxConsumers = 1 }})
}

// TestWhatCannotBeSetBack: an edit that cannot be undone is reported, those made with it are undone, and a new start
// takes it as it is.
func TestWhatCannotBeSetBack(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits()).Close()
	js, owner := s.JetStream(), connect(t, s, "publisher", 20*time.Millisecond)
	if err := owner.Own(t.Context(), topology.Publisher, bustest.Limits()); err != nil {
		t.Fatal(err)
	}
	editStream(t, js, topology.Notifications, func(c *jetstream.StreamConfig) { c.DenyPurge, c.MaxMsgs = true, 10 })
	waittest.Until(t, "what can be is set back", func() bool { return streamConfig(t, js, topology.Notifications).MaxMsgs == -1 })
	const denied = "settings of stream NOTIFICATIONS: edited while services ran: deny_purge false -> true"
	waittest.Until(t, "not ready", func() bool { return owner.State() == denied })
	editStream(t, js, topology.Rejected, func(c *jetstream.StreamConfig) { c.Sealed = true })
	want := denied + "; settings of stream REJECTED_EVENTS: edited while services ran: sealed false -> true"
	waittest.Until(t, "not ready for both", func() bool { return owner.State() == want })
	count := owner.restored("stream")
	waittest.Until(t, "tried again", func() bool { return owner.restored("stream") > count+4 })
	if owner.State() != want {
		t.Errorf("state %q, want %q", owner.State(), want)
	}
	owner.reported("stream", topology.Rejected, "sealed false -> true")
	for _, e := range owner.log.FilterMessage("trouble with the broker; trying again").All() {
		if !strings.Contains(fmt.Sprint(e.ContextMap()), "the broker does not allow taking back ") {
			t.Errorf("log: %s %v", e.Message, e.ContextMap())
		}
	}
	owner.Close()
	later := connect(t, s, "publisher", 20*time.Millisecond)
	if err := later.Own(t.Context(), topology.Publisher, bustest.Limits()); err != nil {
		t.Fatal(err)
	}
	editStream(t, js, topology.Notifications, func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 })
	waittest.Until(t, "set back", func() bool { return streamConfig(t, js, topology.Notifications).MaxMsgs == -1 && later.State() == "" })
}

// TestLeaderAloneAnswers: of several servers that may answer, one that lags behind would not know what the
// leader acknowledged.
func TestLeaderAloneAnswers(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	servers, l := bustest.StartCluster(t, 30<<30), bustest.Limits()
	l.Replicas = 3
	js, owner := servers[0].JetStream(), connect(t, servers[0], "management", 20*time.Millisecond)
	if err := owner.Own(t.Context(), topology.Management, l); err != nil {
		t.Fatal(err)
	}
	editStream(t, js, "KV_WEBHOOKS", func(c *jetstream.StreamConfig) { c.AllowDirect = true })
	waittest.Until(t, "set back", func() bool { return !streamConfig(t, js, "KV_WEBHOOKS").AllowDirect && owner.State() == "" })
	owner.reported("bucket", topology.BucketWebhooks, "allow_direct false -> true")
}
