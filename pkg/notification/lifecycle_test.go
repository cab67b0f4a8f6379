package notification

import (
	"cmp"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// TestResume lists every state of the journal against every way in which a message comes.
func TestResume(t *testing.T) {
	t.Parallel()
	message := func(send, done, moves int) *Notification {
		n := notifications().Example(1)
		n.Send, n.AttemptsDone, n.Moves, n.Journal, n.Replay = send, done, moves, 0, ""
		return &n
	}
	record := func(send, done, moves int, state State, next time.Duration) *Record {
		r := &Record{Send: send, AttemptsDone: done, Moves: moves, State: state, URLKey: "url", Sequence: 7}
		if state == Retrying {
			r.NextAttemptAt = noon.Add(next)
		}
		return r
	}
	first := func(n int) Receipt { return Receipt{Lane: LaneFirst, NumDelivered: n, Again: true} }
	retry := func(n int) Receipt { return Receipt{Lane: LaneRetry, NumDelivered: n, Again: true} }
	parked := Receipt{Lane: LaneParked, NumDelivered: 1}
	exhausted := Receipt{Lane: LaneRetry, NumDelivered: 5, Exhausted: true}
	tests := map[string]struct {
		n    *Notification
		r    Receipt
		last *Record
		step Step
		done int // attempts of the position, or of the next message
		at   time.Time
	}{
		"first: nothing recorded":                   {message(1, 0, 0), first(2), nil, StepSend, 0, time.Time{}},
		"first: crashed ten times":                  {message(1, 0, 0), first(10), nil, StepSend, 0, time.Time{}},
		"first: crashed more often":                 {message(1, 0, 0), first(11), nil, StepSetAside, 0, time.Time{}},
		"first: delivered, eleven acks lost":        {message(1, 0, 0), first(12), record(1, 1, 0, Delivered, 0), StepSettle, 1, time.Time{}},
		"first: an earlier send is recorded":        {message(2, 0, 0), first(2), record(1, 6, 5, PermanentlyFailed, 0), StepSend, 0, time.Time{}},
		"first: a later send is recorded":           {message(1, 0, 0), first(2), record(2, 1, 0, Retrying, 0), StepSettle, 1, time.Time{}},
		"first: attempted, schedule unknown":        {message(1, 0, 0), first(2), record(1, 1, 0, Retrying, time.Minute), StepReschedule, 1, noon.Add(time.Minute)},
		"first: being parked, move unknown":         {message(1, 0, 0), first(2), record(1, 0, 0, Parked, 0), StepFinishPark, 0, time.Time{}},
		"first: lives on":                           {message(1, 0, 0), first(2), record(1, 2, 1, Retrying, 0), StepSettle, 2, time.Time{}},
		"first: permanently failed, payload":        {message(1, 0, 0), first(2), record(1, 0, 0, PermanentlyFailed, 0), StepKeepFailed, 0, time.Time{}},
		"first: cancelled":                          {message(1, 0, 0), first(2), record(1, 0, 0, Cancelled, 0), StepSettle, 0, time.Time{}},
		"retry: second, due":                        {message(1, 1, 1), retry(2), record(1, 2, 1, Retrying, 0), StepSend, 2, time.Time{}},
		"retry: a little early":                     {message(1, 1, 1), retry(2), record(1, 2, 1, Retrying, earlyBy), StepSend, 2, time.Time{}},
		"retry: too early":                          {message(1, 1, 1), retry(2), record(1, 2, 1, Retrying, time.Minute), StepReschedule, 2, noon.Add(time.Minute)},
		"retry: a delivery was burnt":               {message(1, 1, 1), retry(2), record(1, 1, 0, Retrying, 0), StepReschedule, 1, noon},
		"retry: the broker's count is too low":      {message(1, 1, 1), retry(2), record(1, 4, 1, Retrying, 0), StepSend, 4, time.Time{}},
		"retry: failed for good":                    {message(1, 1, 1), retry(5), record(1, 6, 1, PermanentlyFailed, 0), StepKeepFailed, 6, time.Time{}},
		"parked: as parked":                         {message(1, 2, 2), parked, record(1, 2, 1, Parked, 0), StepSend, 2, time.Time{}},
		"parked: its record is not stored":          {message(1, 2, 2), parked, record(1, 2, 1, Retrying, 0), StepSend, 2, time.Time{}},
		"parked: moved back, schedule unknown":      {message(1, 2, 2), parked, record(1, 3, 2, Retrying, time.Hour), StepReschedule, 3, noon.Add(time.Hour)},
		"parked: parked again, move unknown":        {message(1, 2, 2), parked, record(1, 2, 2, Parked, 0), StepFinishPark, 2, time.Time{}},
		"exhausted: nothing recorded":               {message(1, 1, 1), exhausted, nil, StepReschedule, 1, noon},
		"exhausted: retry to come":                  {message(1, 1, 1), exhausted, record(1, 3, 1, Retrying, time.Hour), StepReschedule, 3, noon.Add(time.Hour)},
		"exhausted: retry due":                      {message(1, 1, 1), exhausted, record(1, 3, 1, Retrying, 0), StepReschedule, 3, noon},
		"exhausted: being parked, move unknown":     {message(1, 1, 1), exhausted, record(1, 1, 1, Parked, 0), StepFinishPark, 1, time.Time{}},
		"exhausted: released from PARKED, no place": {message(1, 1, 3), exhausted, record(1, 1, 1, Parked, 0), StepReschedule, 1, noon},
		"exhausted: ended":                          {message(1, 1, 1), exhausted, record(1, 2, 1, Delivered, 0), StepSettle, 2, time.Time{}},
		"exhausted: failed for good":                {message(1, 1, 1), exhausted, record(1, 6, 1, PermanentlyFailed, 0), StepKeepFailed, 6, time.Time{}},
		"exhausted: lives on":                       {message(1, 1, 1), exhausted, record(1, 2, 2, Retrying, 0), StepSettle, 2, time.Time{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := Resume(test.n, test.r, test.last, noon)
			done := d.Position.AttemptsDone
			if d.Step == StepReschedule || d.Step == StepFinishPark {
				done = d.Next.AttemptsDone
				if d.Next.Moves != test.n.Moves+1 || d.Next.Send != test.n.Send {
					t.Errorf("the next message is move %d of send %d", d.Next.Moves, d.Next.Send)
				}
			}
			if d.Step != test.step || done != test.done || !d.At.Equal(test.at) {
				t.Errorf("step %d after %d attempts at %v, want %d after %d at %v", d.Step, done, d.At, test.step, test.done, test.at)
			}
			if d.Step == StepFinishPark && d.Backlog != "url" {
				t.Errorf("backlog %q", d.Backlog)
			}
		})
	}
}

// TestResumeWithoutRecords: a retry whose records were removed from the journal goes on with the attempts that its
// deliveries stand for, has one left at least, and never more than six in all.
func TestResumeWithoutRecords(t *testing.T) {
	t.Parallel()
	for delivered := 1; delivered <= MaxAttempts-1; delivered++ {
		for _, done := range []int{1, 2, 5} {
			n := notifications().Example(1)
			n.Send, n.AttemptsDone, n.Journal = 1, done, 7
			want := min(done+delivered-1, MaxAttempts-1)
			d := Resume(&n, Receipt{Lane: LaneRetry, NumDelivered: delivered, Again: true}, nil, noon)
			if d.Step != StepSend || d.Position.AttemptsDone != want || d.Position.Journal != 0 {
				t.Errorf("delivery %d after %d attempts: step %d at %+v, want attempt %d", delivered, done, d.Step, d.Position, want+1)
			}
			d = Resume(&n, Receipt{Lane: LaneRetry, NumDelivered: delivered, Exhausted: true}, nil, noon)
			if d.Step != StepReschedule || d.Next.AttemptsDone != want {
				t.Errorf("exhausted after delivery %d: step %d, the next message has %d attempts, want %d", delivered, d.Step, d.Next.AttemptsDone, want)
			}
		}
		parked := notifications().Example(1)
		parked.Send, parked.AttemptsDone, parked.Journal = 1, 3, 7
		if d := Resume(&parked, Receipt{Lane: LaneParked, NumDelivered: delivered}, nil, noon); d.Step != StepSend || d.Position.AttemptsDone != 3 {
			t.Errorf("parked: step %d after %d attempts", d.Step, d.Position.AttemptsDone)
		}
	}
}

// world is a broker, a journal and dispatchers that may stop between any two writes.
type world struct {
	t        *rapid.T
	now      time.Time
	journal  []*Record
	messages []*stored
	known    map[string]bool // message ids within the duplicate window
	failed   map[int]bool    // sends whose payload is kept
	busy     []*handler
	requests map[[2]int]int // by send and attempt
	cut      int            // handlers that were interrupted or overtaken
	ended    map[int]State
}

type stored struct {
	n         Notification
	lane      Lane
	delivered int
	notBefore time.Time
	gone      bool
	held      int // handlers that work on it
}

// handler is a dispatcher's goroutine that stops before each of its writes.
type handler struct {
	m    *stored
	next func() (struct{}, bool)
	stop func()
}

func (w *world) last() *Record {
	if len(w.journal) == 0 {
		return nil
	}
	copied := *w.journal[len(w.journal)-1]
	return &copied
}

// record appends r if it follows the last record, as the broker does.
func (w *world) record(r *Record) bool {
	last := w.last()
	if sequence := lastSequence(last); r.Previous != sequence {
		return false
	}
	if last != nil && last.Send == r.Send && last.State.Terminal() {
		w.t.Fatalf("send %d ended as %s and then got a record %s", r.Send, last.State, r.State)
	}
	if last != nil && last.Send > r.Send {
		w.t.Fatalf("send %d got a record after send %d", r.Send, last.Send)
	}
	before := 0
	if last != nil && last.Send == r.Send {
		before = last.AttemptsDone
	}
	want := before
	if r.Kind == KindAttempt {
		want++
	}
	if r.AttemptsDone != want || r.AttemptsDone > MaxAttempts {
		w.t.Fatalf("a record %s of send %d has %d attempts after %d", r.Kind, r.Send, r.AttemptsDone, before)
	}
	if r.State.Terminal() {
		if _, twice := w.ended[r.Send]; twice {
			w.t.Fatalf("send %d ends twice", r.Send)
		}
		if r.State == PermanentlyFailed && r.AttemptsDone < MaxAttempts {
			w.t.Fatalf("send %d failed for good after %d attempts", r.Send, r.AttemptsDone)
		}
		w.ended[r.Send] = r.State
	}
	r.Sequence = uint64(len(w.journal) + 1)
	w.journal = append(w.journal, r)
	return true
}

func lastSequence(last *Record) uint64 {
	if last == nil {
		return 0
	}
	return last.Sequence
}

// publish stores n unless the stream knows its id.
func (w *world) publish(lane Lane, id string, n Notification, at time.Time) {
	id = string(lane) + id
	if w.known[id] {
		return
	}
	w.known[id] = true
	w.messages = append(w.messages, &stored{n: n, lane: lane, notBefore: at})
}

// displace moves n to RETRIES because PARKED refused it.
func (w *world) displace(n *Notification, p Position) {
	next, at := n.Displaced(p, w.now)
	w.publish(LaneRetry, next.MoveID(), next, at)
}

// onRetries reports whether RETRIES holds n or a message that follows from it.
func (w *world) onRetries(n Notification) bool {
	return slices.ContainsFunc(w.open(), func(m *stored) bool {
		return m.lane == LaneRetry && m.n.Send == n.Send && m.n.Moves >= n.Moves
	})
}

// choices are what chance decides about a delivery.
type choices struct {
	park, delivered, crowded, moveFirst bool
	full                                bool // PARKED refuses it
}

// handle does what a dispatcher does with a delivery; it yields before each write.
func (w *world) handle(m *stored, r Receipt, c choices) iter.Seq[struct{}] {
	return func(yield func(struct{}) bool) {
		write := func(do func()) bool {
			if !yield(struct{}{}) {
				return false
			}
			do()
			return true
		}
		ack := func() { m.gone = true }
		carryOut := func(d Decision) {
			done := true
			switch d.Step {
			case StepKeepFailed:
				done = write(func() { w.failed[m.n.Send] = true })
			case StepReschedule:
				done = write(func() { w.publish(LaneRetry, d.Next.MoveID(), d.Next, d.At) })
			case StepFinishPark:
				switch {
				case w.onRetries(d.Next): // PARKED refused it before
				case c.full:
					done = write(func() { w.displace(&m.n, d.Position) })
				default:
					done = write(func() { w.publish(LaneParked, d.Next.MoveID(), d.Next, w.now) })
				}
			case StepPostpone:
				write(func() { m.notBefore = d.At })
				return
			case StepSettle:
			case StepSend, StepSetAside:
				w.t.Fatalf("step %d is not to be carried out", d.Step)
			}
			if done {
				write(ack)
			}
		}
		d := Decision{Position: m.n.Position()}
		if !r.Trusted() {
			d = Resume(&m.n, r, w.last(), w.now)
		}
		if d.Step == StepSetAside { // the model's crashes are many and are no fault of the message
			d.Step = StepSend
		}
		if d.Step != StepSend {
			carryOut(d)
			return
		}
		if c.park {
			record := m.n.Record(d.Position, KindParked, w.now)
			record.State, record.Reason, record.URLKey = Parked, Suspended, "url"
			recorded := false
			writes := []func(){
				func() { recorded = w.record(record) },
				func() {
					if n := m.n.Parked(d.Position); !c.full {
						w.publish(LaneParked, n.MoveID(), n, w.now)
					}
				},
			}
			if c.moveFirst {
				slices.Reverse(writes)
			}
			for _, do := range writes {
				if !write(do) {
					return
				}
			}
			if recorded && c.full {
				p := Position{AttemptsDone: d.Position.AttemptsDone, Journal: record.Sequence}
				recorded = write(func() { w.displace(&m.n, p) })
			}
			if recorded {
				write(ack)
			}
			return
		}
		number := d.Position.AttemptsDone + 1
		w.requests[[2]int{m.n.Send, number}]++
		record := m.n.Record(d.Position, KindAttempt, w.now)
		outcome := OutcomeFailed
		if c.delivered {
			outcome = OutcomeDelivered
		}
		record.Attempted(&Attempt{Number: number, Outcome: outcome}, func(int) time.Duration { return time.Minute })
		recorded := false
		if !write(func() {
			if recorded = w.record(record); !recorded {
				if last := w.last(); last != nil && record.Overtaken(last) {
					record.Follow(last)
					recorded = w.record(record)
				}
			}
		}) {
			return
		}
		if !recorded {
			w.cut++
			return // the message comes again
		}
		carryOut(Conclude(&m.n, r, record, c.crowded))
	}
}

// deliver has a dispatcher take a message, if the broker hands it out now.
func (w *world) deliver(m *stored, c choices, forgot bool) {
	r := Receipt{Lane: m.lane, Again: forgot || m.delivered > 0 || m.held > 0}
	if m.lane == LaneRetry && m.delivered == MaxAttempts-1 {
		r.Exhausted, r.NumDelivered = true, m.delivered
	} else {
		m.delivered++
		r.NumDelivered = m.delivered
	}
	if m.held > 0 {
		w.cut++
	}
	m.held++
	next, stop := iter.Pull(w.handle(m, r, c))
	w.busy = append(w.busy, &handler{m, next, stop})
}

// advance lets a handler make its next write, or ends it there when cut is set.
func (w *world) advance(i int, cut bool) {
	h := w.busy[i]
	more := false
	if cut {
		w.cut++
		h.stop()
	} else {
		_, more = h.next()
	}
	if !more {
		h.stop()
		h.m.held--
		w.busy = slices.Delete(w.busy, i, i+1)
	}
}

func (w *world) open() []*stored {
	return slices.DeleteFunc(slices.Clone(w.messages), func(m *stored) bool { return m.gone })
}

// TestEveryInterruption: whatever is cut off, repeated or overtaken, every send ends exactly once, after six
// attempts where it failed, its payload is kept, and each interruption costs at most one request more.
func TestEveryInterruption(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &world{
			t: t, now: noon, known: map[string]bool{}, failed: map[int]bool{}, requests: map[[2]int]int{}, ended: map[int]State{},
		}
		n := notifications().Example(1)
		n.Send, n.AttemptsDone, n.Moves, n.Journal, n.Replay = 1, 0, 0, 0, ""
		w.publish(LaneFirst, n.SendID(), n, w.now)
		chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)) // rapid's own numbers are mostly small
		oneIn := func(n int) bool { return chance.IntN(n) == 0 }
		draw := func() choices {
			return choices{park: oneIn(4), delivered: oneIn(8), crowded: oneIn(3), moveFirst: oneIn(2), full: oneIn(3)}
		}
		for range 150 {
			open := w.open()
			switch action := chance.IntN(20); {
			case action == 0:
				w.now = w.now.Add(time.Duration(1+chance.IntN(120)) * time.Second)
			case action == 1:
				clear(w.known) // the duplicate window has passed
			case action <= 3 && len(w.busy) > 0:
				w.advance(chance.IntN(len(w.busy)), true)
			case action <= 13 && len(w.busy) > 0:
				w.advance(chance.IntN(len(w.busy)), false)
			case len(open) > 0:
				m := open[chance.IntN(len(open))]
				stalled := m.held > 0 && oneIn(4) // its ack wait is over
				if (m.held == 0 || stalled) && !m.notBefore.After(w.now) {
					w.deliver(m, draw(), oneIn(10))
				}
			case len(w.ended) == 1: // both lanes are empty: it is sent again
				again := n.Resend(w.last(), "")
				w.publish(LaneFirst, again.SendID(), again, w.now)
			}
		}
		w.finish(draw)
		w.check()
	})
}

// finish runs everything to its end without further interruptions.
func (w *world) finish(draw func() choices) {
	for round := 0; ; round++ {
		for len(w.busy) > 0 {
			w.advance(0, false)
		}
		open := w.open()
		if len(open) == 0 {
			return
		}
		if round > 200 {
			w.t.Fatalf("no end: %d messages are left", len(open))
		}
		slices.SortStableFunc(open, func(a, b *stored) int { return cmp.Compare(a.notBefore.Unix(), b.notBefore.Unix()) })
		m := open[0]
		if m.notBefore.After(w.now) {
			w.now = m.notBefore
		}
		c := draw()
		c.park = c.park && round < 20
		w.deliver(m, c, false)
	}
}

func (w *world) check() {
	last := w.last()
	if last == nil || !last.State.Terminal() {
		w.t.Fatalf("the notification is lost: %+v", last)
	}
	for send, state := range w.ended {
		if state == PermanentlyFailed && !w.failed[send] {
			w.t.Fatalf("the payload of send %d is not kept", send)
		}
	}
	recorded, requests := 0, 0
	for _, r := range w.journal {
		if r.Kind == KindAttempt {
			recorded++
		}
	}
	for _, n := range w.requests {
		requests += n
	}
	if requests > recorded+w.cut {
		w.t.Fatalf("%d requests for %d recorded attempts and %d interruptions", requests, recorded, w.cut)
	}
}

// TestDisplaced: a notification that PARKED refuses comes back after a quarter of its wait, and waits from the start
// when it was attempted, parked or sent again.
func TestDisplaced(t *testing.T) {
	t.Parallel()
	n := notifications().Example(1)
	n.RefusedAt = time.Time{}
	p := Position{AttemptsDone: 2, Journal: 7}
	now, moves := noon, n.Moves
	for _, want := range []time.Duration{time.Second, time.Second, time.Second, time.Second, time.Second, 1250 * time.Millisecond} {
		next, at := n.Displaced(p, now)
		if at.Sub(now) != want {
			t.Errorf("after %v: it comes back after %v, want %v", now.Sub(noon), at.Sub(now), want)
		}
		if moves++; next.Moves != moves || next.AttemptsDone != 2 || next.Journal != 7 || !next.RefusedAt.Equal(noon) {
			t.Errorf("got %+v", next)
		}
		n, now = next, at
	}
	if _, at := n.Displaced(p, noon.Add(24*time.Hour)); at.Sub(noon) != 24*time.Hour+10*time.Minute {
		t.Errorf("after a day it comes back after %v", at.Sub(noon)-24*time.Hour)
	}
	for name, next := range map[string]Notification{"retried": n.Retry(p), "parked": n.Parked(p), "sent again": n.Resend(nil, "")} {
		if !next.RefusedAt.IsZero() {
			t.Errorf("%s: it was refused at %v", name, next.RefusedAt)
		}
	}
}

func TestLaterOnlyForCertain(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	place := func(sequence uint64, after time.Duration) Place {
		return Place{EventID: "e", Sequence: sequence, Time: at.Add(after)}
	}
	for name, tc := range map[string]struct {
		p, q  Place
		later bool
	}{
		"later":                           {place(2, 1), place(1, 0), true},
		"itself":                          {place(1, 0), place(1, 0), false},
		"earlier":                         {place(1, 0), place(2, 1), false},
		"of the stream that was there":    {place(9, 0), place(1, 1), false},
		"of the stream created again":     {place(1, 1), place(9, 0), false},
		"rounded to the same millisecond": {place(2, 0), place(1, 0), false},
		"of a test, which has no number":  {place(2, 1), place(0, 0), false},
		"none is known":                   {Place{}, place(1, 0), false},
	} {
		if got := tc.p.Later(tc.q); got != tc.later {
			t.Errorf("%s: later is %v, want %v", name, got, tc.later)
		}
	}
}

func TestWaited(t *testing.T) {
	t.Parallel()
	first, replayed := Notification{Send: 1}, Notification{Send: 2, Replay: "r"}
	for name, tc := range map[string]struct {
		n      Notification
		lane   Lane
		waited bool
	}{
		"a first attempt":             {first, LaneFirst, false},
		"a resend":                    {Notification{Send: 2}, LaneFirst, false},
		"a replay":                    {replayed, LaneFirst, true},
		"a retry":                     {first, LaneRetry, true},
		"parked before its first one": {first, LaneParked, true},
	} {
		if got := tc.n.Waited(tc.lane); got != tc.waited {
			t.Errorf("%s: waited is %v, want %v", name, got, tc.waited)
		}
	}
}
