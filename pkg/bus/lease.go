package bus

import (
	"context"
	"errors"
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
