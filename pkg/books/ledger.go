package books

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
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

// Counts are sends by what became of them, since the books began.
type Counts struct {
	Matched           uint64 `json:"matched"`
	Delivered         uint64 `json:"delivered"`
	PermanentlyFailed uint64 `json:"permanently_failed"`
	Cancelled         uint64 `json:"cancelled"`
	// Duplicates were opened after they had ended, as when an event comes again after the duplicate window. Matched leaves them out.
	Duplicates uint64 `json:"duplicates"`
	// Unread were removed from NOTIFICATIONS before the books read them, and left no record: late duplicates, or lost.
	Unread uint64 `json:"unread"`
}

// ledger is the books without their broker: the open sends and the counts. It is used by one goroutine.
type ledger struct {
	counts Counts
	open   map[key]entry
	owners []owner
	index  map[owner]uint32
}

func newLedger() *ledger { return &ledger{open: map[key]entry{}, index: map[owner]uint32{}} }

func (l *ledger) owner(account, webhook string) uint32 {
	o := owner{account, webhook}
	i, ok := l.index[o]
	if !ok {
		i = uint32(len(l.owners)) //nolint:gosec // far below
		l.owners, l.index[o] = append(l.owners, o), i
	}
	return i
}

// parseKey returns false for what cannot be a notification.
func parseKey(id string, send int) (key, bool) {
	u, err := uuid.Parse(id)
	return key{u, uint32(send)}, err == nil && send > 0 //nolint:gosec // a count
}

func unix(t time.Time) uint32 { return uint32(max(0, t.Unix())) } //nolint:gosec // until 2106

// arrive takes in a message of NOTIFICATIONS.
func (l *ledger) arrive(a bus.Arrival, seq uint64) {
	k, ok := parseKey(a.ID, a.Send)
	if !ok {
		return
	}
	if e, known := l.open[k]; known {
		if e.seq > 0 {
			l.counts.Duplicates++
		}
		e.seq = seq
		l.open[k] = e
		return
	}
	l.counts.Matched++
	l.open[k] = entry{owner: l.owner(a.Account, a.WebhookID), changed: unix(a.StoredAt), seq: seq}
}

// record takes in a journal record.
func (l *ledger) record(s notification.Summary) {
	k, ok := parseKey(s.NotificationID, s.Send)
	if !ok {
		return
	}
	e, known := l.open[k]
	if !known {
		l.counts.Matched++
		if l.counts.Unread > 0 {
			l.counts.Unread--
		}
		e = entry{owner: l.owner(s.Account, s.WebhookID)}
	}
	if s.State.Terminal() {
		l.end(s.State)
		delete(l.open, k)
		return
	}
	e.changed, e.journal, e.state, e.next = unix(s.At), s.Sequence, stateOf(s.State), 0
	if !s.NextAttemptAt.IsZero() {
		e.next = unix(s.NextAttemptAt)
	}
	l.open[k] = e
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
	if _, ok := l.open[k]; ok {
		delete(l.open, k)
		l.counts.Matched--
		l.counts.Duplicates++
	}
}

// renewed takes in that NOTIFICATIONS was made anew: what was on it is gone.
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
	old := l.owners
	l.owners, l.index = nil, map[owner]uint32{}
	for k, e := range l.open {
		o := old[e.owner]
		e.owner = l.owner(o.account, o.webhook)
		l.open[k] = e
	}
}
