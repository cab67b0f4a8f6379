// Package registry is a process's copy of the registered webhooks, kept up to date from the bucket WEBHOOKS.
package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// Registry is this process's copy of the registered webhooks, kept up to date from the bucket WEBHOOKS:
// a change arrives in well under 100 ms. The bucket is the system of record; the copy is read without
// asking anyone.
type Registry struct {
	*webhook.Index

	bucket *bus.Bucket
	log    *zap.Logger
	loaded atomic.Bool

	mu    sync.Mutex
	newer map[string]int  // accounts with webhooks that only a newer version can read, and how many
	of    map[string]bool // their keys
}

// Open returns the registry, waiting until its bucket exists. Run must run for it to fill.
func Open(ctx context.Context, b *bus.Bus, log *zap.Logger) (*Registry, error) {
	bucket, err := b.Bucket(ctx, topology.BucketWebhooks)
	return &Registry{Index: webhook.NewIndex(), bucket: bucket, log: log, newer: map[string]int{}, of: map[string]bool{}}, err
}

// Newer reports whether the account has a webhook that only a newer version can read: what an event means for
// it is not for this one to say.
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

// Restores makes this process write its copy back when somebody deleted the bucket: for the bucket's owner. It
// is called before Run.
func (r *Registry) Restores() {
	r.bucket.Refill(func(ctx context.Context) error {
		all := r.All()
		r.log.Error("the bucket of webhooks was deleted by somebody; what this process knows is written back", zap.Int("webhooks", len(all)))
		for _, w := range all {
			value, err := w.Encode()
			if err != nil {
				return err
			}
			if _, err := r.bucket.Create(ctx, w.Key(), value); err != nil && !errors.Is(err, bus.ErrConflict) {
				return err
			}
		}
		return nil
	})
}

// Bucket is where the webhooks are written.
func (r *Registry) Bucket() *bus.Bucket { return r.bucket }

// State says "" once every webhook has been read.
func (r *Registry) State() string {
	if r.loaded.Load() {
		return ""
	}
	return "the webhooks are still being read"
}

// Run keeps the registry up to date until ctx ends. loaded is called once it is complete for the first
// time; changed, if not nil, after each change with the webhook before and after it (nil: none).
func (r *Registry) Run(ctx context.Context, loaded func(), changed func(before, after *webhook.Webhook)) error {
	return r.bucket.Watch(ctx, func(e bus.Entry) {
		before := r.ByKey(e.Key)
		var after *webhook.Webhook
		if e.Value != nil {
			w, err := webhook.Decode(e.Value)
			if err == nil && w.Key() != e.Key {
				err = fmt.Errorf("its key is %s", e.Key)
			}
			if err != nil && !errors.Is(err, schema.ErrNewer) {
				r.log.Error("an unreadable webhook is ignored", zap.Error(err))
				return
			}
			r.note(e.Key, err != nil)
			if err != nil {
				r.Index.Delete(e.Key) // it is not gone: whoever needs it asks the bucket, and learns that
				return
			}
			w.Revision = e.Revision
			after = w
			r.Put(w)
		} else {
			r.Index.Delete(e.Key)
			r.note(e.Key, false)
		}
		if changed != nil {
			changed(before, after)
		}
	}, func() {
		r.loaded.Store(true)
		if loaded != nil {
			loaded()
		}
	})
}
