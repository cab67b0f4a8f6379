package bus_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

func TestTopologyIsCreatedAndLoosenedOnly(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b, js, l := s.Connect("operator"), s.JetStream(), bustest.Limits()
	l.StoreMaxBytes = 1 << 30
	done, err := b.Apply(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(done, "created stream NOTIFICATIONS") || !slices.Contains(done, "created bucket WEBHOOKS") {
		t.Errorf("done: %v", done)
	}
	if again, err := b.Apply(t.Context(), l); err != nil || len(again) > 0 {
		t.Errorf("applied again: %v, %v; want nothing", again, err)
	}
	parts, err := b.Topology(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if p.Exists != (p.Kind != bus.KindConsumer) || len(p.Changes) > 0 {
			t.Errorf("%s %s: exists %v, changes %v", p.Kind, p.Name, p.Exists, p.Changes)
		}
	}
	st, err := js.Stream(t.Context(), topology.Events)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := st.CachedInfo().Config.MaxBytes, int64(1<<30/100*30); got != want {
		t.Errorf("CRM_EVENTS: max_bytes %d, want %d", got, want)
	}

	// Longer and larger is applied, shorter and smaller is not.
	l.EventsMaxAge, l.LogMaxAge, l.EventsMaxBytes = 2*l.EventsMaxAge, l.LogMaxAge/2, 1<<29
	if done, err = b.Apply(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"stream CRM_EVENTS: max_age 168h0m0s -> 336h0m0s", "stream CRM_EVENTS: max_bytes 322122540 -> 536870912"}, done); diff != "" {
		t.Error("done (-want +got):\n" + diff)
	}
	parts, err = b.Topology(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(parts, func(p bus.Part) bool { return p.Name == topology.Attempts })
	if diff := cmp.Diff([]bus.Change{{Field: "max_age", Have: "720h0m0s", Want: "360h0m0s"}}, parts[at].Changes); diff != "" {
		t.Error("ATTEMPTS (-want +got):\n" + diff)
	}
}

// TestHostedBroker: on a broker that demands max_bytes of every stream, MAX_BYTES_EVERYWHERE gives every stream and
// bucket one, and together they fit into what the account has.
func TestHostedBroker(t *testing.T) {
	t.Parallel()
	l := bustest.Limits()
	if _, err := bustest.StartHosted(t, 1<<30).Connect("operator").Apply(t.Context(), l); err == nil || !strings.Contains(err.Error(), "max bytes") {
		t.Errorf("without MAX_BYTES_EVERYWHERE: %v; the broker should refuse something", err)
	}
	s := bustest.StartHosted(t, 1<<30)
	b, js := s.Connect("operator"), s.JetStream()
	l.MaxBytesEverywhere = true
	if _, err := b.Apply(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	parts, err := b.Topology(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, p := range parts {
		if p.Kind == bus.KindConsumer {
			continue
		}
		name := p.Name
		if p.Kind == bus.KindBucket {
			name = topology.BucketPrefix + name
		}
		st, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		limit := st.CachedInfo().Config.MaxBytes
		if sum += limit; limit <= 0 || len(p.Changes) > 0 {
			t.Errorf("%s %s: max_bytes %d, changes %v", p.Kind, p.Name, limit, p.Changes)
		}
		if p.Name == topology.Retries && limit < 4*l.MaxBytes(topology.Retries) {
			t.Errorf("RETRIES drops messages from %d bytes on, first attempts pause at twice %d", limit, l.MaxBytes(topology.Retries))
		}
	}
	if sum > 1<<30 {
		t.Errorf("the limits are %d bytes together", sum)
	}
}

func TestBackupRoundTrip(t *testing.T) {
	t.Parallel()
	from := bustest.Start(t)
	b := from.Topology(bustest.Limits())
	first, err := lane.First(t.Context(), b, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		n := bustest.Example(i + 1)
		n.Body = []byte(strings.Repeat("x", 2000))
		if err := lane.Notify(b, n).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range pull(t, first, 100) {
		r := notification.Record{
			Kind: notification.KindAttempt, At: time.Now(), Account: d.Account, NotificationID: d.ID, WebhookID: d.WebhookID, Send: 1, State: notification.Delivered,
		}
		if _, err := journal.Write(t.Context(), b, &r); err != nil {
			t.Fatal(err)
		}
		d.Ack()
	}
	later := bustest.Example(7)
	later.Moves = 1
	if err := lane.Schedule(t.Context(), b, later, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	hooks, err := b.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hooks.Put(t.Context(), "acme.one", []byte("{}")); err != nil {
		t.Fatal(err)
	}

	to := bustest.Start(t)
	c := to.Connect("operator")
	describe := func(s *bustest.Server, stream string) jetstream.StreamInfo {
		t.Helper()
		st, err := s.JetStream().Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(stream, err)
		}
		info := *st.CachedInfo()
		info.TimeStamp, info.Created, info.Cluster = time.Time{}, time.Time{}, nil // the broker's own
		info.State.FirstSeq = max(info.State.FirstSeq, 1)                          // of an empty one
		return info
	}
	for _, stream := range topology.Backup() {
		var file bytes.Buffer
		meta, err := b.Backup(t.Context(), stream, &file)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Restore(t.Context(), stream, meta, bytes.NewReader(file.Bytes())); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(describe(from, stream), describe(to, stream)); diff != "" {
			t.Errorf("%s (-original +restored):\n%s", stream, diff)
		}
		if meta.Messages() > 0 {
			if err := c.Restore(t.Context(), stream, meta, bytes.NewReader(file.Bytes())); err == nil || !strings.Contains(err.Error(), "not empty") {
				t.Errorf("%s restored over messages: %v", stream, err)
			}
		}
	}
	// Work goes on where it stopped: 200 are left, the journal and the registry are known, the retry is scheduled.
	again, err := lane.First(t.Context(), c, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if state, err := c.ConsumerState(t.Context(), topology.Durable{Stream: topology.Notifications, Name: topology.ConsumerFirst}); err != nil || state.Pending+uint64(state.AckPending) != 200 {
		t.Errorf("left: %+v, %v; want 200", state, err)
	}
	if d := pull(t, again, 1)[0]; d.ID != bustest.Example(101).ID {
		t.Errorf("the next is event %d, want 101", d.EventSequence)
	}
	if r, err := journal.Last(t.Context(), c, "acme", bustest.Example(1).ID); err != nil || r.State != notification.Delivered {
		t.Errorf("the journal: %+v, %v", r, err)
	}
	if x, err := lane.Scheduled(t.Context(), c, "acme", later.ID); err != nil || x.Moves != 1 {
		t.Errorf("the schedule: %+v, %v", x, err)
	}
	if k, err := c.Bucket(t.Context(), topology.BucketWebhooks); err != nil {
		t.Error(err)
	} else if e, err := k.Get(t.Context(), "acme.one"); err != nil || string(e.Value) != "{}" {
		t.Errorf("the registry: %+v, %v", e, err)
	}
	if _, err := b.Backup(t.Context(), "NO_SUCH", &bytes.Buffer{}); err == nil {
		t.Error("a stream that does not exist was copied")
	}
}

// TestBucketsAreOrdinary: nats.go takes each bucket for one that it made itself.
func TestBucketsAreOrdinary(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits())
	js := s.JetStream()
	for _, o := range topology.Owners() {
		for _, cfg := range o.Buckets(bustest.Limits()) {
			name := strings.TrimPrefix(cfg.Name, "KV_")
			if !cfg.AllowRollup || cfg.Discard != jetstream.DiscardNew { // not as nats.go makes one; it can still open it
				if _, err := js.KeyValue(t.Context(), name); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: name, Description: cfg.Description, TTL: cfg.MaxAge}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
