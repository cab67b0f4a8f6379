package share

import (
	"cmp"
	"fmt"
	"maps"
	"sync"
	"time"
)

// Config says how large a share is.
type Config struct {
	// Share is the part of each store that one account may hold while others exist.
	Share float64 `env:"ACCOUNT_SHARE" envDefault:"0.2" range:"0.01..1"`
}

const (
	// Overhead is how many bytes a stored message counts for in addition to its body.
	Overhead = 512
	// reserve is the part of a store that an account leaves free even when it is alone.
	reserve = 0.1
	// Stale is the age at which a count of the books is no longer relied on alone.
	Stale = 15 * time.Second
	// covered is how much later than a message a count must have been made to include it for certain, independent of
	// the positions: a stream that was created again counts from 1.
	covered = 30 * time.Second
)

// Limits are how many bytes the stores may hold; 0 is no limit.
type Limits struct{ Events, Notifications, Retries, Parked int64 }

// work is the lowest limit of the three stores that a notification moves between.
func (l Limits) work() int64 {
	least := int64(0)
	for _, n := range []int64{l.Notifications, l.Retries, l.Parked} {
		if n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}

// Meter decides whether an account may store more. It is safe for concurrent use.
type Meter struct {
	limits Limits
	share  float64
	others func(account string) bool
	now    func() time.Time

	mu       sync.Mutex
	work     Work
	workAt   time.Time // when work was taken over, by this process's clock
	kept     Kept
	floor    uint64 // the dispatchers settled NOTIFICATIONS up to here
	most     int64  // bytes in all stores of work together; below 0: not known
	own      map[string]*tally
	settings map[string]Settings
	deferred map[string]Deferral
}

// New returns a meter. others reports whether any account but this one exists.
func New(c Config, l Limits, others func(account string) bool) *Meter {
	return &Meter{
		limits: l, share: cmp.Or(c.Share, 0.2), others: others, now: time.Now, most: -1,
		own: map[string]*tally{}, settings: map[string]Settings{}, deferred: map[string]Deferral{},
	}
}

// tally is the bytes that this process stored for one account and that the latest counts may not include.
type tally struct {
	reserved       int64 // admitted work that is not stored yet
	reservedEvents int64
	work, events   []entry
	// Sums of the entries that the latest counts do not hold, and of those that are still on NOTIFICATIONS.
	open, stored, kept int64
}

type entry struct {
	sequence uint64
	bytes    int64
	at       time.Time
}

// Excess says which store an account has its share of.
type Excess struct {
	Store       string // a stream's name; NOTIFICATIONS stands for all work
	Used, Share int64  // bytes
}

func (e Excess) String() string {
	return fmt.Sprintf("%d of %d bytes of %s", e.Used, e.Share, e.Store)
}

// Stores of an Excess.
const (
	StoreEvents = "CRM_EVENTS"
	StoreWork   = "NOTIFICATIONS"
)

// Hold is room that was admitted for messages that are about to be stored. Exactly one of its methods is called, once.
type Hold struct {
	m       *Meter
	account string
	bytes   int64
	events  bool
}

// Admit reserves room for work of that many bytes on NOTIFICATIONS. Without room it returns nil and the excess.
// An account that holds no work is always admitted.
func (m *Meter) Admit(account string, bytes int64) (*Hold, Excess) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limits.work() == 0 {
		return &Hold{m: m, account: account}, Excess{}
	}
	if over, full := m.overWork(account, bytes); full {
		return nil, over
	}
	m.tally(account).reserved += bytes
	return &Hold{m: m, account: account, bytes: bytes}, Excess{}
}

// AdmitEvent reserves room for an event of that many bytes on CRM_EVENTS, as Admit does. It does not look at the
// account's work; see Over.
func (m *Meter) AdmitEvent(account string, bytes int64) (*Hold, Excess) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limits.Events == 0 {
		return &Hold{m: m, account: account, events: true}, Excess{}
	}
	used, limit := m.usedEvents(account), m.limit(account, m.limits.Events)
	if used > 0 && used+bytes > limit {
		return nil, Excess{StoreEvents, used, limit}
	}
	m.tally(account).reservedEvents += bytes
	return &Hold{m: m, account: account, bytes: bytes, events: true}, Excess{}
}

// Stored ends the hold: its messages are stored, the last of them at this sequence.
func (h *Hold) Stored(sequence uint64) { h.end(sequence) }

// Release gives up the hold: nothing was stored.
func (h *Hold) Release() { h.end(0) }

func (h *Hold) end(sequence uint64) {
	if h.bytes == 0 {
		return
	}
	m := h.m
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tally(h.account)
	e := entry{sequence, h.bytes, m.now()}
	switch {
	case h.events:
		if t.reservedEvents -= h.bytes; sequence > 0 {
			t.events = append(t.events, e)
			t.kept += e.bytes
		}
	default:
		if t.reserved -= h.bytes; sequence > 0 {
			t.work = append(t.work, e)
			t.open += e.bytes
			t.stored += e.bytes
		}
	}
}

func (m *Meter) tally(account string) *tally {
	t := m.own[account]
	if t == nil {
		t = &tally{}
		m.own[account] = t
	}
	return t
}

// Part returns how many bytes the account may hold of a store with that limit.
func (m *Meter) Part(account string, store int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.limit(account, store)
}

// limit returns the account's part of a store.
func (m *Meter) limit(account string, store int64) int64 {
	part := cmp.Or(m.settings[account].Share, m.share)
	if !m.others(account) {
		part = max(part, 1-reserve)
	}
	return int64(part * float64(store))
}

// usedWork returns the bytes of the account's open work.
func (m *Meter) usedWork(account string) int64 {
	known := m.work.Accounts[account].Sum()
	if m.most >= 0 && m.stale() {
		known = min(known, m.most)
	}
	if t := m.own[account]; t != nil {
		known += t.open + t.reserved
	}
	return known
}

// onNotifications returns the bytes that the account's messages take on NOTIFICATIONS, acknowledged ones that cannot be
// freed yet included.
func (m *Meter) onNotifications(account string) int64 {
	if t := m.own[account]; t != nil {
		return t.stored + t.reserved
	}
	return 0
}

func (m *Meter) usedEvents(account string) int64 {
	t := m.own[account]
	switch {
	case m.kept.Exact && t != nil:
		return m.kept.Accounts[account] + t.kept + t.reservedEvents
	case m.kept.Exact:
		return m.kept.Accounts[account]
	case t != nil: // no account holds more than all do together
		return m.kept.Total + t.kept + t.reservedEvents
	}
	return 0 // an account that stored nothing here does not answer for the others
}

// stale reports whether the books have fallen silent.
func (m *Meter) stale() bool { return m.now().Sub(m.workAt) > Stale }

// overWork reports whether work of that many bytes more would be over the account's share.
func (m *Meter) overWork(account string, bytes int64) (Excess, bool) {
	for _, s := range []struct{ used, store int64 }{
		{m.usedWork(account), m.limits.work()},
		{m.onNotifications(account), m.limits.Notifications},
	} {
		if limit := m.limit(account, s.store); s.store > 0 && s.used > 0 && s.used+bytes > limit {
			return Excess{StoreWork, s.used, limit}, true
		}
	}
	return Excess{}, false
}

// Over reports whether the account has its share of any store, and of which.
func (m *Meter) Over(account string) (Excess, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limits.work() > 0 {
		if over, full := m.overWork(account, 1); full {
			return over, true
		}
	}
	if m.limits.Events > 0 {
		used, limit := m.usedEvents(account), m.limit(account, m.limits.Events)
		if used > limit {
			return Excess{StoreEvents, used, limit}, true
		}
	}
	return Excess{}, false
}

// Page returns how many bytes of work the account should ask for at once: a quarter of its share, so that an event
// with a large fan-out is admitted piece by piece. 0 is no bound.
func (m *Meter) Page(account string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.limit(account, m.limits.work()) / 4
}

// Open returns the account's open work as the books counted it last, and whether the count is recent.
func (m *Meter) Open(account string) (Open, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.work.Accounts[account], m.now().Sub(m.workAt) <= Stale
}

// Used returns the account's bytes in a store of an Excess, and its share in bytes; a share of 0 is no limit.
func (m *Meter) Used(account, store string) (used, limit int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if store == StoreEvents {
		return m.kept.Accounts[account], m.limit(account, m.limits.Events)
	}
	return m.usedWork(account), m.limit(account, m.limits.work())
}

// takeWork takes over a count of the books.
func (m *Meter) takeWork(w Work) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.work, m.workAt = w, m.now()
	m.forget()
}

// takeKept takes over a count of CRM_EVENTS.
func (m *Meter) takeKept(k Kept) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept = k
	m.forget()
}

// Settled takes over how far the dispatchers have settled NOTIFICATIONS.
func (m *Meter) Settled(floor uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.floor = floor
	m.forget()
}

// Bound takes over how many bytes the stores of work hold together. It corrects counts of books that fell silent.
func (m *Meter) Bound(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.most = bytes
}

// StaleWork reports whether the count of the books is old.
func (m *Meter) StaleWork() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stale()
}

// forget drops entries that the counts hold and that left NOTIFICATIONS, and sums up the others.
func (m *Meter) forget() {
	now, stale := m.now(), m.stale()
	for account, t := range m.own {
		work, events := t.work[:0], t.events[:0]
		t.open, t.stored, t.kept = 0, 0, 0
		for _, e := range t.work {
			counted := e.sequence <= m.work.Position || m.work.At.Sub(e.at) > covered || stale && e.sequence <= m.floor
			left := e.sequence <= m.floor || now.Sub(e.at) > covered
			if !counted {
				t.open += e.bytes
			}
			if !left {
				t.stored += e.bytes
			}
			if !counted || !left {
				work = append(work, e)
			}
		}
		for _, e := range t.events {
			if e.sequence > m.kept.Position && m.kept.At.Sub(e.at) <= covered {
				t.kept += e.bytes
				events = append(events, e)
			}
		}
		t.work, t.events = work, events
		if len(work)+len(events) == 0 && t.reserved+t.reservedEvents == 0 {
			delete(m.own, account)
		}
	}
}

// Set takes over an operator's settings for the account; nil: none.
func (m *Meter) Set(account string, s *Settings) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s == nil {
		delete(m.settings, account)
	} else {
		m.settings[account] = *s
	}
}

// Settings returns an operator's settings for the account.
func (m *Meter) Settings(account string) Settings {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.settings[account]
}

// AllSettings returns the settings of every account that has some.
func (m *Meter) AllSettings() map[string]Settings {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.settings)
}

// Defer takes over that the account is deferred; nil: it is not.
func (m *Meter) Defer(account string, d *Deferral) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d == nil {
		delete(m.deferred, account)
	} else {
		m.deferred[account] = *d
	}
}

// Deferred returns the account's deferral, false when it has none.
func (m *Meter) Deferred(account string) (Deferral, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.deferred[account]
	return d, ok
}

// AllDeferred returns every deferral by account.
func (m *Meter) AllDeferred() map[string]Deferral {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.deferred)
}

// OverEvents returns the accounts that hold more than their share of CRM_EVENTS.
func (m *Meter) OverEvents() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var over []string
	if m.limits.Events > 0 && m.kept.Exact {
		for account, used := range m.kept.Accounts {
			if used > m.limit(account, m.limits.Events) {
				over = append(over, account)
			}
		}
	}
	return over
}
