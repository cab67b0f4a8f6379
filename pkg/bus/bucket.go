package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Entry is a key of a bucket. Value is nil when the key was deleted.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Bucket is a small replicated map that processes watch. It is safe for concurrent use.
type Bucket struct {
	b    *Bus
	name string

	mu sync.Mutex
	kv jetstream.KeyValue
}

// Bucket returns the bucket, waiting until its owner created it.
func (b *Bus) Bucket(ctx context.Context, name string) (*Bucket, error) {
	k := &Bucket{b: b, name: name}
	return k, b.insist(ctx, "bucket "+name, k.open)
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

// Watch calls apply with every entry, first those that exist, then each change in order, until ctx ends.
// loaded is called once after the existing ones. After a loss of the broker it carries on; when the watch
// itself is lost it starts anew, so an entry can come twice.
func (k *Bucket) Watch(ctx context.Context, apply func(Entry), loaded func()) error {
	pause := newBackoff(200*time.Millisecond, 2*time.Second)
	for {
		// Asked first, and for a short time: a watch asked of a stream that has no leader just then would not
		// be answered for 10 s.
		last, err := k.last(ctx)
		var w jetstream.KeyWatcher
		if err == nil {
			w, err = k.handle().WatchAll(ctx)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			k.b.trouble("watch "+k.name, err)
			if pause.wait(ctx) != nil {
				return nil
			}
			continue
		}
		pause = newBackoff(200*time.Millisecond, 2*time.Second)
		k.drain(ctx, w, last, apply, &loaded)
		_ = w.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// last returns the sequence of the newest message that the bucket's stream has had.
func (k *Bucket) last(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := k.b.js.Stream(ctx, bucketPrefix+k.name)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

// lookForSilence is how often a watch is compared with its bucket. When the server that feeds it dies and the
// connection is to another one, nothing but silence tells.
const lookForSilence = time.Second

// lookForReconnect is how soon after a reconnection a watch begins anew. Left alone it notices by missing
// heartbeats, which took 8.5 s: that long a new webhook would not be known.
const lookForReconnect = 250 * time.Millisecond

// drain applies what the watch brings, until it ends or is found to be dead. Everything up to the sequence
// seen is in the first entries.
func (k *Bucket) drain(ctx context.Context, w jetstream.KeyWatcher, seen uint64, apply func(Entry), loaded *func()) {
	reconnects := k.b.nc.Stats().Reconnects
	tick := time.NewTicker(lookForReconnect)
	defer tick.Stop()
	look := time.NewTicker(lookForSilence)
	defer look.Stop()
	complete, moved, due := false, false, uint64(0) // due was there a while ago
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if k.b.nc.Stats().Reconnects != reconnects {
				return
			}
		case <-look.C:
			if !complete {
				continue
			}
			if due > seen && !moved {
				k.b.trouble("watch "+k.name, errors.New("it is silent; beginning anew"))
				return
			}
			if last, err := k.last(ctx); err == nil { // else the next look tells
				due, moved = last, false
			}
		case e, open := <-w.Updates():
			if e != nil {
				seen, moved = max(seen, e.Revision()), true
			}
			switch {
			case !open:
				return
			case e == nil:
				complete = true
				if *loaded != nil {
					(*loaded)()
					*loaded = nil
				}
			case e.Operation() == jetstream.KeyValuePut:
				apply(Entry{e.Key(), e.Value(), e.Revision()})
			default:
				apply(Entry{e.Key(), nil, e.Revision()})
			}
		}
	}
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

// Put stores a key whatever it held and returns its revision.
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
	case errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant):
		return ErrConflict
	}
	return fmt.Errorf("%s in bucket %s: %w", what, k.name, err)
}
