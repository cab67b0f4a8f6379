package books

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// desk is a broker and books on it. The test plays the services.
type desk struct {
	t       *testing.T
	server  *bustest.Server
	bus     *bus.Bus
	books   *Books
	bucket  *bus.Bucket
	first   *lane.Puller
	retries *lane.Puller
}

const ackWait = 30 * time.Second

var hook = uuid.MustParse("0190a5d4-0000-7000-8000-000000000001")

func newDesk(t *testing.T, change func(*topology.Limits)) *desk {
	t.Helper()
	d := &desk{t: t, server: bustest.Start(t)}
	l := bustest.Limits()
	if change != nil {
		change(&l)
	}
	d.bus = d.server.Topology(l)
	var err error
	if d.bucket, err = d.bus.Bucket(t.Context(), topology.BucketBooks); err != nil {
		t.Fatal(err)
	}
	if d.first, err = lane.First(t.Context(), d.bus, ackWait); err != nil {
		t.Fatal(err)
	}
	if d.retries, err = lane.Retries(t.Context(), d.bus, ackWait); err != nil {
		t.Fatal(err)
	}
	d.open()
	return d
}

// open opens books as a process that starts does.
func (d *desk) open() {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; { // the broker may have just come back
		d.books = New(d.bus, readerKeeper, bustest.Logger(d.t))
		d.books.settled = -time.Hour
		_, problem, err := d.books.Load(d.t.Context(), d.bucket)
		if err == nil && problem == "" {
			return
		}
		if problem != "" || time.Now().After(deadline) {
			d.t.Fatal(problem, err)
		}
	}
}

func (d *desk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// example is a notification number i about an event that CRM_EVENTS has.
func (d *desk) example(account string, i int) *notification.Notification {
	d.t.Helper()
	body := fmt.Appendf(nil, `{"event_name":"crm_deal_created","transaction_uuid":"tx-%d"}`, i)
	p, err := eventstream.Publish(d.t.Context(), d.bus, "crm.events."+account+".crm_deal_created", fmt.Sprint(account, i), nil, body)
	d.must(err)
	id := event.ID(account, "crm_deal_created", fmt.Sprintf("tx-%d", i))
	return &notification.Notification{
		Account: account, ID: event.NotificationID(id, hook), WebhookID: hook.String(), EventID: id, EventName: "crm_deal_created",
		EventSequence: p.Sequence, EventTime: time.Now(), Send: 1, Body: body,
	}
}

func (d *desk) notify(n *notification.Notification) {
	d.t.Helper()
	d.must(lane.Notify(d.bus, n).Wait(d.t.Context()))
}

// take returns the lane's next delivery.
func (d *desk) take(p *lane.Puller) (got *lane.Delivery) {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); got == nil; {
		if time.Now().After(deadline) {
			d.t.Fatal("no delivery")
		}
		if _, err := p.Pull(d.t.Context(), 1, bus.Unbounded, func(m *lane.Delivery) { got = m }); err != nil {
			d.t.Fatal(err)
		}
	}
	return got
}

// record writes what became of n and returns n as it is after that.
func (d *desk) record(n *notification.Notification, s notification.State, next time.Time) *notification.Notification {
	d.t.Helper()
	r := &notification.Record{
		Kind: notification.KindAttempt, At: time.Now(), Account: n.Account, WebhookID: n.WebhookID, NotificationID: n.ID, EventID: n.EventID,
		EventName: n.EventName, EventSequence: n.EventSequence, URLKey: "lane", Send: n.Send, AttemptsDone: n.AttemptsDone + 1, State: s,
		Previous: n.Journal, Moves: n.Moves, NextAttemptAt: next,
	}
	if s == notification.Parked {
		r.Kind, r.AttemptsDone = notification.KindParked, n.AttemptsDone
	}
	seq, err := journal.Write(d.t.Context(), d.bus, r)
	d.must(err)
	after := *n
	after.AttemptsDone, after.Journal, after.Moves = r.AttemptsDone, seq, n.Moves+1
	return &after
}

// settle waits until the broker has taken in the acks of all first deliveries up to that sequence.
func (d *desk) settle(seq uint64) {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		acked, err := lane.Settled(d.t.Context(), d.bus)
		d.must(err)
		if acked >= seq {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("settled up to %d, want %d", acked, seq)
		}
	}
}

// audit audits twice, as it must, and returns the second report.
func (d *desk) audit() (*Report, []Lost) {
	d.t.Helper()
	_, _, err := d.books.Audit(d.t.Context())
	d.must(err)
	r, found, err := d.books.Audit(d.t.Context())
	d.must(err)
	return r, found
}

func (d *desk) check(unaccounted uint64, want Counts, open map[notification.State]uint64) {
	d.t.Helper()
	r, _ := d.audit()
	if r.Unaccounted != unaccounted {
		d.t.Errorf("unaccounted: got %d, want %d: %+v", r.Unaccounted, unaccounted, r)
	}
	if r.Balanced() != (unaccounted == 0) {
		d.t.Errorf("balanced: got %v with %d unaccounted: %+v", r.Balanced(), unaccounted, r)
	}
	if diff := cmp.Diff(want, r.Counts); diff != "" {
		d.t.Error("counts (-want +got):\n" + diff)
	}
	for _, s := range states {
		if r.Open[s] != open[s] {
			d.t.Errorf("%s: got %d, want %d", s, r.Open[s], open[s])
		}
	}
}

func TestBooksBalance(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	soon, late := time.Now(), time.Now().Add(time.Hour)
	for i := range 6 {
		d.notify(d.example("acme", i))
	}
	d.check(0, Counts{Matched: 6}, map[notification.State]uint64{notification.Pending: 6})

	m := d.take(d.first) // delivered at once
	d.record(&m.Notification, notification.Delivered, time.Time{})
	m.Ack()
	m = d.take(d.first) // waits for a retry
	after := d.record(&m.Notification, notification.Retrying, late)
	d.must(lane.Schedule(t.Context(), d.bus, after, late))
	m.Ack()
	m = d.take(d.first) // is in a retry
	after = d.record(&m.Notification, notification.Retrying, soon)
	d.must(lane.Schedule(t.Context(), d.bus, after, soon))
	m.Ack()
	m = d.take(d.first) // parked
	after = d.record(&m.Notification, notification.Parked, time.Time{})
	d.must(lane.Park(d.bus, after, "lane").Wait(t.Context()))
	m.Ack()
	m = d.take(d.first) // recorded and cut off before it was scheduled: the broker still has it
	d.record(&m.Notification, notification.Retrying, soon)
	retry := d.take(d.retries)
	open := map[notification.State]uint64{notification.Pending: 1, notification.Retrying: 3, notification.Parked: 1}
	d.check(0, Counts{Matched: 6, Delivered: 1}, open)

	// A retry that failed waits on the same message; the next one ends the send.
	again := d.record(&retry.Notification, notification.Retrying, soon)
	retry.NakAfter(time.Millisecond)
	d.check(0, Counts{Matched: 6, Delivered: 1}, open)
	retry = d.take(d.retries)
	retry.Journal = again.Journal
	d.record(&retry.Notification, notification.PermanentlyFailed, time.Time{})
	retry.Ack()
	open[notification.Retrying]--
	d.check(0, Counts{Matched: 6, Delivered: 1, PermanentlyFailed: 1}, open)
}

// TestLostNotificationsAreFound seeds the faults that lose a notification, each among healthy ones.
func TestLostNotificationsAreFound(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(time.Hour)
	for name, tc := range map[string]struct {
		lose  func(d *desk, m *lane.Delivery)
		state notification.State
	}{
		"acked without a record": {func(*desk, *lane.Delivery) {}, notification.Pending},
		"recorded and not scheduled": {func(d *desk, m *lane.Delivery) {
			d.record(&m.Notification, notification.Retrying, later)
		}, notification.Retrying},
		"recorded and not parked": {func(d *desk, m *lane.Delivery) {
			d.record(&m.Notification, notification.Parked, time.Time{})
		}, notification.Parked},
		"a due retry acked without a record": {func(d *desk, m *lane.Delivery) {
			d.must(lane.Schedule(d.t.Context(), d.bus, d.record(&m.Notification, notification.Retrying, time.Now()), time.Now()))
			d.take(d.retries).Ack()
		}, notification.Retrying},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, nil)
			for i := range 3 { // parked next to it, of the same webhook
				d.notify(d.example("acme", i))
				m := d.take(d.first)
				d.must(lane.Park(d.bus, d.record(&m.Notification, notification.Parked, time.Time{}), "lane").Wait(t.Context()))
				m.Ack()
			}
			d.notify(d.example("acme", 100))
			m := d.take(d.first)
			tc.lose(d, m)
			m.Ack()
			d.settle(m.Sequence)
			d.books.settled = time.Hour // the latest changes are left for a later audit
			if r, found := d.audit(); r.Unaccounted != 0 || len(found) != 0 {
				t.Fatalf("audited while it may still move: got %+v", r)
			}
			d.books.settled = -time.Hour
			r, found := d.audit()
			if r.Unaccounted != 1 || len(found) != 1 || len(r.Stuck) != 1 || r.Stuck[0].NotificationID != m.ID || r.Stuck[0].State != tc.state {
				t.Fatalf("got %+v, want 1 unaccounted, %s in state %s", r, m.ID, tc.state)
			}
			if diff := cmp.Diff([]Account{{"acme", 1}}, r.Accounts); diff != "" {
				t.Error("accounts (-want +got):\n" + diff)
			}
			if r.Open[notification.Parked] != 3 {
				t.Errorf("parked: got %d, want 3", r.Open[notification.Parked])
			}

			// It is put right: scheduled with what its journal has, until the books balance again.
			repairs := map[string]int{}
			fix := &reconciler{log: bustest.Logger(t), bus: d.bus, done: func(kind string) { repairs[kind]++ }}
			fix.repair(t.Context(), found, nil)
			if r, _ = d.audit(); r.Unaccounted != 0 || repairs[repairLost] != 1 {
				t.Errorf("after repairs %v: got %+v, want 0 unaccounted", repairs, r)
			}
			if tc.state == notification.Retrying && name == "recorded and not scheduled" {
				x, err := lane.Scheduled(t.Context(), d.bus, "acme", m.ID)
				d.must(err)
				if x.AttemptsDone != 1 || x.Journal == 0 || string(x.Body) != string(m.Body) || x.Send != 1 {
					t.Errorf("scheduled: got %+v", x.Notification)
				}
				return
			}
			retry := d.take(d.retries)
			if retry.ID != m.ID || string(retry.Body) != string(m.Body) {
				t.Errorf("retried: got %s, want %s", retry.ID, m.ID)
			}
		})
	}
}

// TestPurgedIsRepairedFromTheEvent empties RETRIES after NOTIFICATIONS has forgotten its messages too.
func TestPurgedIsRepairedFromTheEvent(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(l *topology.Limits) { l.DuplicateWindow = time.Second })
	d.notify(d.example("acme", 1))
	m := d.take(d.first)
	d.record(&m.Notification, notification.Retrying, time.Now())
	m.Ack()
	d.must(d.bus.Purge(t.Context(), topology.Notifications, m.Sequence))
	r, found := d.audit()
	if r.Unaccounted != 1 {
		t.Fatalf("got %+v, want 1 unaccounted", r)
	}
	fix := &reconciler{log: bustest.Logger(t), bus: d.bus, done: func(string) {}}
	fix.repair(t.Context(), found, nil)
	retry := d.take(d.retries)
	if string(retry.Body) != string(m.Body) || retry.AttemptsDone != 1 || retry.EventSequence != m.EventSequence {
		t.Errorf("got %+v, want the event's body", retry.Notification)
	}
}

func TestLateDuplicateIsNoLoss(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(l *topology.Limits) { l.DuplicateWindow = time.Second })
	n := d.example("acme", 1)
	d.notify(n)
	m := d.take(d.first)
	d.record(&m.Notification, notification.Delivered, time.Time{})
	m.Ack()
	d.check(0, Counts{Matched: 1, Delivered: 1}, nil)
	var last uint64
	for deadline := time.Now().Add(30 * time.Second); last == 0; { // until the duplicate window has passed
		if time.Now().After(deadline) {
			t.Fatal("the duplicate is still recognised")
		}
		d.notify(n)
		if _, err := d.first.Pull(t.Context(), 1, bus.Unbounded, func(m *lane.Delivery) { last = m.Sequence; m.Ack() }); err != nil {
			t.Fatal(err)
		}
	}
	d.settle(last)
	d.check(0, Counts{Matched: 1, Delivered: 1, Duplicates: 1}, nil)
}

// TestRemovedRecordsAreNoLoss: records go before the books read them, because the journal is full, because the account
// had its share of it, or because the books start late. Their sends ended and are not sent again; one of an account
// whose older records are all there was lost, and is found.
func TestRemovedRecordsAreNoLoss(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		remove       func(d *desk, last uint64)
		unread, lost uint64
		of           string // account of the one that is lost
	}{
		"the oldest of all": {func(d *desk, last uint64) {
			d.must(d.bus.Purge(d.t.Context(), topology.Attempts, last))
		}, 4, 0, "other"},
		"the oldest of one": {func(d *desk, _ uint64) {
			d.must(d.bus.PurgeOldest(d.t.Context(), topology.Attempts, topology.SubjectsOf(topology.Attempts, "acme"), 1))
		}, 2, 1, "other"},
		"the books start late": {func(d *desk, last uint64) {
			d.must(d.bus.Purge(d.t.Context(), topology.Attempts, last))
			d.open()
		}, 5, 0, "other"},
		"none":                       {func(*desk, uint64) {}, 0, 1, "other"},
		"none, and it never had one": {func(*desk, uint64) {}, 0, 1, "fresh"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, nil)
			end := func(account string, i int) (journal uint64) { // a notification that is delivered
				d.notify(d.example(account, i))
				m := d.take(d.first)
				journal = d.record(&m.Notification, notification.Delivered, time.Time{}).Journal
				m.Ack()
				return journal
			}
			last := end("other", 1)
			d.must(d.books.catchUp(t.Context()))
			second := time.Now().Unix() // the books know seconds
			waittest.Until(t, "the next second has begun", func() bool { return time.Now().Unix() > second })
			d.notify(d.example(tc.of, 2))
			lost := d.take(d.first)
			lost.Ack() // without a record
			for i := range 3 {
				last = end("acme", i)
			}
			tc.remove(d, last)
			end("acme", 3)
			d.settle(6)
			r, found := d.audit()
			if r.Counts.Unread != tc.unread || r.Unaccounted != tc.lost || uint64(len(found)) != tc.lost {
				t.Fatalf("%d unread, %d unaccounted (%d by name); want %d and %d", r.Counts.Unread, r.Unaccounted, len(found), tc.unread, tc.lost)
			}
			if tc.lost == 1 && found[0].id.String() != lost.ID {
				t.Errorf("%v is lost, want %s", found[0], lost.ID)
			}
			if r.Counts.Delivered != 6-tc.unread-tc.lost {
				t.Errorf("%d of the 6 are delivered", r.Counts.Delivered)
			}
		})
	}
}

func TestResendIsASendOfItsOwn(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	n := d.example("acme", 1)
	for send := 1; send <= 2; send++ {
		n.Send = send
		d.notify(n)
		m := d.take(d.first)
		after := d.record(&m.Notification, notification.Delivered, time.Time{})
		n.Journal = after.Journal
		m.Ack()
	}
	d.check(0, Counts{Matched: 2, Delivered: 2}, nil)
}

func TestRestartIsExact(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	for i := range 20 {
		d.notify(d.example(fmt.Sprint("account-", i%3), i))
	}
	var lost *lane.Delivery
	for i := range 10 {
		m := d.take(d.first)
		switch {
		case i < 5:
			d.record(&m.Notification, notification.Delivered, time.Time{})
		case i == 5:
			lost = m // acked without a record
		default:
			d.must(lane.Park(d.bus, d.record(&m.Notification, notification.Parked, time.Time{}), "lane").Wait(t.Context()))
		}
		m.Ack()
		d.settle(m.Sequence)
		if i%4 == 0 {
			d.audit()
			d.must(d.books.Store(t.Context(), d.bucket))
			d.open()
		}
		if i == 7 { // everything restarts, what the books read since the checkpoint is read again
			d.server.Restart()
			d.open()
		}
	}
	d.check(1, Counts{Matched: 20, Delivered: 5}, map[notification.State]uint64{notification.Pending: 10, notification.Parked: 4})
	if r, _ := d.audit(); r.Stuck[0].NotificationID != lost.ID {
		t.Errorf("stuck: got %+v, want %s", r.Stuck, lost.ID)
	}
	want := *d.books.ledger
	// Without a checkpoint the streams tell the same.
	d.books = New(d.bus, readerKeeper, bustest.Logger(t))
	d.must(d.books.catchUp(t.Context()))
	if diff := cmp.Diff(want.counts, d.books.ledger.counts); diff != "" {
		t.Error("made again (-want +got):\n" + diff)
	}
	if len(want.open) != len(d.books.ledger.open) {
		t.Errorf("made again: got %d open, want %d", len(d.books.ledger.open), len(want.open))
	}
}

func TestFrozenKeeperCannotStore(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	d.notify(d.example("acme", 1))
	d.must(d.books.catchUp(t.Context()))
	d.must(d.books.Store(t.Context(), d.bucket))
	frozen := d.books
	d.open()
	d.notify(d.example("acme", 2))
	d.must(d.books.catchUp(t.Context()))
	d.must(d.books.Store(t.Context(), d.bucket))
	if err := frozen.Store(t.Context(), d.bucket); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("storing over a newer checkpoint: got %v, want a conflict", err)
	}
	// What the frozen one overwrote of the newer checkpoint is noticed.
	next := New(d.bus, readerKeeper, bustest.Logger(t))
	if _, problem, err := next.Load(t.Context(), d.bucket); err != nil || (problem == "" && len(next.ledger.open) != 2) {
		t.Errorf("got %d open, problem %q, error %v", len(next.ledger.open), problem, err)
	}
}

func TestOrphanedScheduleIsRemoved(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	d.notify(d.example("acme", 1))
	m := d.take(d.first)
	after := d.record(&m.Notification, notification.Retrying, time.Now().Add(time.Hour))
	d.must(lane.Schedule(t.Context(), d.bus, after, time.Now().Add(time.Hour)))
	d.record(after, notification.Delivered, time.Time{})
	m.Ack()
	r, _ := d.audit()
	if r.Orphans != 1 || r.Unaccounted != 0 {
		t.Fatalf("got %+v, want 1 orphan", r)
	}
	fix := &reconciler{log: bustest.Logger(t), bus: d.bus, done: func(string) {}}
	fix.repair(t.Context(), nil, d.books.Orphans)
	if _, err := lane.Scheduled(t.Context(), d.bus, "acme", m.ID); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("the schedule is still there: %v", err)
	}
}

func TestKeepersTakeTurns(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	leases, err := d.bus.Bucket(t.Context(), topology.BucketLeases)
	d.must(err)
	start := func(name string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		k := &Keeper{Log: bustest.Logger(t), Bus: d.bus, Leases: leases, Bucket: d.bucket, Name: name, Period: 50 * time.Millisecond}
		done := make(chan struct{})
		go func() { defer close(done); k.Run(ctx) }()
		return func() { cancel(); <-done }
	}
	wait := func(by string, matched uint64) {
		t.Helper()
		var r *Report
		for deadline := time.Now().Add(30 * time.Second); ; {
			r, err = ReadReport(t.Context(), d.bucket)
			if err == nil && r.By == by && r.Counts.Matched == matched {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("got %+v, %v; want %d matched by %s", r, err, matched, by)
			}
		}
	}
	d.notify(d.example("acme", 1))
	stopA := start("a")
	wait("a", 1)
	stopB := start("b")
	defer stopB()
	d.notify(d.example("acme", 2))
	wait("a", 2)
	stopA()
	d.notify(d.example("acme", 3))
	wait("b", 3)
}

func TestLedgerSurvivesEncoding(t *testing.T) {
	t.Parallel()
	l := newLedger()
	for i := range 200 { // every account with every webhook, and numbers of more than one byte
		l.arrive(lane.Arrival{Notification: notification.Notification{
			Account: fmt.Sprint("a", i%7), WebhookID: fmt.Sprint("w", i%13), ID: uuid.NewString(), Send: 1 + i%3,
		}, StoredAt: time.Unix(int64(i), 0)}, uint64(i))
	}
	raw := encodeLedger(l)
	got, err := decodeLedger(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l.open, got.open, cmp.AllowUnexported(key{}, entry{})); diff != "" {
		t.Error("(-want +got):\n" + diff)
	}
	for n := range len(raw) {
		if _, err := decodeLedger(raw[:n]); err == nil {
			t.Fatalf("%d of %d bytes are taken for a ledger", n, len(raw))
		}
	}
}
