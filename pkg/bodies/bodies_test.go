package bodies

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

type rig struct {
	t      *testing.T
	broker *bustest.Server
	bus    *bus.Bus
	store  *Store
}

func newRig(t *testing.T) *rig {
	t.Helper()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	return &rig{t, s, b, NewStore(b, share.New(share.Config{}, share.Limits{}, func(string) bool { return true }), 0)}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// large returns a large event, which is not on CRM_EVENTS.
func large(i int) *event.Event {
	id := event.ID("acme", "crm_deal_created", fmt.Sprint(i))
	return &event.Event{ID: id, Account: "acme", Name: "crm_deal_created", Body: fmt.Appendf(nil, `{"i":%d,"text":%q}`, i, strings.Repeat("x", 20_000))}
}

// referred returns a notification of the event that refers to its body.
func (r *rig) referred(e *event.Event) *notification.Notification {
	r.t.Helper()
	ref, err := r.store.Put(r.t.Context(), e)
	r.must(err)
	n := bustest.Example(1)
	n.EventID, n.EventSequence, n.Body, n.Ref = e.ID, 0, nil, ref
	n.ID = event.NotificationID(e.ID, [16]byte{1})
	n.WebhookID = "01000000-0000-0000-0000-000000000000"
	return n
}

func (r *rig) bodies() uint64 {
	r.t.Helper()
	state, err := r.bus.StreamState(r.t.Context(), topology.Bodies)
	r.must(err)
	return state.Messages
}

// purge removes all bodies.
func (r *rig) purge() {
	r.t.Helper()
	state, err := r.bus.StreamState(r.t.Context(), topology.Bodies)
	r.must(err)
	r.must(r.bus.Purge(r.t.Context(), topology.Bodies, state.Last))
}

func (r *rig) until(what string, is func() bool) { r.t.Helper(); waittest.Until(r.t, what, is) }

// TestFetch: only the event's own bytes are ever handed out, from wherever they still are.
func TestFetch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := large(1)
	n := r.referred(e)
	if got, err := Fetch(t.Context(), r.bus, n); err != nil || !bytes.Equal(got, e.Body) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}

	// Someone has the broker answer onto its subject: before and behind the body.
	forged := bytes.Clone(e.Body)
	forged[len(forged)-3] ^= 1
	subject := n.Ref.Subject(n.Account, n.EventID)
	for _, body := range [][]byte{forged, []byte(`{"stream":"CRM_EVENTS","seq":1}`), nil} {
		_, err := r.bus.Publish(t.Context(), topology.Bodies, bus.NewMessage(subject, "", body))
		r.must(err)
	}
	if got, err := Fetch(t.Context(), r.bus, n); err != nil || !bytes.Equal(got, e.Body) {
		t.Errorf("behind a forged body: got %d bytes, %v", len(got), err)
	}
	r.must(r.bus.Delete(t.Context(), topology.Bodies, 1))
	if got, err := Fetch(t.Context(), r.bus, n); !errors.Is(err, ErrGone) {
		t.Errorf("only forged bodies: got %d bytes, %v", len(got), err)
	}

	// The event is still there.
	ack, err := eventstream.Publish(t.Context(), r.bus, event.Subject("acme", e.Name), "", nil, e.Body)
	r.must(err)
	n.EventSequence = ack.Sequence
	r.purge()
	if got, err := Fetch(t.Context(), r.bus, n); err != nil || !bytes.Equal(got, e.Body) {
		t.Errorf("from CRM_EVENTS: got %d bytes, %v", len(got), err)
	}
	if err := Inline(t.Context(), r.bus, n); err != nil || n.Ref != nil || !bytes.Equal(n.Body, e.Body) {
		t.Errorf("inline: %+v, %v", n.Ref, err)
	}

	// The stream was created again and has another event there.
	other, err := eventstream.Publish(t.Context(), r.bus, event.Subject("acme", e.Name), "", nil, large(2).Body)
	r.must(err)
	n = r.referred(e)
	n.EventSequence = other.Sequence
	r.purge()
	if got, err := Fetch(t.Context(), r.bus, n); !errors.Is(err, ErrGone) {
		t.Errorf("another event: got %d bytes, %v", len(got), err)
	}
}

// TestPutOnce: a body is stored once, whatever happens to its message or the broker's answer.
func TestPutOnce(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]bustest.Fault{"lost": bustest.Lost, "unanswered": bustest.Unanswered} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			proxy := r.broker.Proxy()
			b, err := bus.Connect(bus.Config{URL: proxy.URL()}, "test", bustest.Logger(t), prometheus.NewRegistry())
			r.must(err)
			defer b.Close()
			through := NewStore(b, nil, 0)
			e := large(1)
			broken := &bustest.Break{Fault: fault}
			proxy.Break(broken, func(subject string, _ []byte) bool { return strings.HasPrefix(subject, "gancho.bodies.") })
			ref, err := through.Put(t.Context(), e)
			r.must(err)
			<-broken.Done
			if got := r.bodies(); got != 1 || !ref.Matches(e.Body) {
				t.Errorf("%d bodies, %v; want 1", got, ref)
			}
		})
	}
}

// TestNoRoom: a full BODIES, and an account with its share of it, refuse a body at once.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	l := bustest.Limits()
	l.BodiesMaxBytes = 100_000
	b := s.Topology(l)
	alone := true
	meter := share.New(share.Config{Share: 0.5}, share.Limits{}, func(string) bool { return !alone })
	store := NewStore(b, meter, l.BodiesMaxBytes)
	put := func(i int) error { _, err := store.Put(t.Context(), large(i)); return err }
	for i := range 4 {
		if err := put(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(4); !errors.Is(err, ErrShare) {
		t.Errorf("alone, above nine tenths: %v", err)
	}
	alone = false
	for _, s := range []*Store{store, NewStore(b, meter, l.BodiesMaxBytes)} { // the second one counts first
		if _, err := s.Put(t.Context(), large(4)); !errors.Is(err, ErrShare) {
			t.Errorf("above its share: %v", err)
		}
	}
	foreign := large(5)
	foreign.Account = "globex"
	if _, err := store.Put(t.Context(), foreign); !errors.Is(err, bus.ErrFull) {
		t.Errorf("full: %v", err)
	}
	unlimited := NewStore(b, meter, 0)
	if _, err := unlimited.Put(t.Context(), large(6)); !errors.Is(err, bus.ErrFull) {
		t.Errorf("full, without shares: %v", err)
	}
}

// TestSweep: what a notification refers to stays, wherever that is. What nothing refers to goes after two looks.
func TestSweep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	s := NewSweeper(r.bus, bustest.Logger(t), time.Hour)
	sweep := func(want int) {
		t.Helper()
		if got, err := s.Sweep(ctx); err != nil || got != want {
			t.Fatalf("removed %d bodies, %v; want %d", got, err, want)
		}
	}
	sweep(0)
	first, err := lane.First(ctx, r.bus, time.Minute)
	r.must(err)
	take := func() (d *lane.Delivery) {
		t.Helper()
		for d == nil {
			_, err := first.Pull(ctx, 1, bus.Unbounded, func(got *lane.Delivery) { d = got })
			r.must(err)
		}
		return d
	}
	settled := func() {
		t.Helper()
		r.until("it is settled", func() bool {
			state, err := r.bus.StreamState(ctx, topology.Notifications)
			r.must(err)
			upTo, err := lane.Settled(ctx, r.bus)
			return err == nil && upTo == state.Last
		})
	}

	n := r.referred(large(1))
	r.must(lane.Notify(r.bus, n).Wait(ctx))
	sweep(0)
	sweep(0)
	d := take()
	sweep(0) // it is delivered and not settled
	sweep(0)

	retry := d.Retry(notification.Position{AttemptsDone: 1})
	r.must(lane.Schedule(ctx, r.bus, &retry, time.Now().Add(time.Hour)))
	d.Ack()
	settled()
	sweep(0)
	sweep(0)
	parked := retry.Parked(notification.Position{AttemptsDone: 1})
	moved, err := lane.Park(r.bus, &parked, "key").Receipt(ctx)
	r.must(err)
	waiting, err := lane.Scheduled(ctx, r.bus, n.Account, n.ID)
	r.must(err)
	r.must(lane.Remove(ctx, r.bus, waiting))
	sweep(0)
	sweep(0)
	r.must(lane.Fail(ctx, r.bus, &parked, "[]"))
	r.must(r.bus.Delete(ctx, topology.Parked, moved.Sequence))
	sweep(0)
	sweep(0)
	s.kept[n.Ref.Subject(n.Account, n.EventID)] = time.Now().Add(-time.Minute) // LOG_MAX_AGE has passed
	sweep(0)
	sweep(1)
	if r.bodies() != 0 {
		t.Fatal("the body is still there")
	}

	// An event that comes again stores its body again between two looks.
	e := large(2)
	r.referred(e)
	sweep(0)
	again := r.referred(e)
	r.must(lane.Notify(r.bus, again).Wait(ctx))
	sweep(0)
	if got, err := Fetch(ctx, r.bus, again); err != nil || !bytes.Equal(got, e.Body) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	take().Ack()
	settled()
	sweep(0)
	sweep(2)

	// So does an error between them.
	r.referred(large(3))
	sweep(0)
	r.broker.Stop()
	if _, err := s.Sweep(ctx); err == nil {
		t.Error("without a broker: no error")
	}
	r.broker.Run()
	r.until("the broker is back", func() bool { _, err := r.bus.StreamState(ctx, topology.Bodies); return err == nil })
	sweep(0)
	sweep(1)
}

// TestCache: a body is fetched once for the notifications that come together, is not kept for long or beyond the
// cache's size, and an error is not kept at all.
func TestCache(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nc, err := nats.Connect(r.broker.URL())
	r.must(err)
	defer nc.Close()
	var fetches atomic.Int64
	_, err = nc.Subscribe("$JS.API.DIRECT.GET.BODIES.>", func(*nats.Msg) { fetches.Add(1) })
	r.must(err)
	r.must(nc.Flush())
	c := NewCache(r.bus, 1<<20)
	n := r.referred(large(1))
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			mine := *n
			if err := c.Fill(t.Context(), &mine); err != nil || !n.Ref.Matches(mine.Body) {
				t.Errorf("got %d bytes, %v", len(mine.Body), err)
			}
		})
	}
	work.Wait()
	r.must(nc.Flush())
	if got := fetches.Load(); got != 1 {
		t.Errorf("fetched %d times, want once", got)
	}
	if c.bytes != n.Ref.Length || len(c.bodies) != 1 {
		t.Errorf("the cache holds %d bytes of %d bodies", c.bytes, len(c.bodies))
	}

	small := NewCache(r.bus, 50_000)
	for i := range 5 {
		r.must(small.Fill(t.Context(), r.referred(large(i))))
	}
	if small.bytes > 50_000 || len(small.bodies) != 2 || len(small.order) != 2 {
		t.Errorf("the cache holds %d bytes of %d bodies", small.bytes, len(small.bodies))
	}

	r.purge()
	gone := r.referred(large(9))
	r.purge()
	if err := c.Fill(t.Context(), gone); !errors.Is(err, ErrGone) {
		t.Errorf("gone: %v", err)
	}
	_, err = r.store.Put(t.Context(), large(9))
	r.must(err)
	if err := c.Fill(t.Context(), gone); err != nil {
		t.Errorf("there again: %v", err)
	}
	if err := c.Fill(t.Context(), n); err != nil {
		t.Errorf("kept: %v", err)
	}
}
