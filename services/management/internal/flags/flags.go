// Package flags is this process's copy of the suspended URLs, kept up to date from the bucket SUSPENSIONS,
// which the suspension-monitor writes.
package flags

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
	"gancho/services/management/internal/notice"
)

// Flags is the copy. It is safe for concurrent use.
type Flags struct {
	log    *zap.Logger
	loaded atomic.Bool
	board  notice.Board

	mu      sync.RWMutex
	entries map[suspension.Key]suspension.Flag
}

// New returns an empty copy; Run fills it.
func New(log *zap.Logger) *Flags {
	return &Flags{log: log, entries: map[suspension.Key]suspension.Flag{}}
}

// State says "" once every flag has been read.
func (f *Flags) State() string {
	if f.loaded.Load() {
		return ""
	}
	return "the suspensions are still being read; is the suspension-monitor running?"
}

// Run keeps the copy up to date until ctx ends. It waits for the bucket's owner to create it.
func (f *Flags) Run(ctx context.Context, b *bus.Bus) error {
	bucket, err := b.Bucket(ctx, topology.BucketSuspensions)
	if err != nil {
		return nil //nolint:nilerr // ctx ended while waiting
	}
	return bucket.Watch(ctx, f.apply, func() { f.loaded.Store(true) })
}

func (f *Flags) apply(e bus.Entry) {
	key, ok := suspension.ParseKey(e.Key)
	if !ok {
		return
	}
	var flag suspension.Flag
	if e.Value != nil {
		if err := json.Unmarshal(e.Value, &flag); err != nil {
			f.log.Error("an unreadable suspension is ignored", zap.String("key", e.Key), zap.Error(err))
			return
		}
	}
	f.mu.Lock()
	if e.Value == nil {
		delete(f.entries, key)
	} else {
		f.entries[key] = flag
	}
	f.mu.Unlock()
	f.board.Post()
}

// Get returns the URL's flag; false when it is not suspended.
func (f *Flags) Get(account, urlKey string) (suspension.Flag, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	flag, ok := f.entries[suspension.Key{Account: account, URLKey: urlKey}]
	return flag, ok
}

// Of returns the account's suspended URLs by their keys.
func (f *Flags) Of(account string) map[string]bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	urls := map[string]bool{}
	for key := range f.entries {
		if key.Account == account {
			urls[key.URLKey] = true
		}
	}
	return urls
}

// Await waits until done says so of the URL's flag (nil: none), and reports false when ctx ends first.
func (f *Flags) Await(ctx context.Context, account, urlKey string, done func(*suspension.Flag) bool) bool {
	return f.board.Wait(ctx, func() bool {
		if flag, ok := f.Get(account, urlKey); ok {
			return done(&flag)
		}
		return done(nil)
	})
}
