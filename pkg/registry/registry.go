// Package registry is a process's copy of the registered webhooks, kept up to date from the bucket WEBHOOKS, and the
// only way in which they are written.
//
// # Records
//
// A record is the webhook as JSON with two members more: version, which each change raises by one under the bucket's
// compare-and-set, and, at the end,
//
//	"mac":"v1.<key id>.<base64url>"
//
// over the key in the bucket (<account_id>.<webhook_id>) and the bytes before that member, under a key that is derived
// from ENCRYPTION_KEY_FILE. A deletion is a record too: {"deleted":true,"version":n,"mac":...}.
//
// An entry without a right MAC, one copied from another key, one older than the last good one, and the bucket's own
// deletion are never used, however they came there: the process goes on with the last good record, and logs and counts
// the entry. Management writes the last good record back. The bucket keeps a history, in which a process that starts
// finds the last good record.
//
// Processes without the key (publisher, suspension-monitor) take every entry that is formed like a record, in the
// bucket's order, until management has put it right, which takes milliseconds.
package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/pkg/wireversion"
)

// Options of a Registry; Log and Metrics are required.
type Options struct {
	// Keys verify records. Nil: this process has none; see the package.
	Keys    *seal.Keyring
	Log     *zap.Logger
	Metrics prometheus.Registerer
}

// Registry is this process's copy of the registered webhooks: a change arrives in well under 100 ms. The bucket is the
// system of record; the copy is read without asking anyone. It is safe for concurrent use.
type Registry struct {
	*webhook.Index

	bus    *bus.Bus
	bucket *bus.Bucket
	keys   *seal.Keyring
	log    *zap.Logger
	forged *prometheus.CounterVec
	loaded atomic.Bool
	heals  bool
	heal   chan struct{} // a bad entry has come

	mu      sync.Mutex
	records map[string]*record // the last good one of each key
	bad     map[string]bad     // entries that came after it
	newer   map[string]int     // accounts with webhooks that only a newer version can read, and how many
	of      map[string]bool    // their keys
}

// bad is an entry that is not used.
type bad struct {
	revision uint64
	cause    error
}

// Open returns the registry, waiting until its bucket exists. Run must run for it to fill.
func Open(ctx context.Context, b *bus.Bus, o Options) (*Registry, error) {
	bucket, err := b.Bucket(ctx, topology.BucketWebhooks)
	if err != nil {
		return nil, err
	}
	bucket.WithHistory()
	r := &Registry{
		Index: webhook.NewIndex(), bus: b, bucket: bucket, keys: o.Keys, log: o.Log, heal: make(chan struct{}, 1),
		records: map[string]*record{}, bad: map[string]bad{}, newer: map[string]int{}, of: map[string]bool{},
		forged: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_registry_forged_total", Help: "Entries of the bucket WEBHOOKS that are not used, because " +
				"management did not write them or wrote a newer one, by cause.",
		}, []string{"cause"}),
	}
	for cause := range causes {
		r.forged.WithLabelValues(cause)
	}
	o.Metrics.MustRegister(r.forged)
	return r, nil
}

// Newer reports whether the account has a webhook that only a newer version can read: this version must not match the
// account's events.
func (r *Registry) Newer(account string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newer[account] > 0
}

// note remembers whether the webhook with that key is for newer versions only.
func (r *Registry) note(key string, newer bool) {
	account, _, _ := strings.Cut(key, ".")
	r.mu.Lock()
	defer r.mu.Unlock()
	switch was := r.of[key]; {
	case newer && !was:
		r.of[key] = true
		r.newer[account]++
		r.log.Warn("a webhook of a newer version is left to one; the account's events wait", zap.String("key", key))
	case was && !newer:
		delete(r.of, key)
		if r.newer[account]--; r.newer[account] == 0 {
			delete(r.newer, account)
		}
	}
}

// Restores makes this process write its copy back when the bucket was deleted or written by another hand: for the
// bucket's owner, which has the keys. It must be called before Run.
func (r *Registry) Restores() {
	r.heals = true
	r.bucket.Refill(func(ctx context.Context) error {
		values := map[string][]byte{}
		for _, w := range r.All() {
			value, err := Sign(r.keys, w)
			if err != nil {
				return err
			}
			values[w.Key()] = value
		}
		r.mu.Lock()
		for key, known := range r.records {
			if known.Deleted {
				values[key] = tombstone(r.keys, key, known.Version)
			}
		}
		r.mu.Unlock()
		r.log.Error("the bucket of webhooks was deleted while services ran; this process writes its copy back",
			zap.Int("webhooks", r.Len()))
		for key, value := range values {
			if _, err := r.bucket.Create(ctx, key, value); err != nil && !errors.Is(err, bus.ErrConflict) {
				return err
			}
		}
		return nil
	})
}

// State says "" once every webhook has been read.
func (r *Registry) State() string {
	if r.loaded.Load() {
		return ""
	}
	return "the webhooks are still being read"
}

// Degraded says how many records are not used, and why; "" when all are.
func (r *Registry) Degraded() string {
	count := map[string]int{}
	for _, cause := range r.Forged() {
		count[cause.Error()]++
	}
	lines := make([]string, 0, len(count))
	for _, cause := range slices.Sorted(maps.Keys(count)) {
		lines = append(lines, fmt.Sprintf("the newest records of %d webhooks are not used: %s", count[cause], cause))
	}
	return strings.Join(lines, "; ")
}

// Forged returns the keys whose newest entry is not used, and why.
func (r *Registry) Forged() map[string]error {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]error, len(r.bad))
	for key, b := range r.bad {
		out[key] = b.cause
	}
	return out
}

// authenticated reports whether all good records have a MAC.
func (r *Registry) authenticated() bool {
	return r.bucket.Metadata()[topology.RecordsKey] == topology.RecordsAuthenticated
}

// Run keeps the registry up to date until ctx ends. loaded is called once it is complete for the first
// time; changed, if not nil, after each change with the webhook before and after it (nil: none).
func (r *Registry) Run(ctx context.Context, loaded func(), changed func(before, after *webhook.Webhook)) error {
	if changed == nil {
		changed = func(_, _ *webhook.Webhook) {}
	}
	var healing sync.WaitGroup
	defer healing.Wait()
	if r.heals {
		healing.Go(func() { r.writeBack(ctx) })
	}
	return r.bucket.Watch(ctx, func(e bus.Entry) {
		if before, after, done := r.take(e); done && r.loaded.Load() {
			changed(before, after)
		}
	}, func() {
		for _, w := range r.All() { // of each its history was read: only the last counts
			changed(nil, w)
		}
		r.loaded.Store(true)
		r.mu.Lock()
		left := maps.Clone(r.bad)
		r.mu.Unlock()
		for key, b := range left {
			r.report(key, b)
		}
		if loaded != nil {
			loaded()
		}
	})
}

// take follows an entry of the bucket, if it may be believed. done reports that it was followed.
func (r *Registry) take(e bus.Entry) (before, after *webhook.Webhook, done bool) {
	if e.Revision == math.MaxUint64 {
		return nil, nil, false // it went with a deleted bucket
	}
	r.mu.Lock()
	known := r.records[e.Key]
	r.mu.Unlock()
	if known != nil && e.Revision <= known.revision {
		return nil, nil, false // the watch began again
	}
	rec, w, err := r.judge(e, known)
	switch {
	case errors.Is(err, errDeleted) && known == nil:
		return nil, nil, false // of the time before records were authenticated
	case err != nil && !errors.Is(err, wireversion.ErrNewer):
		b := bad{e.Revision, err}
		r.mu.Lock()
		r.bad[e.Key] = b
		r.mu.Unlock()
		if r.loaded.Load() {
			r.report(e.Key, b)
		}
		return nil, nil, false
	}
	before = r.ByKey(e.Key)
	r.mu.Lock()
	delete(r.bad, e.Key)
	if rec == nil {
		delete(r.records, e.Key)
	} else {
		rec.revision = e.Revision
		r.records[e.Key] = rec
	}
	r.mu.Unlock()
	r.note(e.Key, err != nil)
	if w == nil { // deleted, or of a newer version, which Fetch reports
		r.Index.Delete(e.Key)
		return before, nil, err == nil
	}
	w.Revision = e.Revision
	r.Put(w)
	return before, w, true
}

// judge returns the state in an entry that follows known, the last good record of its key, or why the entry is not
// used. A deletion from the time before records were authenticated has no record.
func (r *Registry) judge(e bus.Entry, known *record) (*record, *webhook.Webhook, error) {
	legacy := !r.authenticated() && (known == nil || known.Version == 0)
	if e.Value == nil {
		if legacy && known != nil {
			return nil, nil, nil
		}
		return nil, nil, errDeleted
	}
	rec, w, err := parse(r.keys, e.Key, e.Value)
	switch {
	case err != nil && !errors.Is(err, wireversion.ErrNewer):
		return nil, nil, err
	case rec.keyID == "" && !legacy:
		return nil, nil, errUnsigned
	case r.keys != nil && known != nil && rec.Version < known.Version:
		return nil, nil, errOlder
	}
	return rec, w, err
}

// report counts and logs an entry that is not used, and has it put right.
func (r *Registry) report(key string, b bad) {
	for cause, err := range causes {
		if errors.Is(b.cause, err) {
			r.forged.WithLabelValues(cause).Inc()
		}
	}
	if r.bus.ShouldLog("record " + key) {
		r.log.Error("an entry of the bucket of webhooks is not management's and "+
			"is not used; the last good record counts",
			zap.String("key", key), zap.Uint64("revision", b.revision), zap.Error(b.cause))
	}
	select {
	case r.heal <- struct{}{}:
	default:
	}
}

// healAgain is how soon an entry that could not be put right is tried again.
const healAgain = time.Second

// writeBack puts the last good record over entries that are not used, until ctx ends.
func (r *Registry) writeBack(ctx context.Context) {
	again := time.NewTicker(healAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.heal:
		case <-again.C:
		}
		if !r.loaded.Load() {
			continue
		}
		r.mu.Lock()
		left := maps.Clone(r.bad)
		r.mu.Unlock()
		for key, b := range left {
			if errors.Is(b.cause, seal.ErrUnknownKey) { // another management may have a newer key file
				continue
			}
			value, err := r.lastGood(ctx, key)
			if err == nil {
				_, err = r.bucket.Update(ctx, key, value, b.revision)
			}
			// in conflict another process was faster
			if err != nil && !errors.Is(err, bus.ErrConflict) && r.bus.ShouldLog("write back "+key) {
				r.log.Error("the last good record of a webhook cannot be written back; trying again",
					zap.String("key", key), zap.Error(err))
			}
		}
	}
}

// lastGood returns the value of the last good record: as it was, if the bucket still has it. A key without one gets a
// deletion.
func (r *Registry) lastGood(ctx context.Context, key string) ([]byte, error) {
	r.mu.Lock()
	known := r.records[key]
	r.mu.Unlock()
	if known == nil {
		return tombstone(r.keys, key, 1), nil
	}
	entries, err := r.bucket.History(ctx, key)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Revision == known.revision {
			return e.Value, nil
		}
	}
	w := r.ByKey(key)
	switch {
	case known.Deleted:
		return tombstone(r.keys, key, known.Version), nil
	case w == nil:
		return nil, errors.New("it is a newer version's and not in the bucket's history any " +
			"more; a newer management writes it back")
	}
	return Sign(r.keys, w)
}

// Fetch reads the newest good state of the account's webhook from the bucket, also one that this process has not seen
// yet. The error is bus.ErrNotFound when there is none. The Revision is that of the bucket's newest entry, which Update
// and Delete replace.
func (r *Registry) Fetch(ctx context.Context, account, id string) (*webhook.Webhook, error) {
	key := account + "." + id
	newest, err := r.bucket.Latest(ctx, key)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	known := r.records[key]
	r.mu.Unlock()
	rec, w, err := r.judge(newest, known)
	if err != nil && !errors.Is(err, wireversion.ErrNewer) && !errors.Is(err, seal.ErrUnknownKey) {
		rec, w, err = r.search(ctx, key, known)
	}
	switch {
	case err != nil:
		return nil, err
	case rec == nil || rec.Deleted:
		return nil, bus.ErrNotFound
	}
	w.Revision = newest.Revision
	return w, nil
}

// search returns the newest good record of the key's history, else the last that this process saw, else none.
func (r *Registry) search(ctx context.Context, key string, known *record) (*record, *webhook.Webhook, error) {
	entries, err := r.bucket.History(ctx, key)
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return nil, nil, err
	}
	for _, e := range slices.Backward(entries) {
		if rec, w, err := r.judge(e, known); err == nil || errors.Is(err, wireversion.ErrNewer) {
			return rec, w, err
		}
	}
	if w := r.ByKey(key); w != nil {
		again := *w
		return known, &again, nil
	}
	return nil, nil, nil
}

// Create registers w as version 1, whose secrets are sealed for that, and sets its Revision.
func (r *Registry) Create(ctx context.Context, w *webhook.Webhook) error {
	value, err := Sign(r.keys, w)
	if err != nil {
		return err
	}
	w.Revision, err = r.bucket.Create(ctx, w.Key(), value)
	return err
}

// Update stores w, the next version of before, and sets its Version and Revision. It is bus.ErrConflict when the
// bucket's newest entry is another one than before was fetched with.
func (r *Registry) Update(ctx context.Context, before, w *webhook.Webhook) error {
	w.Version = before.Version + 1
	value, err := Sign(r.keys, w)
	if err != nil {
		return err
	}
	w.Revision, err = r.bucket.Update(ctx, w.Key(), value, before.Revision)
	return err
}

// Delete removes w. It is bus.ErrConflict as Update is.
func (r *Registry) Delete(ctx context.Context, w *webhook.Webhook) error {
	_, err := r.bucket.Update(ctx, w.Key(), tombstone(r.keys, w.Key(), w.Version+1), w.Revision)
	return err
}

// OldDeletions returns the records of deleted webhooks that are under another key than the first one, as the keys of
// the bucket have them.
func (r *Registry) OldDeletions() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for key, known := range r.records {
		if known.Deleted && known.keyID != r.keys.Current() {
			out = append(out, key)
		}
	}
	return out
}

// KeyID returns the id of the key that the webhook's record is under.
func (r *Registry) KeyID(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.records[key]; known != nil {
		return known.keyID
	}
	return ""
}

// ResignDeletions puts the records of deleted webhooks under the first key.
func (r *Registry) ResignDeletions(ctx context.Context) error {
	for _, key := range r.OldDeletions() {
		r.mu.Lock()
		known := r.records[key]
		r.mu.Unlock()
		_, err := r.bucket.Update(ctx, key, tombstone(r.keys, key, known.Version+1), known.revision)
		if err != nil && !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
	return nil
}

// Authenticate signs the records that an earlier version wrote, once: afterwards the bucket says that all its records
// are authenticated, and one without a MAC is forged. It is for management, before Run.
func (r *Registry) Authenticate(ctx context.Context) error {
	return r.bus.Insist(ctx, "records of bucket "+topology.BucketWebhooks, func(context.Context) error {
		if err := r.bucket.Look(ctx); err != nil || r.authenticated() {
			return err
		}
		total := 0
		for signed := -1; signed != 0; total += signed {
			var err error
			if signed, err = r.signAll(ctx); err != nil {
				return err
			}
		}
		err := r.bucket.Reconfigure(ctx, func(c *jetstream.StreamConfig) {
			c.AllowRollup, c.MaxMsgsPerSubject = false, topology.WebhooksHistory
			if c.Metadata = maps.Clone(c.Metadata); c.Metadata == nil {
				c.Metadata = map[string]string{}
			}
			c.Metadata[topology.RecordsKey] = topology.RecordsAuthenticated
		})
		if err == nil {
			r.log.Info("the records of webhooks are authenticated from now on", zap.Int("signed", total))
		}
		return err
	})
}

// signAll signs the records that have no MAC and returns how many there were.
func (r *Registry) signAll(ctx context.Context) (int, error) {
	all := map[string]bus.Entry{}
	listing, done := context.WithCancel(ctx)
	defer done()
	last, err := r.bus.Bucket(ctx, topology.BucketWebhooks)
	if err != nil {
		return 0, err
	}
	complete := false
	if err := last.Watch(listing, func(e bus.Entry) { all[e.Key] = e },
		func() { complete = true; done() }); err != nil {
		return 0, err
	}
	if !complete {
		return 0, ctx.Err()
	}
	signed := 0
	for _, key := range slices.Sorted(maps.Keys(all)) {
		e := all[key]
		if e.Value == nil {
			continue
		}
		rec, w, err := parse(r.keys, key, e.Value)
		if err != nil || rec.Version > 0 { // an entry that is wrong today stays unused
			continue
		}
		next, err := w.Reseal(r.keys, time.Now())
		if err != nil {
			r.log.Error("the secrets of a webhook do not open; is ENCRYPTION_KEY_FILE the one they were sealed with?",
				zap.String("key", key), zap.Error(err))
			again := *w
			again.Version++
			next = &again
		}
		w.Revision = e.Revision
		if err := r.Update(ctx, w, next); err != nil && !errors.Is(err, bus.ErrConflict) {
			return 0, err
		}
		signed++
	}
	return signed, nil
}
