package books

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
)

// key names one send.
type key struct {
	id   uuid.UUID
	send uint32
}

// entry is an open send.
type entry struct {
	owner   uint32 // index in ledger.owners
	changed uint32 // unix seconds: opened, or its last record
	next    uint32 // unix seconds of the next attempt; 0 when none is planned
	size    uint32 // bytes that it takes where it waits; 0 when its message was never seen
	state   state
	seq     uint64 // newest message on NOTIFICATIONS; 0 when it was never seen
	journal uint64 // last record; 0 when it has none
}

// state is a state of an open send, small.
type state uint8

const (
	pending state = iota
	retrying
	parked
)

var states = [...]notification.State{pending: notification.Pending, retrying: notification.Retrying, parked: notification.Parked}

func stateOf(s notification.State) state { return state(max(0, slices.Index(states[:], s))) } //nolint:gosec // three of them

// owner is whose an open send is.
type owner struct{ account, webhook string }

// Counts are sends by outcome, since the books began.
type Counts struct {
	Matched           uint64 `json:"matched"`
	Delivered         uint64 `json:"delivered"`
	PermanentlyFailed uint64 `json:"permanently_failed"`
	Cancelled         uint64 `json:"cancelled"`
	// Duplicates were opened after they had ended, as when an event comes again after the duplicate window. Matched
	// leaves them out.
	Duplicates uint64 `json:"duplicates"`
	// Unread were removed from NOTIFICATIONS before the books read them, and left no record: late duplicates, or lost.
	// Or their records were removed before the books read them: they ended. Matched leaves them out.
	Unread uint64 `json:"unread"`
}

// ledger is the books without their broker: the open sends and the counts. It is used by one goroutine.
type ledger struct {
	counts Counts
	open   map[key]entry
	owners []owner
	index  map[owner]uint32
	held   []*share.Open // of each owner's account, shared by its owners
	of     map[string]*share.Open
}

func newLedger() *ledger {
	return &ledger{open: map[key]entry{}, index: map[owner]uint32{}, of: map[string]*share.Open{}}
}

// put adds or changes an open send.
func (l *ledger) put(k key, e entry) {
	if was, known := l.open[k]; known {
		*l.bytes(was) -= int64(was.size)
	}
	*l.bytes(e) += int64(e.size)
	l.open[k] = e
}

// remove closes a send.
func (l *ledger) remove(k key, e entry) {
	*l.bytes(e) -= int64(e.size)
	delete(l.open, k)
}

// bytes is where the bytes of e are counted.
func (l *ledger) bytes(e entry) *int64 {
	switch o := l.held[e.owner]; e.state {
	case retrying:
		return &o.Retrying
	case parked:
		return &o.Parked
	default:
		return &o.Pending
	}
}

// work returns the open bytes of every account that has any.
func (l *ledger) work() map[string]share.Open {
	all := map[string]share.Open{}
	for account, o := range l.of {
		if o.Sum() > 0 {
			all[account] = *o
		}
	}
	return all
}

func (l *ledger) owner(account, webhook string) uint32 {
	o := owner{account, webhook}
	i, ok := l.index[o]
	if !ok {
		i = uint32(len(l.owners)) //nolint:gosec // far below
		l.owners, l.index[o] = append(l.owners, o), i
		held := l.of[account]
		if held == nil {
			held = &share.Open{}
			l.of[account] = held
		}
		l.held = append(l.held, held)
	}
	return i
}

// parseKey returns false for subjects that name no notification.
func parseKey(id string, send int) (key, bool) {
	u, err := uuid.Parse(id)
	return key{u, uint32(send)}, err == nil && send > 0 //nolint:gosec // a count
}

func unix(t time.Time) uint32 { return uint32(max(0, t.Unix())) } //nolint:gosec // until 2106

// arrive takes in a message of NOTIFICATIONS.
func (l *ledger) arrive(a lane.Arrival, seq uint64) {
	k, ok := parseKey(a.ID, a.Send)
	if !ok {
		return
	}
	if e, known := l.open[k]; known {
		if e.seq > 0 {
			l.counts.Duplicates++
		}
		e.seq, e.size = seq, sizeOf(a)
		l.put(k, e)
		return
	}
	l.counts.Matched++
	l.put(k, entry{owner: l.owner(a.Account, a.WebhookID), changed: unix(a.StoredAt), size: sizeOf(a), seq: seq})
}

// sizeOf is the size, in bytes, at which the message of a send counts.
func sizeOf(a lane.Arrival) uint32 {
	return uint32(min(int64(a.Size)+share.Overhead, 1<<32-1)) //nolint:gosec // positive and bounded
}

// record takes in a journal record.
func (l *ledger) record(s notification.Summary) {
	k, ok := parseKey(s.NotificationID, s.Send)
	if !ok {
		return
	}
	e, known := l.open[k]
	if !known && s.Kind == notification.KindErased { // its end is counted
		return
	}
	if !known {
		l.counts.Matched++
		if l.counts.Unread > 0 {
			l.counts.Unread--
		}
		e = entry{owner: l.owner(s.Account, s.WebhookID)}
	}
	if s.State.Terminal() {
		l.end(s.State)
		if known {
			l.remove(k, e)
		}
		return
	}
	state, next := stateOf(s.State), uint32(0)
	if !s.NextAttemptAt.IsZero() {
		next = unix(s.NextAttemptAt)
	}
	changed := e
	changed.changed, changed.journal, changed.state, changed.next = unix(s.At), s.Sequence, state, next
	l.put(k, changed)
}

func (l *ledger) end(s notification.State) {
	switch s {
	case notification.Delivered:
		l.counts.Delivered++
	case notification.PermanentlyFailed:
		l.counts.PermanentlyFailed++
	case notification.Cancelled:
		l.counts.Cancelled++
	case notification.Pending, notification.Retrying, notification.Parked:
	}
}

// duplicate closes a send that had ended before it was opened.
func (l *ledger) duplicate(k key) {
	if e, ok := l.open[k]; ok {
		l.remove(k, e)
		l.counts.Matched--
		l.counts.Duplicates++
	}
}

// unread closes a send whose records were removed before they were read.
func (l *ledger) unread(k key) {
	if e, ok := l.open[k]; ok {
		l.remove(k, e)
		l.counts.Matched--
		l.counts.Unread++
	}
}

// renewed records that NOTIFICATIONS was created again: its earlier messages are gone.
func (l *ledger) renewed() {
	for k, e := range l.open {
		e.seq = 0
		l.open[k] = e
	}
}

// forget drops owners of whom nothing is open, when there are many.
func (l *ledger) forget() {
	if len(l.owners) < 1000 || len(l.owners) < 4*len(l.open) {
		return
	}
	old, open := l.owners, l.open
	counts := l.counts
	*l = *newLedger()
	l.counts = counts
	for k, e := range open {
		o := old[e.owner]
		e.owner = l.owner(o.account, o.webhook)
		l.put(k, e)
	}
}
