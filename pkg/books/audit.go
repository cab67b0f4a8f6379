package books

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/numbers"
	"gancho/pkg/wireversion"
)

// settleTime is how long a send must have been unchanged to be judged: the steps of a move are stored one
// after the other within that time.
const settleTime = 5 * time.Second

// maxSearched is how many messages of one webhook on PARKED are searched for ids. Of more, only the number
// that is missing is known.
const maxSearched = 20_000

// Books are the ledger and its readers. They are used by one goroutine.
type Books struct {
	log           *zap.Logger
	settled       time.Duration // see settleTime
	bus           *bus.Bus
	reader        string
	ledger        *ledger
	notifications *lane.Reader
	journal       *journal.Reader
	missing       map[key]uint64 // missed by the last audit, with their last record then
	short         map[owner]uint64
	stored        *checkpoint
	pieces        [2]int               // stored in each slot
	orphans       map[uuid.UUID]string // scheduled without an open send at the last audit, with their accounts
	tally         *numbers.Tally       // of the messages that are read; nil: none
	readAt        time.Time            // messages stored before this time are read

	// Orphans are what two audits in a row found scheduled for sends that ended.
	Orphans []Orphan
}

// Orphan is a message that waits on RETRIES for its time although its notification ended.
type Orphan struct{ Account, NotificationID string }

// Names of readers: the broker's rights name them.
const (
	readerKeeper = "books"
	ReaderDoctor = "doctor"
)

// New returns books that begin with the present content of the streams. reader names their consumers.
func New(b *bus.Bus, reader string, log *zap.Logger) *Books {
	return &Books{
		log: log, settled: settleTime, bus: b, reader: reader, ledger: newLedger(),
		notifications: lane.NewReader(b, reader, bus.Position{}), journal: journal.NewReader(b, reader, bus.Position{}),
	}
}

// Close ends the readers.
func (x *Books) Close(ctx context.Context) {
	x.notifications.Close(ctx)
	x.journal.Close(ctx)
}

// catchUp reads both streams to their ends.
func (x *Books) catchUp(ctx context.Context) error {
	began := time.Now()
	p, err := x.journal.Mark(ctx)
	if err != nil {
		return err
	}
	if p.Missed > 0 || p.Renewed {
		x.log.Warn("part of the journal was removed before it was read", zap.Uint64("records", p.Missed), zap.Bool("recreated", p.Renewed))
	}
	fresh := len(x.ledger.open) == 0 && x.ledger.counts == Counts{}
	err = x.notifications.Read(ctx, func(p bus.Progress) {
		if p.Renewed {
			x.ledger.renewed()
		}
		if p.Missed > 0 && !fresh {
			x.ledger.counts.Unread += p.Missed
		}
	}, func(a lane.Arrival, sequence uint64) {
		x.ledger.arrive(a, sequence)
		x.tally.Arrived(&a, sequence)
	})
	if err != nil {
		return err
	}
	err = x.journal.Read(ctx, func(s notification.Summary, stored time.Time) {
		x.ledger.record(s)
		x.tally.Recorded(&s, stored)
	})
	if err == nil {
		x.readAt = began
	}
	return err
}

// Lost is a send that nothing carries.
type Lost struct {
	key
	entry
	owner
}

// Audit looks for sends that have neither ended nor a message. Those that the audit before missed too are unaccounted,
// so the first one finds nothing. The second result are those known by name.
func (x *Books) Audit(ctx context.Context) (*Report, []Lost, error) {
	now := time.Now()
	acked, err := lane.Settled(ctx, x.bus)
	if err != nil {
		return nil, nil, err
	}
	backlogs, err := lane.Backlogs(ctx, x.bus, "")
	if err != nil {
		return nil, nil, err
	}
	onParked := map[owner]uint64{}
	for _, b := range backlogs {
		onParked[owner{b.Account, b.WebhookID}] += b.Messages
	}
	onRetries, scheduled := map[uuid.UUID]bool{}, map[uuid.UUID]string{}
	err = eachRetry(ctx, x.bus, x.accounts, func(account string, id uuid.UUID, isScheduled bool) {
		onRetries[id] = true
		if isScheduled {
			scheduled[id] = account
		}
	})
	if err != nil {
		return nil, nil, err
	}
	if err := x.catchUp(ctx); err != nil {
		return nil, nil, err
	}
	// Most often every webhook's are where they should be, so they are counted before they are listed.
	isUncarried := func(k key, e entry) bool {
		return !onRetries[k.id] && e.seq <= acked && now.Sub(time.Unix(int64(e.changed), 0)) >= x.settled
	}
	counted := make([]uint64, len(x.ledger.owners))
	for k, e := range x.ledger.open {
		if isUncarried(k, e) {
			counted[e.owner]++
		}
	}
	uncarried := map[owner][]Lost{}
	for i, n := range counted {
		if o := x.ledger.owners[i]; n > onParked[o] {
			uncarried[o] = make([]Lost, 0, n)
		}
	}
	if len(uncarried) > 0 {
		for k, e := range x.ledger.open {
			o := x.ledger.owners[e.owner]
			if _, short := uncarried[o]; short && isUncarried(k, e) {
				uncarried[o] = append(uncarried[o], Lost{k, e, o})
			}
		}
	}
	var found []Lost
	missing, short := map[key]uint64{}, map[owner]uint64{}
	byAccount, inState := map[string]uint64{}, map[state]uint64{}
	for o, all := range uncarried {
		there := onParked[o]
		gone, err := x.search(ctx, o, all, there)
		if err != nil {
			return nil, nil, err
		}
		for _, g := range gone {
			missing[g.key] = g.journal
			if journal, before := x.missing[g.key]; before && journal == g.journal {
				found = append(found, g)
				byAccount[o.account]++
				inState[g.state]++
			}
		}
		if gone == nil { // too many to name
			short[o] = uint64(len(all)) - there
			n := min(short[o], x.short[o])
			byAccount[o.account] += n
			inState[parked] += n
		}
	}
	x.missing, x.short = missing, short
	r := x.report(now, byAccount, inState, found)
	x.findOrphans(scheduled)
	r.Orphans = uint64(len(x.Orphans))
	x.ledger.forget()
	return r, found, nil
}

// accounts are those with open sends.
func (x *Books) accounts() []string {
	seen := map[string]bool{}
	for _, e := range x.ledger.open {
		seen[x.ledger.owners[e.owner].account] = true
	}
	out := make([]string, 0, len(seen))
	for a := range seen {
		out = append(out, a)
	}
	return out
}

// search returns which sends of a webhook are really missing: not on PARKED, and not ended as the journal
// has it. Nil says that there are too many to search.
func (x *Books) search(ctx context.Context, o owner, all []Lost, there uint64) ([]Lost, error) {
	if there > maxSearched {
		return nil, nil
	}
	gone := make([]Lost, 0, uint64(len(all))-there)
	onParked := map[uuid.UUID]bool{}
	if there > 0 {
		var err error
		if onParked, err = parkedOf(ctx, x.bus, o.account, o.webhook, maxSearched); err != nil {
			return nil, err
		}
	}
	for _, s := range all {
		if onParked[s.id] {
			continue
		}
		last, err := journal.Last(ctx, x.bus, o.account, s.id.String())
		switch {
		case errors.Is(err, bus.ErrNotFound):
			removed, err := x.mayBeRemoved(ctx, s)
			if err != nil {
				return nil, err
			}
			if removed {
				x.ledger.unread(s.key)
				if x.bus.ShouldLog("unread records") {
					x.log.Warn("records were removed before the books read them: their notifications count as unread and are not repaired",
						zap.String("account_id", s.account), zap.String("notification_id", s.id.String()))
				}
				continue
			}
		case errors.Is(err, wireversion.ErrNewer):
			continue // it is for a newer version to say
		case err != nil:
			return nil, err
		case uint32(last.Send) > s.send || uint32(last.Send) == s.send && last.State.Terminal(): //nolint:gosec // a count
			if last.Sequence <= x.journal.At().Sequence {
				x.ledger.duplicate(s.key)
			}
			continue
		}
		gone = append(gone, s)
	}
	return gone, nil
}

// mayBeRemoved reports whether the journal may have had a record of the send, of which it has none, that was removed
// before it was read. Nothing carries the send, so its end is such a record: to send it again would be wrong.
func (x *Books) mayBeRemoved(ctx context.Context, s Lost) (bool, error) {
	changed := time.Unix(int64(s.changed), 0)
	if x.journal.At().Unread.Before(changed) {
		return false, nil
	}
	oldest, err := journal.Oldest(ctx, x.bus, s.account)
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return false, err
	}
	return err != nil || !oldest.Before(changed), nil
}

// report summarises the books as they are now.
func (x *Books) report(now time.Time, byAccount map[string]uint64, inState map[state]uint64, found []Lost) *Report {
	r := &Report{At: now.UTC(), Counts: x.ledger.counts, Open: map[notification.State]uint64{}}
	var n [len(states)]uint64
	oldest := [len(states)]uint32{}
	var overdue uint32
	for _, e := range x.ledger.open {
		n[e.state]++
		if oldest[e.state] == 0 || e.changed < oldest[e.state] {
			oldest[e.state] = e.changed
		}
		if e.state == retrying && e.next > 0 && e.next < unix(now) && (overdue == 0 || e.next < overdue) {
			overdue = e.next
		}
	}
	for s, name := range states {
		r.Open[name] = n[s] - min(n[s], inState[state(s)])
		r.Unaccounted += n[s] - r.Open[name]
	}
	at := func(seconds uint32) time.Time {
		if seconds == 0 {
			return time.Time{}
		}
		return time.Unix(int64(seconds), 0).UTC()
	}
	r.OldestPending, r.OldestParked, r.MostOverdue = at(oldest[pending]), at(oldest[parked]), at(overdue)
	for id, n := range byAccount {
		if n > 0 {
			r.Accounts = append(r.Accounts, Account{id, n})
		}
	}
	slices.SortFunc(r.Accounts, func(a, b Account) int {
		return cmp.Or(cmp.Compare(b.Unaccounted, a.Unaccounted), cmp.Compare(a.ID, b.ID))
	})
	r.Accounts = r.Accounts[:min(len(r.Accounts), maxAccounts)]
	for _, s := range found[:min(len(found), maxStuck)] {
		r.Stuck = append(r.Stuck, Stuck{s.account, s.webhook, s.id.String(), int(s.send), states[s.state], at(s.changed)})
	}
	return r
}

// findOrphans finds schedules for sends that are not open, twice in a row.
func (x *Books) findOrphans(scheduled map[uuid.UUID]string) {
	if len(scheduled) > 0 {
		for k := range x.ledger.open {
			delete(scheduled, k.id)
		}
	}
	x.Orphans = nil
	for id, account := range scheduled {
		if _, before := x.orphans[id]; before {
			x.Orphans = append(x.Orphans, Orphan{account, id.String()})
		}
	}
	x.orphans = scheduled
}
