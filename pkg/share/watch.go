package share

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// Keys of the bucket SHARES.
const (
	keyWork     = "work"
	keyKept     = "kept"
	deferredKey = "deferred." // and the account
)

// Watch keeps the meter up to date from the buckets SHARES and ACCOUNTS until ctx ends. It waits until both exist.
// loaded is called once their content at the start is known; it may be nil.
func (m *Meter) Watch(ctx context.Context, b *bus.Bus, log *zap.Logger, loaded func()) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		bucket, err := b.Bucket(ctx, topology.BucketShares)
		if err != nil {
			return err
		}
		return bucket.Watch(ctx, func(e bus.Entry) { m.apply(log, e) }, loaded)
	})
	group.Go(func() error {
		bucket, err := b.Bucket(ctx, topology.BucketAccounts)
		if err != nil {
			return err
		}
		return bucket.Watch(ctx, func(e bus.Entry) {
			if e.Value == nil {
				m.Set(e.Key, nil)
			} else if s, err := DecodeSettings(e.Value); err == nil {
				m.Set(e.Key, s)
			} else {
				unread(log, e.Key, err)
			}
		}, nil)
	})
	return group.Wait()
}

// WatchWork calls counted with each count of open work until ctx ends, one call at a time. It waits until the bucket
// SHARES exists.
func WatchWork(ctx context.Context, b *bus.Bus, log *zap.Logger, counted func(Work)) error {
	bucket, err := b.Bucket(ctx, topology.BucketShares)
	if err != nil {
		return err
	}
	return bucket.Watch(ctx, func(e bus.Entry) {
		if e.Key != keyWork || e.Value == nil {
			return
		}
		w, err := decodeWork(e.Value)
		if err != nil {
			unread(log, e.Key, err)
			return
		}
		counted(*w)
	}, nil)
}

func decodeWork(value []byte) (*Work, error) {
	return decode(value, func(w *Work) int { return w.Schema })
}

func (m *Meter) apply(log *zap.Logger, e bus.Entry) {
	account, isDeferral := strings.CutPrefix(e.Key, deferredKey)
	var err error
	switch {
	case isDeferral && e.Value == nil:
		m.Defer(account, nil)
	case e.Value == nil:
	case isDeferral:
		var d *Deferral
		if d, err = DecodeDeferral(e.Value); err == nil || errors.Is(err, wireversion.ErrNewer) {
			err = nil
			m.Defer(account, d)
		}
	case e.Key == keyWork:
		var w *Work
		if w, err = decodeWork(e.Value); err == nil {
			m.takeWork(*w)
		}
	case e.Key == keyKept:
		var k *Kept
		if k, err = decode(e.Value, func(k *Kept) int { return k.Schema }); err == nil {
			m.takeKept(*k)
		}
	}
	if err != nil {
		unread(log, e.Key, err)
	}
}

func unread(log *zap.Logger, key string, err error) {
	log.Warn("an unreadable record of shares is ignored", zap.String("key", key), zap.Error(err))
}

// DecodeSettings reads an entry of the bucket ACCOUNTS. One of a newer version comes with wireversion.ErrNewer.
func DecodeSettings(value []byte) (*Settings, error) {
	return decode(value, func(s *Settings) int { return s.Schema })
}

// DecodeDeferral reads a deferral. One of a newer version comes with wireversion.ErrNewer.
func DecodeDeferral(value []byte) (*Deferral, error) {
	return decode(value, func(d *Deferral) int { return d.Schema })
}

// DeferralKey is the key of an account's deferral in the bucket SHARES.
func DeferralKey(account string) string { return deferredKey + account }

// WriteWork writes a count of open work for every meter.
func WriteWork(ctx context.Context, shares *bus.Bucket, w Work) error {
	return store(ctx, shares, keyWork, w)
}

// WriteKept writes a count of CRM_EVENTS for every meter.
func WriteKept(ctx context.Context, shares *bus.Bucket, k Kept) error {
	return store(ctx, shares, keyKept, k)
}

func store(ctx context.Context, shares *bus.Bucket, key string, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = shares.Put(ctx, key, value)
	return err
}

// LimitsOf returns the limits of the stores as the broker grants them, waiting for the broker.
func LimitsOf(ctx context.Context, b *bus.Bus, l topology.Limits) (Limits, error) {
	l, err := b.Granted(ctx, l)
	return Limits{
		l.MaxBytes(topology.Events), l.MaxBytes(topology.Notifications), l.MaxBytes(topology.Retries),
		l.MaxBytes(topology.Parked),
	}, err
}
