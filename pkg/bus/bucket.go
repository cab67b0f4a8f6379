package bus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/topology"
)

// Entry is a key of a bucket. Value is nil when the key was deleted.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Bucket is a small replicated map that processes watch. It is safe for concurrent use.
type Bucket struct {
	b      *Bus
	name   string
	refill func(context.Context) error
	whole  bool // Watch begins with the history of each key

	mu       sync.Mutex
	kv       jetstream.KeyValue
	metadata map[string]string
}

// Bucket returns the bucket, waiting until its owner created it.
func (b *Bus) Bucket(ctx context.Context, name string) (*Bucket, error) {
	k := &Bucket{b: b, name: name}
	return k, b.Insist(ctx, k.what(), k.open)
}

// open takes a new handle of the bucket: how it is read changes with its replicas.
func (k *Bucket) open(ctx context.Context) error {
	kv, err := k.b.js.KeyValue(ctx, k.name)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kv = kv
	return nil
}

func (k *Bucket) handle() jetstream.KeyValue {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kv
}

func (k *Bucket) what() string { return "bucket " + k.name }

// Refill has Watch call f after the bucket was deleted and created again, empty, while the process ran. f writes back
// the keys that the process knows, with Create. Refill must be called before Watch.
func (k *Bucket) Refill(f func(context.Context) error) { k.refill = f }

// WithHistory makes Watch begin with every entry that the bucket still has of each key, oldest first, instead of the
// last one of each. It is called before Watch begins.
func (k *Bucket) WithHistory() { k.whole = true }

// Metadata returns the metadata of the bucket's stream as they were when the bucket was last looked at: Watch does so
// every second.
func (k *Bucket) Metadata() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.metadata
}

// Look reads the metadata.
func (k *Bucket) Look(ctx context.Context) error {
	_, err := k.info(ctx)
	return err
}

// Reconfigure changes the configuration of the bucket's stream. It is for the bucket's owner.
func (k *Bucket) Reconfigure(ctx context.Context, change func(*jetstream.StreamConfig)) error {
	info, err := k.info(ctx)
	if err != nil {
		return fmt.Errorf("look at bucket %s: %w", k.name, err)
	}
	cfg := info.Config
	change(&cfg)
	if _, err := k.b.js.UpdateStream(ctx, cfg); err != nil {
		return fmt.Errorf("change bucket %s: %w", k.name, err)
	}
	_, err = k.info(ctx)
	return err
}

// refillWithin is how long Watch keeps the keys of a bucket that was created again although they are missing: the owner
// is writing them back.
const refillWithin = time.Minute

// Watch calls apply with every entry, first those that exist, then each change in order, until ctx ends. It calls
// loaded once, when it has applied every key that existed at the start, even while others are written. Watch survives
// the loss of the broker; when the watch itself is lost it begins again, so an entry can come twice. Keys that went
// with a deleted bucket and were not written back come as deleted, with the highest revision there is.
func (k *Bucket) Watch(ctx context.Context, apply func(Entry), loaded func()) error {
	w := &watch{Bucket: k, apply: apply, loaded: loaded, known: map[string]struct{}{}}
	pause := newBackoff(200*time.Millisecond, 2*time.Second)
	for {
		err := w.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			k.b.trouble("watch "+k.name, err)
			if pause.wait(ctx) != nil {
				return nil
			}
		}
	}
}

// watch is one call of Watch.
type watch struct {
	*Bucket

	apply  func(Entry)
	loaded func() // nil once it was called

	created time.Time           // of the bucket
	known   map[string]struct{} // keys that exist
	missing map[string]uint64   // keys that exist, and how many of their entries have not come yet
	stale   map[string]struct{} // keys that went with the bucket
	until   time.Time           // when stale keys are given up

	seen    atomic.Uint64 // highest revision that came, or was there when it began
	settled atomic.Bool   // nothing is missing
}

// lookForSilence is how often a watch is compared with its bucket. When the server that feeds it dies and the
// connection is to another one, silence is the only sign.
const lookForSilence = time.Second

// lookForReconnect is how soon after a reconnection a watch begins again. By missing heartbeats alone it would notice
// after 8.5 s, and not know a new webhook until then.
const lookForReconnect = 250 * time.Millisecond

// quietFor is when keys that should exist and do not come are taken for deleted.
const quietFor = 5 * time.Second

// run watches until the connection or the bucket was lost, or ctx ends.
func (w *watch) run(ctx context.Context) error {
	info, err := w.info(ctx)
	if err != nil {
		return err
	}
	if again := !w.created.IsZero() && !info.Created.Equal(w.created); again {
		if w.refill != nil {
			if err := w.refill(ctx); err != nil {
				return fmt.Errorf("write back bucket %s: %w", w.name, err)
			}
		}
		w.until = time.Now().Add(refillWithin)
	}
	w.created = info.Created
	w.seen.Store(info.State.LastSeq)
	w.settled.Store(false)
	if w.missing, err = w.keys(ctx); err != nil {
		return err
	}
	w.stale = map[string]struct{}{}
	for key := range w.known {
		if _, there := w.missing[key]; !there {
			w.stale[key] = struct{}{}
		}
	}
	var opts []jetstream.WatchOpt
	if w.whole {
		opts = append(opts, jetstream.IncludeHistory())
	}
	updates, err := w.handle().WatchAll(ctx, opts...)
	if err != nil {
		return err
	}
	defer func() { _ = updates.Stop() }()
	looking, stop := context.WithCancel(ctx)
	defer stop()
	gone := make(chan struct{})
	go func() { w.look(looking); close(gone) }()
	w.complete()

	reconnects := w.b.nc.Stats().Reconnects
	tick := time.NewTicker(lookForReconnect)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-gone:
			return nil
		case <-tick.C:
			if w.b.nc.Stats().Reconnects != reconnects {
				return nil
			}
			if len(w.missing) > 0 && time.Since(last) > quietFor {
				clear(w.missing)
				w.complete()
			}
			w.giveUp()
		case e, open := <-updates.Updates():
			if !open {
				return nil
			}
			if e == nil { // the client's mark comes too soon when entries change during the load
				continue
			}
			last = time.Now()
			w.take(e)
		}
	}
}

func (w *watch) take(e jetstream.KeyValueEntry) {
	w.seen.Store(max(w.seen.Load(), e.Revision()))
	delete(w.stale, e.Key())
	if e.Operation() == jetstream.KeyValuePut {
		w.known[e.Key()] = struct{}{}
		w.apply(Entry{e.Key(), e.Value(), e.Revision()})
	} else {
		delete(w.known, e.Key())
		w.apply(Entry{e.Key(), nil, e.Revision()})
	}
	if left, missing := w.missing[e.Key()]; missing {
		if left > 1 {
			w.missing[e.Key()] = left - 1
		} else {
			delete(w.missing, e.Key())
		}
		w.complete()
	}
}

// complete calls loaded when nothing is missing.
func (w *watch) complete() {
	if len(w.missing) > 0 {
		return
	}
	w.settled.Store(true)
	if w.loaded != nil {
		w.loaded()
		w.loaded = nil
	}
}

// giveUp applies the deletion of stale keys.
func (w *watch) giveUp() {
	if len(w.stale) == 0 || time.Now().Before(w.until) {
		return
	}
	for key := range w.stale {
		delete(w.known, key)
		w.apply(Entry{key, nil, math.MaxUint64})
	}
	clear(w.stale)
}

// look returns when the bucket is another one than the one being watched, when the watch is silent although something
// was written, or when ctx ends. While there is no bucket the service is not ready.
func (w *watch) look(ctx context.Context) {
	tick := time.NewTicker(lookForSilence)
	defer tick.Stop()
	defer w.b.setProblem(w.what(), "")
	var written, seen uint64 // at the look before
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		info, err := w.info(ctx)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			w.b.setProblem(w.what(), "deleted while services ran; its owner creates it again")
		case err != nil: // the next look finds out
		case !info.Created.Equal(w.created):
			return
		case w.settled.Load() && written > w.seen.Load() && seen == w.seen.Load():
			w.b.trouble("watch "+w.name, errors.New("it is silent; beginning again"))
			return
		default:
			w.b.setProblem(w.what(), "")
			written, seen = info.State.LastSeq, w.seen.Load()
		}
	}
}

// info asks the broker about the bucket.
func (k *Bucket) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := k.b.js.Stream(ctx, topology.BucketPrefix+k.name)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.metadata = s.CachedInfo().Config.Metadata
	return s.CachedInfo(), nil
}

// keys returns every key, deleted ones included, and how many of its entries Watch begins with.
func (k *Bucket) keys(ctx context.Context) (map[string]uint64, error) {
	prefix := "$KV." + k.name + "."
	s, err := k.b.Stream(ctx, topology.BucketPrefix+k.name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(prefix+">"))
	if err != nil {
		return nil, err
	}
	out := make(map[string]uint64, len(info.State.Subjects))
	for subject, entries := range info.State.Subjects {
		if !k.whole {
			entries = 1
		}
		out[strings.TrimPrefix(subject, prefix)] = entries
	}
	return out, nil
}

// Get returns the entry, ErrNotFound when there is none.
func (k *Bucket) Get(ctx context.Context, key string) (Entry, error) {
	e, err := k.handle().Get(ctx, key)
	if errors.Is(err, nats.ErrNoResponders) && k.open(ctx) == nil {
		e, err = k.handle().Get(ctx, key)
	}
	if err != nil {
		return Entry{}, k.wrap("read", err)
	}
	return Entry{e.Key(), e.Value(), e.Revision()}, nil
}

// Latest returns the key's last entry, a deletion included, or ErrNotFound when there has been none.
func (k *Bucket) Latest(ctx context.Context, key string) (Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	raw, err := k.b.Last(ctx, topology.BucketPrefix+k.name, "$KV."+k.name+"."+key)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Key: key, Value: raw.Data, Revision: raw.Sequence}
	if raw.Header.Get("KV-Operation") != "" {
		e.Value = nil
	}
	return e, nil
}

// History returns the entries that the bucket still has of a key, deletions included, oldest first.
func (k *Bucket) History(ctx context.Context, key string) ([]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	entries, err := k.handle().History(ctx, key)
	if err != nil {
		return nil, k.wrap("read the history", err)
	}
	out := make([]Entry, 0, len(entries))
	for _, e := range entries {
		one := Entry{e.Key(), nil, e.Revision()}
		if e.Operation() == jetstream.KeyValuePut {
			one.Value = e.Value()
		}
		out = append(out, one)
	}
	return out, nil
}

// Keys returns the keys that exist.
func (k *Bucket) Keys(ctx context.Context) ([]string, error) {
	keys, err := k.handle().Keys(ctx)
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil
	}
	return keys, k.wrap("list", err)
}

// Create stores a key that does not exist and returns its revision; ErrConflict when it does.
func (k *Bucket) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	rev, err := k.handle().Create(ctx, key, value)
	return rev, k.wrap("create", err)
}

// Put stores a key, existing or not, and returns its revision.
func (k *Bucket) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	rev, err := k.handle().Put(ctx, key, value)
	return rev, k.wrap("write", err)
}

// Update stores a key that still has that revision and returns the new one; ErrConflict when it has another.
func (k *Bucket) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	rev, err := k.handle().Update(ctx, key, value, revision)
	return rev, k.wrap("write", err)
}

// Delete removes a key; with a revision above 0 only when the key still has it, else ErrConflict.
func (k *Bucket) Delete(ctx context.Context, key string, revision uint64) error {
	var opts []jetstream.KVDeleteOpt
	if revision > 0 {
		opts = append(opts, jetstream.LastRevision(revision))
	}
	return k.wrap("delete", k.handle().Delete(ctx, key, opts...))
}

func (k *Bucket) wrap(what string, err error) error {
	var api *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return ErrNotFound
	case errors.Is(err, jetstream.ErrKeyExists):
		return ErrConflict
	case errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant):
		return ErrConflict
	}
	return fmt.Errorf("%s in bucket %s: %w", what, k.name, err)
}
