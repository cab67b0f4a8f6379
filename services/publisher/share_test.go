package publisher

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/books"
	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/registry"
	"gancho/pkg/share"
	"gancho/pkg/suspension/status"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// crowd is a publisher, the books and a dispatcher that ends what comes, on stores of a few megabytes.
type crowd struct {
	*rig

	mu   sync.Mutex
	seen map[string][]uint64                   // by webhook: sequences of events, in the order of their first attempts
	hold func(*notification.Notification) bool // whether an account's notification stays open
	b    *bus.Bus
}

func smallStores() topology.Limits {
	l := bustest.Limits()
	l.NotificationsMaxBytes, l.RetriesMaxBytes, l.ParkedMaxBytes, l.EventsMaxBytes = 4<<20, 4<<20, 4<<20, 256<<20
	l.BodiesMaxBytes = 1 // notifications carry their bodies, however large
	return l
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	c := &crowd{rig: newRigWith(t, smallStores()), seen: map[string][]uint64{}, hold: func(*notification.Notification) bool { return false }}
	c.b = c.broker.Connect("helper")
	bucket := func(name string) *bus.Bucket {
		k, err := c.b.Bucket(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	keeper := &books.Keeper{Log: c.log, Bus: c.b, Leases: bucket(topology.BucketLeases), Bucket: bucket(topology.BucketBooks), Shares: bucket(topology.BucketShares), Name: "books"}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	t.Cleanup(func() { cancel(); work.Wait() })
	work.Go(func() { keeper.Run(ctx) })
	first, err := lane.First(t.Context(), c.b, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	work.Go(func() {
		for ctx.Err() == nil {
			_, _ = first.Pull(ctx, 64, bus.Unbounded, func(d *lane.Delivery) { c.attempt(ctx, d) })
		}
	})
	return c
}

// start starts a publisher and returns once it pulls events: those published before come in no order.
func (c *crowd) start() {
	c.t.Helper()
	c.rig.start()
	c.until("the publisher pulls events", func() bool {
		_, err := c.js.Consumer(c.t.Context(), topology.Events, topology.ConsumerPublisher)
		return err == nil
	})
}

// attempt delivers, or keeps the notification open.
func (c *crowd) attempt(ctx context.Context, d *lane.Delivery) {
	c.mu.Lock()
	c.seen[d.WebhookID] = append(c.seen[d.WebhookID], d.EventSequence)
	hold := c.hold(&d.Notification)
	c.mu.Unlock()
	state := notification.Delivered
	if hold {
		state = notification.Parked
	}
	r := &notification.Record{
		Kind: notification.KindAttempt, At: time.Now(), Account: d.Account, WebhookID: d.WebhookID, NotificationID: d.ID, EventID: d.EventID,
		EventName: d.EventName, EventSequence: d.EventSequence, URLKey: "lane", Send: d.Send, AttemptsDone: 1, State: state,
	}
	if _, err := journal.Write(ctx, c.b, r); err == nil {
		d.Ack()
	}
}

// release ends what is open.
func (c *crowd) release(account string) {
	c.t.Helper()
	c.mu.Lock()
	c.hold = func(*notification.Notification) bool { return false }
	c.mu.Unlock()
	s, err := c.js.Stream(c.t.Context(), topology.Attempts)
	if err != nil {
		c.t.Fatal(err)
	}
	info, err := s.Info(c.t.Context(), jetstream.WithSubjectFilter("gancho.attempts."+account+".*"))
	if err != nil {
		c.t.Fatal(err)
	}
	for subject := range info.State.Subjects {
		id := subject[strings.LastIndexByte(subject, '.')+1:]
		last, err := journal.Last(c.t.Context(), c.b, account, id)
		if err != nil {
			c.t.Fatal(err)
		}
		if last.State == notification.Parked {
			r := *last
			r.State, r.Previous, r.At = notification.Delivered, last.Sequence, time.Now()
			if _, err := journal.Write(c.t.Context(), c.b, &r); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

// probe publishes events of a harmless account, each once the one before was attempted, until stop is called.
// stop fails the test when fewer than five came through.
func (c *crowd) probe(account string) (stop func()) {
	c.t.Helper()
	w := c.webhook(account, "*", webhook.Active)
	attempted := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.seen[w.ID])
	}
	end, through := make(chan struct{}), make(chan int)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		sent := 0
		for {
			select {
			case <-end:
				through <- attempted()
				return
			case <-tick.C:
				if attempted() < sent {
					continue
				}
				sent++
				if _, err := c.js.Publish(c.t.Context(), "crm.events."+account+".crm_deal_created", fmt.Appendf(nil, `{"transaction_uuid":"probe-%d"}`, sent)); err != nil {
					c.t.Errorf("publish: %v", err)
				}
			}
		}
	}()
	return func() {
		c.t.Helper()
		close(end)
		if n := <-through; n < 5 {
			c.t.Errorf("%d events of the other account were attempted meanwhile", n)
		}
	}
}

func (c *crowd) until(what string, is func() bool) {
	c.t.Helper()
	c.rig.until(what, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return is()
	})
}

// bulk publishes n events of about that size.
func (c *crowd) bulk(account string, n, size int) {
	c.t.Helper()
	filler := strings.Repeat("x", size)
	for i := range n {
		c.publish("crm.events."+account+".crm_deal_created", fmt.Sprintf(`{"transaction_uuid":"bulk-%d","filler":%q}`, i, filler), nats.Header{"Nats-Msg-Id": {fmt.Sprint(account, i)}})
	}
}

// steps returns the account's status events in order.
func (c *crowd) steps(account string) (steps []string) {
	c.t.Helper()
	s, err := c.js.Stream(c.t.Context(), topology.WebhookStatus)
	if err != nil {
		c.t.Fatal(err)
	}
	for seq := uint64(1); ; seq++ {
		m, err := s.GetMsg(c.t.Context(), seq, jetstream.WithGetMsgSubject("gancho.accounts."+account+".*"))
		if err != nil {
			return steps
		}
		var change status.Change
		if err := json.Unmarshal(m.Data, &change); err != nil || change.Reason != "account_share" {
			c.t.Errorf("status %s: %v", m.Data, err)
		}
		seq = m.Sequence
		steps = append(steps, change.Event)
	}
}

// once checks that every webhook saw n events, each once. Pages of events that are under way together may overtake
// one another.
func (c *crowd) once(n int, hooks []*webhook.Webhook) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range hooks {
		got := c.seen[w.ID]
		if len(got) != n || len(slices.Compact(slices.Sorted(slices.Values(got)))) != n {
			c.t.Errorf("webhook %s saw %d events, want %d, each once: %d", w.ID, len(got), n, got)
		}
	}
}

func (c *crowd) hooks(account string, n int) (all []*webhook.Webhook) {
	for range n {
		all = append(all, c.webhook(account, "*", webhook.Active))
	}
	return all
}

func (c *crowd) total(hooks []*webhook.Webhook) (n int) {
	for _, w := range hooks {
		n += len(c.seen[w.ID])
	}
	return n
}

// others counts the first attempts of all other webhooks. The caller holds mu.
func (c *crowd) others(hooks []*webhook.Webhook) (n int) {
	for _, seen := range c.seen {
		n += len(seen)
	}
	return n - c.total(hooks)
}

// open is what the notifications of the account hold, while all that were let on are open.
func (c *crowd) open(account string) (size int64) {
	c.t.Helper()
	s, err := c.js.Stream(c.t.Context(), topology.Notifications)
	if err != nil {
		c.t.Fatal(err)
	}
	for seq := uint64(1); ; seq++ {
		m, err := s.GetMsg(c.t.Context(), seq, jetstream.WithGetMsgSubject(topology.SubjectNotification(account, "*")))
		if err != nil {
			return size
		}
		seq = m.Sequence
		size += int64(len(m.Data)) + share.Overhead
	}
}

// TestHealthyAccountFillsNotifications: an account whose receivers are well sends three times what NOTIFICATIONS holds.
// The others' first attempts go on, and all of its own follow, each once.
func TestHealthyAccountFillsNotifications(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	c := newCrowd(t)
	hooks := c.hooks("large", 10)
	c.start()
	stop := c.probe("other")
	const events = 24
	c.bulk("large", events, 50<<10)
	c.until("everything is attempted", func() bool { return c.total(hooks) >= events*len(hooks) })
	stop()
	c.once(events, hooks)
}

// TestOpenWorkDefersItsAccount: notifications of an account that stay open, as on a webhook suspended by hand, keep to
// its share of the stores. Its events wait, the others go on, and when the work ends everything follows.
func TestOpenWorkDefersItsAccount(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	c := newCrowd(t)
	hooks := c.hooks("large", 4)
	wantsNone := c.webhook("large", "*", webhook.Active, "document.none exists")
	c.hold = func(n *notification.Notification) bool { return n.Account == "large" }
	c.start()
	stop := c.probe("other")
	const events = 100
	c.bulk("large", events, 20<<10)
	c.until("the account is deferred", func() bool { return slices.Contains(c.steps("large"), "deferred") })
	// Its share is 20 % of 4 MiB: 10 events of 4 times 20 KiB.
	meter := share.New(share.Config{Share: 0.2}, share.Limits{Notifications: 4 << 20}, func(string) bool { return true })
	watching, end := context.WithCancel(t.Context())
	defer end()
	go func() { _ = meter.Watch(watching, c.b, c.log, nil) }()
	c.stop() // another publisher takes over, and the first crashes nothing
	c.rig.until("the books have counted all that was let on", func() bool {
		open, _ := meter.Open("large")
		return open == share.Open{Parked: c.open("large")}
	})
	c.mu.Lock()
	others := c.others(hooks)
	c.mu.Unlock()
	c.start()
	c.until("events pass the other publisher", func() bool { return c.others(hooks) > others+5 })
	c.mu.Lock()
	if n := c.total(hooks); n > 11*len(hooks) {
		t.Errorf("%d notifications of the account were let on, its share is %d", n, 10*len(hooks))
	}
	c.mu.Unlock()
	if open, _ := meter.Open("large"); open.Sum() > 840<<10 {
		t.Errorf("the account holds %d bytes", open.Sum())
	}
	for c.mu.Lock(); c.total(hooks) < events*len(hooks); c.mu.Lock() {
		c.mu.Unlock()
		c.release("large")
	}
	c.mu.Unlock()
	c.until("it has caught up", func() bool { return slices.Contains(c.steps("large"), "caught_up") })
	stop()
	c.once(events, hooks)
	if steps := c.steps("large"); steps[0] != "deferred" || steps[len(steps)-1] != "caught_up" {
		t.Errorf("status events: %v", steps)
	}
	if n := c.held(wantsNone)[wantsNone.ID]; n != events {
		t.Errorf("%d events are counted as held back, want %d", n, events)
	}
}

// TestOneLargeFanOut: a single event that leads to several times what NOTIFICATIONS holds is let on piece by piece.
func TestOneLargeFanOut(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	c := newCrowd(t)
	hooks := c.hooks("large", 100)
	c.start()
	stop := c.probe("other")
	c.bulk("large", 1, 60<<10)
	c.until("everything is attempted", func() bool { return c.total(hooks) >= len(hooks) })
	stop()
	c.once(1, hooks)
}

// TestAloneAnAccountIsNotDeferred: with no other account, nine tenths of the stores are its own.
func TestAloneAnAccountIsNotDeferred(t *testing.T) {
	t.Parallel()
	c := newCrowd(t)
	hooks := c.hooks("large", 4)
	c.hold = func(*notification.Notification) bool { return true }
	c.start()
	const events = 30 // 2.4 MB of 4 MiB, three shares
	c.bulk("large", events, 20<<10)
	c.until("everything is attempted", func() bool { return c.total(hooks) >= events*len(hooks) })
	if steps := c.steps("large"); len(steps) > 0 {
		t.Errorf("status events: %v", steps)
	}
	c.once(events, hooks)
}

// TestEventsAreCountedByAccount: what accounts have on CRM_EVENTS is known to every meter, also after the publisher
// that counts was replaced.
func TestEventsAreCountedByAccount(t *testing.T) {
	t.Parallel()
	l := smallStores()
	l.EventsMaxBytes = 4 << 20
	r := newRigWith(t, l)
	c := &crowd{rig: r, b: r.broker.Connect("helper")}
	r.webhook("other", "crm_task_created", webhook.Active)
	meter := share.New(share.Config{Share: 0.2}, share.Limits{Events: 4 << 20}, func(string) bool { return true })
	watching, end := context.WithCancel(t.Context())
	defer end()
	go func() { _ = meter.Watch(watching, c.b, c.log, nil) }()
	used := func(account string) int64 {
		n, _ := meter.Used(account, share.StoreEvents)
		return n
	}
	c.start()
	c.bulk("large", 20, 50<<10)
	c.bulk("other", 5, 10<<10)
	c.until("both are counted", func() bool { return used("large") > 1000<<10 && used("other") > 50<<10 })
	if over := meter.OverEvents(); !slices.Equal(over, []string{"large"}) {
		t.Errorf("above their share: %v", over)
	}
	c.stop()
	c.start()
	c.publish("crm.events.other.crm_deal_created", `{"transaction_uuid":"more"}`, nil)
	c.until("another publisher counts the same", func() bool { return used("other") > 50<<10+5*600 && used("large") > 1000<<10 })
}

// TestOlderEventsJoinADeferral: events that arrived before the one that deferred their account may join its record
// while the catch-up is already behind them. It turns back, and none of them is skipped or repeated.
func TestOlderEventsJoinADeferral(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.webhook("large", "*", webhook.Active)
	b := r.broker.Connect("helper")
	registered, err := registry.Open(t.Context(), b, registry.Options{Log: r.log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	shares, err := b.Bucket(t.Context(), topology.BucketShares)
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	loaded := make(chan struct{})
	work.Go(func() { _ = registered.Run(running, func() { close(loaded) }, nil) })
	<-loaded
	p := &Publisher{
		log: r.log, bus: b, registry: registered, metrics: newMetrics(r.metrics),
		meter: share.New(share.Config{}, share.Limits{}, registered.HasOthers),
	}
	p.deferred = newDeferrals(p, shares, time.Hour, prometheus.NewRegistry())
	const events = 8
	for i := range events {
		r.publish("crm.events.large.crm_deal_created", fmt.Sprintf(`{"transaction_uuid":"joins-%d"}`, i), nil)
	}
	wait := func(sequences ...uint64) {
		t.Helper()
		var batch []waiting
		for _, sequence := range sequences {
			m := &eventstream.Delivery{StoredAt: time.Now()}
			m.Sequence = sequence
			batch = append(batch, waiting{Delivery: m})
		}
		if covered, err := p.deferred.record(t.Context(), "large", batch, &share.Excess{Store: share.StoreWork}); err != nil || !covered {
			t.Fatalf("events %d are not covered: %v", sequences, err)
		}
	}
	wait(6)
	c := &catchUp{d: p.deferred, account: "large", log: r.log}
	if err := c.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.after, c.unsure = c.record.After, c.record.Tried
	wait(2, 3) // the catch-up meets them when it stores its progress
	for done := false; !done; {
		n, err := c.batch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			if done, err = c.end(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	stream, err := r.js.Stream(t.Context(), topology.Notifications)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]uint64{}
	for subject, n := range info.State.Subjects {
		seen[subject[strings.LastIndexByte(subject, '.')+1:]] += n
	}
	for i := 1; i < events; i++ { // all but the first, which no record covers
		if id := notificationOf("large", fmt.Sprintf("joins-%d", i), w); seen[id] != 1 {
			t.Errorf("event %d has %d notifications", i+1, seen[id])
		}
	}
	if len(seen) != events-1 {
		t.Errorf("%d notifications, want %d", len(seen), events-1)
	}
}
