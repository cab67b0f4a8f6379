package erasures

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

const (
	document = "contact-4711"
	change   = "tx-9f1e"
	person   = "maria.silva@example.test"
)

// rig is a broker with notifications of one event in every state and place.
type rig struct {
	t   *testing.T
	srv *bustest.Server
	bus *bus.Bus

	settle time.Duration // of services
}

func newRig(t *testing.T) *rig {
	t.Helper()
	srv := bustest.Start(t)
	return &rig{t, srv, srv.Topology(bustest.Limits()), 300 * time.Millisecond}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func body(document, transaction, person string) []byte {
	return fmt.Appendf(nil, `{"event_name":"crm_contact_created","document":{"id":%q,"email":%q},"transaction_uuid":%q}`, document, person, transaction)
}

// publish stores an event.
func (r *rig) publish(account string, body []byte) *event.Event {
	r.t.Helper()
	ack, err := eventstream.Publish(r.t.Context(), r.bus, event.Subject(account, "crm_contact_created"), "", nil, body)
	r.must(err)
	stored, err := eventstream.At(r.t.Context(), r.bus, ack.Sequence)
	r.must(err)
	e, rejected := event.Parse(stored.Message)
	if rejected != nil {
		r.t.Fatal(rejected)
	}
	return &e
}

// attempted writes the record of an attempt whose answer repeats the person, and returns it as the journal has it.
func (r *rig) attempted(n *notification.Notification, last *notification.Record, ok bool) *notification.Record {
	r.t.Helper()
	p := notification.Position{Last: last}
	number := 1
	if last != nil {
		p.Journal, p.AttemptsDone, number = last.Sequence, last.AttemptsDone, last.AttemptsDone+1
	}
	record := n.Record(p, notification.KindAttempt, time.Now())
	a := &notification.Attempt{Number: number, Send: n.Send, StartedAt: time.Now(), Outcome: notification.OutcomeFailed, HTTPStatus: 500, ResponseBody: "no place for " + string(n.Body)}
	if ok {
		a.Outcome, a.HTTPStatus = notification.OutcomeDelivered, 200
	}
	record.Attempted(a, func(int) time.Duration { return time.Hour })
	_, err := journal.Write(r.t.Context(), r.bus, record)
	r.must(err)
	return r.last(n)
}

func (r *rig) last(n *notification.Notification) *notification.Record {
	r.t.Helper()
	last, err := journal.Last(r.t.Context(), r.bus, n.Account, n.ID)
	r.must(err)
	return last
}

// fill brings notifications of e into every state, and returns them with the state that they must be in after an
// erasure.
func (r *rig) fill(e *event.Event) map[*notification.Notification]notification.State {
	r.t.Helper()
	ctx := r.t.Context()
	first := func() *notification.Notification {
		n := notification.First(e, time.Now(), uuid.New())
		_, err := lane.Notify(r.bus, &n).Receipt(ctx)
		r.must(err)
		return &n
	}
	all := map[*notification.Notification]notification.State{}
	pending := first()
	all[pending] = notification.Cancelled

	ref, err := bodies.NewStore(r.bus, nil, 0).Put(ctx, e)
	r.must(err)
	referred := notification.First(e, time.Now(), uuid.New())
	referred.Ref = ref
	_, err = lane.Notify(r.bus, &referred).Receipt(ctx)
	r.must(err)
	all[&referred] = notification.Cancelled

	delivered := first()
	r.attempted(delivered, r.attempted(delivered, nil, false), true)
	all[delivered] = notification.Delivered

	retrying := first()
	last := r.attempted(retrying, r.attempted(retrying, nil, false), false)
	next := retrying.Retry(notification.Position{AttemptsDone: 2, Journal: last.Sequence})
	r.must(lane.Schedule(ctx, r.bus, &next, time.Now().Add(time.Hour)))
	all[retrying] = notification.Cancelled

	parked := first()
	moved := parked.Parked(notification.Position{})
	r.must(lane.Park(r.bus, &moved, "key").Wait(ctx))
	record := parked.Record(notification.Position{}, notification.KindParked, time.Now())
	record.State, record.Reason, record.URLKey = notification.Parked, notification.Suspended, "key"
	_, err = journal.Write(ctx, r.bus, record)
	r.must(err)
	all[parked] = notification.Cancelled

	failed := first()
	last = nil
	for range notification.MaxAttempts {
		last = r.attempted(failed, last, false)
	}
	r.must(lane.Fail(ctx, r.bus, failed, "[]"))
	all[failed] = notification.PermanentlyFailed

	again := first()
	last = r.attempted(again, nil, true)
	resent := again.Resend(last, "")
	_, err = lane.Notify(r.bus, &resent).Receipt(ctx)
	r.must(err)
	all[again] = notification.Cancelled

	aside := bus.NewMessage("gancho.quarantine.NOTIFICATIONS.internal_error", "", e.Body)
	aside.Header[notification.HeaderAccount] = []string{e.Account}
	_, err = r.bus.Publish(ctx, topology.Quarantine, aside)
	r.must(err)
	for i, text := range []string{string(e.Body[:len(e.Body)-1]), `{"event_name":7,` + string(e.Body[1:])} {
		m := bus.NewMessage("gancho.rejected.bad_json", "", []byte(text))
		m.Header[topology.HeaderSubject] = []string{event.Subject(e.Account, "crm_contact_created")}
		if _, err := r.bus.Publish(ctx, topology.Rejected, m); err != nil {
			r.t.Fatal(i, err)
		}
	}
	return all
}

// removed puts a message on PARKED and takes it off again, as a dispatcher that settles it.
func (r *rig) removed(e *event.Event) {
	r.t.Helper()
	n := notification.First(e, time.Now(), uuid.New())
	receipt, err := lane.Park(r.bus, &n, "other").Receipt(r.t.Context())
	r.must(err)
	r.must(r.bus.Delete(r.t.Context(), topology.Parked, receipt.Sequence))
}

// service returns a service on the bus and runs it until the test ends or stop is called.
func (r *rig) service(b *bus.Bus, keys *seal.Keyring) (s *Service, stop func()) {
	r.t.Helper()
	bucket, err := b.Bucket(r.t.Context(), topology.BucketErasures)
	r.must(err)
	s = New(b, bucket, keys, bustest.Logger(r.t))
	s.settle = r.settle
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = func() {
		if cancel(); ended != nil {
			r.must(<-ended)
			ended = nil
		}
	}
	r.t.Cleanup(stop)
	return s, stop
}

// done waits until an erasure has ended and returns it.
func (r *rig) done(s *Service, id string) View {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 60*time.Second)
	defer cancel()
	if !s.jobs.Wait(ctx, "acme", id, func(j *job) bool { return j.State != Running }) {
		r.t.Fatal("the erasure did not end within 60 s")
	}
	v, err := s.Get(r.t.Context(), "acme", id)
	r.must(err)
	return v
}

// files returns the files below the broker's store that hold a text.
func (r *rig) files(text string) []string {
	r.t.Helper()
	var found []string
	r.must(filepath.WalkDir(r.srv.StoreDir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(text)) {
			found = append(found, strings.TrimPrefix(path, r.srv.StoreDir()))
		}
		return err
	}))
	return found
}

// check looks that nothing of the event is left, and what the journal says of its notifications.
func (r *rig) check(all map[*notification.Notification]notification.State) {
	r.t.Helper()
	r.ended(all)
	for _, text := range []string{document, change, person} {
		if found := r.files(text); len(found) > 0 {
			r.t.Errorf("%q is still in %v", text, found)
		}
	}
}

// ended looks what the journal says of notifications that were erased.
func (r *rig) ended(all map[*notification.Notification]notification.State) {
	r.t.Helper()
	for n, want := range all {
		last := r.last(n)
		if last.State != want || last.Reason != notification.ReasonErased || last.Attempt != nil || last.Earlier != nil {
			r.t.Errorf("a notification that must be %s: %+v", want, last)
		}
		records := 0
		for record, err := range journal.History(r.t.Context(), r.bus, last) {
			if records++; err != nil || record.Sequence != last.Sequence {
				r.t.Errorf("history of one that is erased: %+v, %v", record, err)
			}
		}
		for _, decision := range []notification.Decision{
			notification.Resume(n, notification.Receipt{Lane: notification.LaneFirst, NumDelivered: 2, Again: true}, last, time.Now()),
			notification.Resume(n, notification.Receipt{Lane: notification.LaneParked, NumDelivered: 1}, last, time.Now()),
		} {
			if decision.Step != notification.StepSettle && decision.Step != notification.StepKeepFailed {
				r.t.Errorf("who holds the message in memory goes on with step %d", decision.Step)
			}
		}
	}
}

// TestErase: afterwards the broker's files hold neither the id nor a value of the document, and others are as they
// were.
func TestErase(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]func(e *event.Event) Input{
		byDocument:    func(*event.Event) Input { return Input{DocumentID: given(document)} },
		byTransaction: func(*event.Event) Input { return Input{TransactionUUID: given(change)} },
		byEvent:       func(e *event.Event) Input { return Input{EventID: given(e.ID)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			other := r.publish("acme", body("contact-1", "tx-1", "joao@example.test"))
			kept := r.fill(other)
			foreign := r.publish("globex", body(document, change, person))
			e := r.publish("acme", body(document, change, person))
			all := r.fill(e)
			if name == byEvent { // a message that is no event has no id
				r.must(r.bus.Purge(t.Context(), topology.Rejected, 4))
				r.must(r.bus.Purge(t.Context(), topology.Quarantine, 2))
			}
			s, _ := r.service(r.bus, seal.New())
			began, err := s.Create(t.Context(), "acme", in(e))
			r.must(err)
			v := r.done(s, began.ID)
			if v.State != Done || v.Kind != name || v.Matched != 1 || v.Erased[topology.Events] != 1 || v.Erased[topology.Failed] != 1 || v.Erased[topology.Bodies] != 1 || v.Erased[topology.Attempts] == 0 {
				t.Errorf("the job says %+v", v)
			}
			if len(v.NotReached) != 5 { // messages of others are on NOTIFICATIONS, RETRIES and PARKED
				t.Errorf("not reached: %+v", v.NotReached)
			}
			r.must(r.bus.Erase(t.Context(), topology.Events, foreign.Sequence)) // an error if it is not there
			r.check(all)
			for n := range kept {
				if last, err := journal.Last(t.Context(), r.bus, "acme", n.ID); err == nil && last.Reason == notification.ReasonErased {
					t.Errorf("a notification of another document was erased: %+v", last)
				}
			}
			for stream, want := range map[string]uint64{topology.Events: 1, topology.Bodies: 1, topology.Notifications: 8, topology.Retries: 1, topology.Parked: 1, topology.Failed: 1} {
				if state, err := r.bus.StreamState(t.Context(), stream); err != nil || state.Messages != want {
					t.Errorf("%s has %d messages, %v; want the other document's %d", stream, state.Messages, err, want)
				}
			}
		})
	}
}

// TestEraseWhatWasRemoved: the broker does not overwrite a message that was acknowledged on PARKED. Where the stream is
// empty, its files go.
func TestEraseWhatWasRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.publish("acme", body(document, change, person))
	all := r.fill(e)
	r.removed(e)
	s, _ := r.service(r.bus, seal.New())
	began, err := s.Create(t.Context(), "acme", Input{DocumentID: given(document)})
	r.must(err)
	if v := r.done(s, began.ID); v.State != Done || len(v.NotReached) != 2 {
		t.Errorf("the job says %+v", v)
	}
	r.check(all)
	if bucket := r.files(began.ID); len(bucket) == 0 {
		t.Error("the record of the erasure is not kept")
	}
}

// TestEraseABodyWithoutItsEvent: a large event's body goes that stands on BODIES alone, because the event has left
// CRM_EVENTS: with the notification that still refers to it, or without any.
func TestEraseABodyWithoutItsEvent(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]func(e *event.Event) Input{
		byDocument:    func(*event.Event) Input { return Input{DocumentID: given(document)} },
		byTransaction: func(*event.Event) Input { return Input{TransactionUUID: given(change)} },
		byEvent:       func(e *event.Event) Input { return Input{EventID: given(e.ID)} },
	} {
		for _, referred := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", referred ", referred), func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				ctx := t.Context()
				kept := r.publish("acme", body("contact-1", "tx-1", "joao@example.test"))
				store := bodies.NewStore(r.bus, nil, 0)
				_, err := store.Put(ctx, kept)
				r.must(err)
				e := r.publish("acme", body(document, change, person))
				ref, err := store.Put(ctx, e)
				r.must(err)
				r.must(r.bus.Erase(ctx, topology.Events, e.Sequence))
				all := map[*notification.Notification]notification.State{}
				if referred {
					n := notification.First(e, time.Now(), uuid.New())
					n.Ref = ref
					moved := n.Parked(notification.Position{})
					r.must(lane.Park(r.bus, &moved, "key").Wait(ctx))
					all[&n] = notification.Cancelled
				}
				s, _ := r.service(r.bus, seal.New())
				began, err := s.Create(ctx, "acme", in(e))
				r.must(err)
				if v := r.done(s, began.ID); v.State != Done || v.Matched != 1 || v.Erased[topology.Bodies] != 1 || v.Erased[topology.Parked] != uint64(len(all)) {
					t.Errorf("the job says %+v", v)
				}
				r.check(all)
				if state, err := r.bus.StreamState(ctx, topology.Bodies); err != nil || state.Messages != 1 {
					t.Errorf("BODIES has %d messages, %v; want the other event's", state.Messages, err)
				}
			})
		}
	}
}

// TestEraseGoesOn: another process finishes what a stop interrupted, when the events themselves are gone already, and
// the loss of an answer does no harm.
func TestEraseGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.publish("acme", body(document, change, person))
	all := r.fill(e)
	keys := seal.New()
	proxy := r.srv.Proxy()
	behind, err := bus.Connect(bus.Config{URL: proxy.URL()}, "management", bustest.Logger(t), prometheus.NewRegistry())
	r.must(err)
	t.Cleanup(behind.Close)
	first, stop := r.service(behind, keys)
	cut := &bustest.Break{Fault: bustest.Unanswered, Freeze: true}
	proxy.Break(cut, func(subject string, _ []byte) bool { return subject == "$JS.API.STREAM.MSG.DELETE."+topology.Failed })
	began, err := first.Create(t.Context(), "acme", Input{DocumentID: given(document)})
	r.must(err)
	<-cut.Done
	if n, err := r.bus.Subjects(t.Context(), topology.Events, ">"); err != nil || len(n) > 0 {
		t.Errorf("the event is still there: %v, %v", n, err)
	}
	proxy.Thaw()
	stop()

	second, _ := r.service(r.bus, keys)
	if v := r.done(second, began.ID); v.State != Done || v.Matched != 1 {
		t.Errorf("the job says %+v", v)
	}
	r.check(all)
}

// TestEraseWithoutTheKey: a job whose key is gone fails.
func TestEraseWithoutTheKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	bucket, err := r.bus.Bucket(t.Context(), topology.BucketErasures)
	r.must(err)
	began, err := New(r.bus, bucket, seal.New(), bustest.Logger(t)).Create(t.Context(), "acme", Input{DocumentID: given(document)})
	r.must(err)
	s, _ := r.service(r.bus, seal.New())
	if v := r.done(s, began.ID); v.State != Failed || v.Problem == nil {
		t.Errorf("the job says %+v", v)
	}
}

func TestInput(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 129)
	for _, c := range []struct {
		in   Input
		want string // code, "" for none
	}{
		{Input{DocumentID: given("é 1")}, ""},
		{Input{DocumentID: given("")}, "bad_id"},
		{Input{DocumentID: given(long)}, "bad_id"},
		{Input{TransactionUUID: given("a b")}, "bad_id"},
		{Input{TransactionUUID: given("a_B-1")}, ""},
		{Input{EventID: given("nope")}, "bad_id"},
		{Input{EventID: given(uuid.NewString())}, ""},
		{Input{}, "required"},
		{Input{DocumentID: given("1"), EventID: given(uuid.NewString())}, "required"},
	} {
		_, _, err := c.in.parse()
		got := ""
		if p := (*problem.Error)(nil); errors.As(err, &p) {
			got = p.Code()
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestMentioned(t *testing.T) {
	t.Parallel()
	about := &target{Value: "42"}
	for text, want := range map[string]bool{
		`{"document":{"id":42}}`:            true,
		`{"document":{"id":"42"}}`:          true,
		`{"data":{"document":{"id":"42"}}}`: true,
		`{"document":{"id":421},"a":"42"}`:  false,
		`{"document":{"id":42`:              true,
		`id 142, id 421, id 4-42`:           false,
		`id 421, id=42;`:                    true,
		``:                                  false,
	} {
		if got := about.mentioned(byDocument, []byte(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func given(s string) webhooks.Field[string] { return webhooks.Field[string]{Present: true, Value: s} }
