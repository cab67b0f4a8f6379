package bus

import (
	"context"
	"fmt"
	"sync/atomic"

	"go.uber.org/zap"

	"gancho/pkg/webhook"
)

// Registry is this process's copy of the registered webhooks, kept up to date from the bucket WEBHOOKS:
// a change arrives in well under 100 ms. The bucket is the system of record; the copy is read without
// asking anyone.
type Registry struct {
	*webhook.Index

	bucket *Bucket
	loaded atomic.Bool
}

// Registry returns the registry, waiting until its bucket exists. Run must run for it to fill.
func (b *Bus) Registry(ctx context.Context) (*Registry, error) {
	bucket, err := b.Bucket(ctx, BucketWebhooks)
	return &Registry{Index: webhook.NewIndex(), bucket: bucket}, err
}

// Bucket is where the webhooks are written.
func (r *Registry) Bucket() *Bucket { return r.bucket }

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
	return r.bucket.Watch(ctx, func(e Entry) {
		before := r.ByKey(e.Key)
		var after *webhook.Webhook
		if e.Value != nil {
			w, err := webhook.Decode(e.Value)
			if err == nil && w.Key() != e.Key {
				err = fmt.Errorf("its key is %s", e.Key)
			}
			if err != nil {
				r.bucket.b.log.Error("an unreadable webhook is ignored", zap.Error(err))
				return
			}
			w.Revision = e.Revision
			after = w
			r.Put(w)
		} else {
			r.Index.Delete(e.Key)
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
