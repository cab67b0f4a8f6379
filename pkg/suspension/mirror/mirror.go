// Package mirror is a process's copy of the suspensions: the bucket SUSPENSIONS, watched.
//
// The suspension-monitor writes the bucket; dispatchers claim probes in it by compare-and-set; management only reads.
// All three hold the same copy by the same rules:
//
//   - An entry that is not newer than the one before it is ignored. Revisions of a key only grow, also when the bucket
//     was deleted and created again by a process that knew it.
//   - A key that went with a deleted bucket and was not written back is removed. It keeps the revision of its last
//     entry, so that the same URL can be suspended again.
//   - A bucket that begins at lower revisions, because no process knew the old one, is another history: its entries
//     replace those of the old one.
//   - An entry of a newer version suspends its URL and is otherwise that version's: fields that this version cannot
//     read are empty, and no probe is due.
//   - An entry that is no suspension of its key (unreadable, or of another URL) changes nothing. The copy keeps the
//     last good one, and Broken names the key to its owner, which writes it again.
package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// A Record is a suspension with the revision at which the bucket holds it.
type Record struct {
	suspension.Flag

	Revision uint64
}

// A Change is one entry that the copy took over.
type Change struct {
	Key suspension.Key
	// Record is the suspension; nil when the URL is active.
	Record *Record
	// Before is the suspension that it replaced; nil when the URL was active.
	Before *Record
	// Broken says that the entry was no suspension of this URL. Record is then the last good one.
	Broken bool
}

// Resumed reports whether the change ended a suspension.
func (c Change) Resumed() bool { return c.Record == nil && c.Before != nil }

// A Mirror is the copy. Its methods are safe for concurrent use.
type Mirror struct {
	log    *zap.Logger
	bucket *bus.Bucket
	loaded atomic.Bool

	mu      sync.RWMutex
	entries map[suspension.Key]entry
	change  chan struct{} // closed by the next change
}

// entry is the last of a key.
type entry struct {
	flag     *suspension.Flag // nil: deleted
	revision uint64
}

// New returns an empty copy. Run fills it.
func New(log *zap.Logger) *Mirror {
	return &Mirror{log: log, entries: map[suspension.Key]entry{}, change: make(chan struct{})}
}

// State is "" once every suspension has been read, else the reason why not.
func (m *Mirror) State() string {
	if m.loaded.Load() {
		return ""
	}
	return "the suspensions are still being read; is the suspension-monitor running?"
}

// Open waits until the bucket's owner has created it. It must return before Run, Claim and Write are called.
func (m *Mirror) Open(ctx context.Context, b *bus.Bus) error {
	bucket, err := b.Bucket(ctx, topology.BucketSuspensions)
	m.bucket = bucket
	return err
}

// Options of Run; all may be nil.
type Options struct {
	// Changed is called with each change, one at a time and in order.
	Changed func(Change)
	// Loaded is called once, when every suspension has been read.
	Loaded func()
	// Owner says that this process writes suspensions back that went with a deleted bucket.
	Owner bool
}

// Run keeps the copy up to date until ctx ends.
func (m *Mirror) Run(ctx context.Context, o Options) error {
	m.bucket.Refill(func(ctx context.Context) error { return m.renew(ctx, o.Owner) })
	apply := func(e bus.Entry) {
		if c, ok := m.Apply(e); ok && o.Changed != nil {
			o.Changed(c)
		}
	}
	return m.bucket.Watch(ctx, apply, func() {
		m.loaded.Store(true)
		if o.Loaded != nil {
			o.Loaded()
		}
	})
}

// renew prepares the copy for a bucket that was created again, whose revisions may be lower.
func (m *Mirror) renew(ctx context.Context, owner bool) error {
	m.mu.Lock()
	var lost []suspension.Flag
	for key, e := range m.entries {
		if e.flag != nil {
			lost = append(lost, *e.flag)
		}
		m.entries[key] = entry{flag: e.flag}
	}
	m.mu.Unlock()
	if !owner {
		return nil
	}
	for _, flag := range lost {
		if _, err := m.Write(ctx, flag, 0); err != nil && !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
	return nil
}

// Apply takes over an entry of the bucket and reports whether it changed something or was broken.
func (m *Mirror) Apply(e bus.Entry) (Change, bool) {
	key, ok := suspension.ParseKey(e.Key)
	if !ok {
		return Change{}, false
	}
	var flag *suspension.Flag
	var broken error
	if e.Value != nil {
		flag, broken = decode(key, e.Value)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.entries[key]
	c := Change{Key: key, Record: old.record(), Before: old.record()}
	gone := e.Revision == math.MaxUint64
	if !gone && e.Revision <= old.revision {
		return Change{}, false
	}
	if broken != nil {
		m.log.Error("a broken entry in the bucket SUSPENSIONS is ignored; the suspension-monitor writes it again",
			zap.String("key", e.Key), zap.Error(broken))
		c.Broken = true
		return c, true
	}
	now := entry{flag, e.Revision}
	if gone {
		now.revision = old.revision
	}
	m.entries[key] = now
	c.Record = now.record()
	close(m.change)
	m.change = make(chan struct{})
	return c, true
}

func (e entry) record() *Record {
	if e.flag == nil {
		return nil
	}
	return &Record{*e.flag, e.revision}
}

// decode reads the value of a key.
func decode(key suspension.Key, value []byte) (*suspension.Flag, error) {
	var version struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(value, &version); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	var flag suspension.Flag
	err := json.Unmarshal(value, &flag)
	if wireversion.Check(version.Schema) != nil {
		if err != nil {
			flag = suspension.Flag{}
		}
		flag.Schema, flag.Account, flag.URLKey, flag.State = version.Schema, key.Account, key.URLKey,
			suspension.Suspended
		return &flag, nil
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	case flag.Key() != key:
		return nil, fmt.Errorf("%w: it names another URL", ErrBroken)
	case flag.State != suspension.Suspended && flag.State != suspension.Probing:
		return nil, fmt.Errorf("%w: it has the state %q", ErrBroken, flag.State)
	}
	return &flag, nil
}

// Get returns the URL's suspension; false when the URL is active.
func (m *Mirror) Get(key suspension.Key) (Record, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if r := m.entries[key].record(); r != nil {
		return *r, true
	}
	return Record{}, false
}

// Latest returns the URL's suspension, nil when it is active, and the revision of its last entry, that of its
// deletion included; 0 when the bucket has never held one.
func (m *Mirror) Latest(key suspension.Key) (*Record, uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.entries[key]
	return e.record(), e.revision
}

// Revision returns the revision of the URL's last entry, that of its deletion included; false while suspensions are
// still being read.
func (m *Mirror) Revision(key suspension.Key) (uint64, bool) {
	if !m.loaded.Load() {
		return 0, false
	}
	_, revision := m.Latest(key)
	return revision, true
}

// All returns every suspension, in no order.
func (m *Mirror) All() []Record {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []Record
	for _, e := range m.entries {
		if r := e.record(); r != nil {
			all = append(all, *r)
		}
	}
	return all
}

// URLs returns the keys of the account's suspended URLs.
func (m *Mirror) URLs(account string) map[string]bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	urls := map[string]bool{}
	for key, e := range m.entries {
		if key.Account == account && e.flag != nil {
			urls[key.URLKey] = true
		}
	}
	return urls
}

// Changed returns a channel that the next change of any suspension closes. Take it before reading the state that it
// guards.
func (m *Mirror) Changed() <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.change
}

// Wait returns true once done does, which it asks after each change, or false when ctx ends first.
func (m *Mirror) Wait(ctx context.Context, done func() bool) bool {
	for {
		changed := m.Changed()
		if done() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// Write stores a suspension over the entry with that revision, 0 for none, and returns the new one's. It returns
// bus.ErrConflict when the bucket holds another entry. The copy follows by the watch.
func (m *Mirror) Write(ctx context.Context, flag suspension.Flag, over uint64) (uint64, error) {
	body, err := json.Marshal(flag)
	if err != nil {
		return 0, fmt.Errorf("encode suspension of %s: %w", flag.Key(), err)
	}
	if over == 0 {
		return m.bucket.Create(ctx, flag.Key().String(), body)
	}
	return m.bucket.Update(ctx, flag.Key().String(), body, over)
}

// Remove deletes a suspension that still has that revision, else it returns bus.ErrConflict.
func (m *Mirror) Remove(ctx context.Context, key suspension.Key, revision uint64) error {
	return m.bucket.Delete(ctx, key.String(), revision)
}

// ErrBroken says that an entry of the bucket is no suspension of its key.
var ErrBroken = errors.New("the entry is no suspension of its key")

// Read returns the URL's suspension as the bucket holds it at this moment, nil when the URL is active, and the
// revision of its last entry, that of its deletion included. The revision comes with ErrBroken too.
func (m *Mirror) Read(ctx context.Context, key suspension.Key) (*Record, uint64, error) {
	e, err := m.bucket.Latest(ctx, key.String())
	if errors.Is(err, bus.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil || e.Value == nil {
		return nil, e.Revision, err
	}
	flag, err := decode(key, e.Value)
	if err != nil {
		return nil, e.Revision, err
	}
	return &Record{*flag, e.Revision}, e.Revision, nil
}
