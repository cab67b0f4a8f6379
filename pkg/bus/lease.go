package bus

import (
	"context"
	"errors"
	"time"

	"gancho/pkg/sleep"
)

// Lease is held by at most one process at a time, as long as that process renews it in time. A frozen process may
// believe a little longer that it holds the lease, so work under a lease must be harmless when done twice.
type Lease struct {
	bucket   *Bucket
	key      string
	owner    []byte
	revision uint64
}

// Acquire takes the lease, or returns ErrConflict when another process has it.
func (k *Bucket) Acquire(ctx context.Context, key, owner string) (*Lease, error) {
	rev, err := k.Create(ctx, key, []byte(owner))
	if err != nil {
		return nil, err
	}
	return &Lease{k, key, []byte(owner), rev}, nil
}

// Renew extends the lease; ErrConflict or ErrNotFound when it was lost.
func (l *Lease) Renew(ctx context.Context) error {
	rev, err := l.bucket.Update(ctx, l.key, l.owner, l.revision)
	if err == nil {
		l.revision = rev
	}
	return err
}

// Release gives the lease back. A lease that was lost is no error.
func (l *Lease) Release(ctx context.Context) error {
	err := l.bucket.Delete(ctx, l.key, l.revision)
	if errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Under runs work while this process holds the lease of key, which runs out ttl after the last renewal, and gives it
// back. The context of work ends with ctx, and when the lease is lost. The error is that of work, or ErrConflict when
// another process holds the lease.
func (k *Bucket) Under(ctx context.Context, key, owner string, ttl time.Duration, work func(context.Context) error) error {
	lease, err := k.Acquire(ctx, key, owner)
	if err != nil {
		return err
	}
	held, lost := context.WithCancel(ctx)
	renewals, stop := context.WithCancel(context.WithoutCancel(ctx)) // also while work comes to its end
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for sleep.For(renewals, ttl/4) {
			if err := lease.Renew(renewals); errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
				lost()
				return
			}
		}
	}()
	err = work(held)
	lost()
	stop()
	<-stopped
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = lease.Release(ctx) // it runs out by itself otherwise
	return err
}
