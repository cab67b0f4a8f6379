package index

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/notification"
)

// views are this process's copies of accounts' postings: of those that were asked for last, as many as have room.
type views struct {
	mu    sync.Mutex
	known []*view // asked for last first
}

// viewEntries is how many entries the views of a process hold together, at about 90 bytes each.
const viewEntries = 2_000_000

// view is one account's postings. Its mutex is held while it is read and brought up to date.
type view struct {
	account string
	size    int // entries, as the views know it; guarded by their mutex

	mu       sync.Mutex
	notes    copied
	entries  []noted
	places   map[uuid.UUID]int32 // in entries
	order    []int32             // entries, oldest first
	webhooks []uuid.UUID
	numbers  map[uuid.UUID]uint32 // in webhooks

	happened copied
	events   []eventNote // by sequence
}

// noted is a notification as its postings describe it.
type noted struct {
	id      uuid.UUID
	created int64
	rank    int64
	event   uint64
	name    uint32
	webhook uint32 // in webhooks
}

// of returns the account's view, locked.
func (v *views) of(account string) *view {
	v.mu.Lock()
	at := slices.IndexFunc(v.known, func(k *view) bool { return k.account == account })
	var found *view
	if at >= 0 {
		found = v.known[at]
		v.known = slices.Delete(v.known, at, at+1)
	} else {
		found = &view{account: account}
	}
	v.known = slices.Insert(v.known, 0, found)
	v.mu.Unlock()
	found.mu.Lock()
	return found
}

// done unlocks a view, and drops those that were not asked for lately when there are too many entries.
func (v *views) done(used *view) {
	size := len(used.entries) + len(used.events)
	used.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	used.size = size
	total := 0
	for i, k := range v.known {
		if total += k.size; total > viewEntries && i > 0 {
			clear(v.known[i:])
			v.known = v.known[:i]
			return
		}
	}
}

// updateNotes brings the notifications up to date. low is the journal's sequence from which on they are complete.
func (v *view) updateNotes(ctx context.Context, x *Index) (low uint64, filling bool, err error) {
	var fresh []int32
	low, filling, err = x.update(ctx, ofNotifications, x.journal, v.account, &v.notes, func() {
		v.entries, v.order, v.webhooks = nil, nil, nil
		v.places, v.numbers = map[uuid.UUID]int32{}, map[uuid.UUID]uint32{}
	}, func(posting string) {
		if at, isNew := v.take(readNote(posting)); isNew {
			fresh = append(fresh, at)
		}
	})
	slices.SortFunc(fresh, v.compare)
	v.merge(fresh)
	return low, filling, err
}

// take folds a posting into its notification's entry. It reports a new entry, which is not in order yet.
func (v *view) take(n note) (at int32, isNew bool) {
	at, known := v.places[n.id]
	if !known {
		number, ok := v.numbers[n.webhook]
		if !ok {
			number = uint32(len(v.webhooks)) //nolint:gosec // far fewer
			v.numbers[n.webhook] = number
			v.webhooks = append(v.webhooks, n.webhook)
		}
		at = int32(len(v.entries)) //nolint:gosec // far fewer
		v.places[n.id] = at
		v.entries = append(v.entries, noted{n.id, n.created, n.rank, n.event, n.name, number})
		return at, true
	}
	e := &v.entries[at]
	e.rank = max(e.rank, n.rank)
	if e.event == 0 {
		e.event = n.event
	}
	if n.created < e.created {
		// It moves in the order, if it is there already.
		if place, ok := slices.BinarySearchFunc(v.order, at, v.compare); ok {
			v.order = slices.Delete(v.order, place, place+1)
			e.created = n.created
			place, _ = slices.BinarySearchFunc(v.order, at, v.compare)
			v.order = slices.Insert(v.order, place, at)
		}
		e.created = n.created
	}
	return at, false
}

// compare orders entries oldest first, as Compare does newest first.
func (v *view) compare(a, b int32) int {
	x, y := &v.entries[a], &v.entries[b]
	return cmp.Or(cmp.Compare(x.created, y.created), bytes.Compare(x.id[:], y.id[:]))
}

// merge puts sorted entries, most of them newer than the existing ones, into the order.
func (v *view) merge(fresh []int32) {
	if len(fresh) == 0 {
		return
	}
	old := len(v.order)
	v.order = append(v.order, fresh...)
	i, j := old-1, len(fresh)-1
	for at := len(v.order) - 1; j >= 0; at-- { // from the end on, until the new ones are placed
		if i >= 0 && v.compare(v.order[i], fresh[j]) > 0 {
			v.order[at], i = v.order[i], i-1
		} else {
			v.order[at], j = fresh[j], j-1
		}
	}
}

// updateEvents brings the events up to date. low is the sequence of CRM_EVENTS from which on they are complete.
func (v *view) updateEvents(ctx context.Context, x *Index) (low uint64, filling bool, err error) {
	old := len(v.events)
	low, filling, err = x.update(ctx, ofEvents, x.events, v.account, &v.happened, func() { v.events, old = nil, 0 },
		func(posting string) {
			v.events = append(v.events, readEventNote(posting))
		})
	bySequence := func(a, b eventNote) int { return cmp.Compare(a.sequence, b.sequence) }
	if !slices.IsSortedFunc(v.events[max(old-1, 0):], bySequence) {
		slices.SortFunc(v.events, bySequence)
	}
	v.events = slices.CompactFunc(v.events, func(a, b eventNote) bool { return a.sequence == b.sequence })
	return low, filling, err
}

// Query says which notifications of an account are wanted. The zero value of a member does not limit.
type Query struct {
	State    notification.State
	Webhook  string
	Name     string    // of the event
	Events   []uint64  // first halves of ids, see Half; nil for all
	From, To time.Time // when they were created: From included, To not
	After    Entry     // begins behind it
	Limit    int       // at least 1
}

// Half is the first half of an event's id, as a Query has it.
func Half(eventID string) uint64 { return hashID(eventID) }

// Hit is a notification of an account.
type Hit struct {
	Entry

	Webhook string
	Event   uint64 // the first half of its event's id
}

// Page is the result of a Query, newest first.
type Page struct {
	Hits []Hit
	More bool // there are more in the index
	// Low is the sequence of the journal from which on the index is complete. It knows nothing of a notification whose
	// newest record is older.
	Low uint64
	// Partial says that the index is being filled.
	Partial bool
}

// Search returns notifications of the account, newest first. ErrAway means that Redis does not answer.
func (x *Index) Search(ctx context.Context, account string, q Query) (Page, error) {
	v := x.views.of(account)
	defer x.views.done(v)
	low, filling, err := v.updateNotes(ctx, x)
	if err != nil {
		return Page{}, err
	}
	page := Page{Low: low, Partial: filling}
	var events map[uint64]bool
	if q.Events != nil {
		events = make(map[uint64]bool, len(q.Events))
		for _, half := range q.Events {
			events[half] = true
		}
	}
	webhook, name := uint32(0), hashName(q.Name)
	if q.Webhook != "" {
		id, err := uuid.Parse(q.Webhook)
		number, known := v.numbers[id]
		if err != nil || !known {
			return page, nil
		}
		webhook = number
	}
	end := len(v.order)
	if !q.After.Created.IsZero() {
		end, _ = slices.BinarySearchFunc(v.order, q.After, func(at int32, after Entry) int {
			e := &v.entries[at]
			return cmp.Or(cmp.Compare(e.created, after.Created.UnixMilli()), bytes.Compare(e.id[:], after.ID[:]))
		})
	}
	from, to := int64(0), int64(1<<62)
	if !q.From.IsZero() {
		from = ceilMilli(q.From)
	}
	if !q.To.IsZero() {
		to = ceilMilli(q.To)
	}
	for _, at := range slices.Backward(v.order[:end]) {
		e := &v.entries[at]
		switch {
		case e.created < from:
			return page, nil
		case e.created >= to,
			q.Webhook != "" && e.webhook != webhook,
			q.Name != "" && e.name != name,
			q.State != "" && stateOf(e.rank) != q.State,
			events != nil && !events[e.event],
			!v.covers(e, low):
			continue
		}
		if len(page.Hits) == q.Limit {
			page.More = true
			return page, nil
		}
		page.Hits = append(page.Hits, Hit{
			Entry{e.id, time.UnixMilli(e.created).UTC(), stateOf(e.rank)}, v.webhooks[e.webhook].String(), e.event,
		})
	}
	return page, nil
}

// ceilMilli is t in ms, rounded up: anything created at that time or later has at least this.
func ceilMilli(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// covers reports whether the index is what knows of the entry: its newest record is not older than low.
func (v *view) covers(e *noted, low uint64) bool {
	return e.rank%8 == pendingCode || uint64(e.rank)/8 >= low //nolint:gosec // not negative
}

// Covers reports whether Search can find the notification; the others are looked for in the journal.
func (x *Index) Covers(ctx context.Context, account string, ids []uuid.UUID) ([]bool, error) {
	v := x.views.of(account)
	defer x.views.done(v)
	low, _, err := v.updateNotes(ctx, x)
	if err != nil {
		return nil, err
	}
	out := make([]bool, len(ids))
	for i, id := range ids {
		at, known := v.places[id]
		out[i] = known && v.covers(&v.entries[at], low)
	}
	return out, nil
}

// EventQuery says which events of an account are wanted. The zero value of a member does not limit.
type EventQuery struct {
	IDs                         []string // any of them
	Transaction, Document, Name string
	From, To                    time.Time // when they were stored: From included, To not
	Before                      uint64    // sequences below it; 0: no limit
	Limit                       int       // at least 1
}

// EventPage is the result of an EventQuery, newest first.
type EventPage struct {
	Sequences []uint64 // in CRM_EVENTS; missing ones have aged out
	Halves    []uint64 // of the events' ids, see Half
	More      bool
	// Low is the sequence of CRM_EVENTS from which on the index is complete.
	Low     uint64
	Partial bool
}

// Events returns events of the account, newest first. A hit can be another's text with the same hash.
func (x *Index) Events(ctx context.Context, account string, q EventQuery) (EventPage, error) {
	v := x.views.of(account)
	defer x.views.done(v)
	low, filling, err := v.updateEvents(ctx, x)
	if err != nil {
		return EventPage{}, err
	}
	page := EventPage{Low: low, Partial: filling}
	ids := map[uint64]bool{}
	for _, id := range q.IDs {
		ids[hashID(id)] = true
	}
	transaction, document, name := hashText(q.Transaction), hashText(q.Document), hashName(q.Name)
	from, to := int64(0), int64(1<<62)
	if !q.From.IsZero() {
		from = ceilMilli(q.From)
	}
	if !q.To.IsZero() {
		to = ceilMilli(q.To)
	}
	for _, e := range slices.Backward(v.events) {
		switch {
		case q.Before > 0 && e.sequence >= q.Before, e.stored >= to, e.stored < from, e.sequence < low,
			len(ids) > 0 && !ids[e.id],
			q.Transaction != "" && e.transaction != transaction,
			q.Document != "" && e.document != document,
			q.Name != "" && e.name != name:
			continue
		}
		if len(page.Sequences) == q.Limit {
			page.More = true
			break
		}
		page.Sequences, page.Halves = append(page.Sequences, e.sequence), append(page.Halves, e.id)
	}
	return page, nil
}
