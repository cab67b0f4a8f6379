package books

import (
	"context"
	"errors"
	"maps"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/numbers"
	"gancho/pkg/share"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

const (
	// leaseKey is that of the bucket LEASES; lanes of parked notifications have a dot in theirs.
	leaseKey = "books"
	// period is how often the books are audited, or so seldom that it takes a twentieth of the time.
	period = 10 * time.Second
	// storeEvery is how often a checkpoint is stored, with the same restraint.
	storeEvery = 30 * time.Second
	// countEvery is how often what accounts hold is counted, with the same restraint; recountAfter how long a count
	// that did not change stands.
	countEvery   = time.Second
	recountAfter = 5 * time.Second
	// standBy is how often a process looks whether it can take over.
	standBy = 5 * time.Second
)

// Keeper keeps the books, one process at a time, and repairs the sends that an audit finds missing.
type Keeper struct {
	Log    *zap.Logger
	Bus    *bus.Bus
	Leases *bus.Bucket
	Bucket *bus.Bucket // BOOKS
	Shares *bus.Bucket // SHARES, which gets the counts of what accounts hold; nil: they are not written
	Name   string      // of this process, unique
	// Repaired counts a repair of a kind.
	Repaired func(kind string)
	// Period overrides how often the books are audited; 0 is 10 s.
	Period time.Duration

	repairs map[string]uint64
	counted share.Work // the count that was written last
}

// Run keeps the books whenever no other process does, until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	if k.Period == 0 {
		k.Period = period
	}
	for ctx.Err() == nil {
		err := k.Leases.Under(ctx, leaseKey, k.Name, topology.LeaseTTL, func(held context.Context) error {
			k.hold(ctx, held)
			return nil
		})
		if err == nil {
			continue
		}
		if !errors.Is(err, bus.ErrConflict) && ctx.Err() == nil {
			k.Log.Debug("the lease of the books cannot be taken; trying again", zap.Error(err))
		}
		sleep.For(ctx, min(standBy, k.Period))
	}
}

// hold keeps the books until held ends, with ctx or with the lease.
func (k *Keeper) hold(ctx, held context.Context) {
	work := context.WithoutCancel(ctx)
	books := New(k.Bus, readerKeeper, k.Log)
	books.tally = numbers.NewTally(k.Bus, k.Log)
	defer func() { books.Close(work) }()
	for held.Err() == nil {
		loaded, problem, err := books.Load(held, k.Bucket)
		if err == nil {
			if problem != "" {
				k.Log.Error("the books are made again from the streams", zap.String("reason", problem))
			}
			k.Log.Info("keeping the books", zap.Bool("from_checkpoint", loaded))
			k.keep(held, books)
			break
		}
		k.Log.Debug("the books cannot be opened; trying again", zap.Error(err))
		sleep.For(held, time.Second)
	}
	if ctx.Err() != nil { // a stop, and the lease is still ours
		ctx, cancel := context.WithTimeout(work, 5*time.Second)
		defer cancel()
		if err := books.Store(ctx, k.Bucket); err != nil {
			k.Log.Debug("no last checkpoint of the books; the next process reads a little more", zap.Error(err))
		}
	}
}

// keep audits and repairs until ctx ends or another process keeps the books.
func (k *Keeper) keep(ctx context.Context, books *Books) {
	fix := &reconciler{log: k.Log, bus: k.Bus, done: func(kind string) {
		if k.repairs == nil {
			k.repairs = map[string]uint64{}
		}
		k.repairs[kind]++
		if k.Repaired != nil {
			k.Repaired(kind)
		}
	}}
	var nextStore time.Time
	for ctx.Err() == nil {
		began := time.Now()
		report, found, err := books.Audit(ctx)
		if err != nil {
			if ctx.Err() == nil {
				k.Log.Debug("the books cannot be audited; trying again", zap.Error(err))
			}
			sleep.For(ctx, time.Second)
			continue
		}
		report.By = k.Name
		fix.repair(ctx, found, books.Orphans)
		report.Repairs = maps.Clone(k.repairs)
		err = storeReport(ctx, k.Bucket, report)
		if err == nil && time.Now().After(nextStore) {
			storing := time.Now()
			err = books.Store(ctx, k.Bucket)
			nextStore = time.Now().Add(max(storeEvery, 20*time.Since(storing)))
		}
		if errors.Is(err, bus.ErrConflict) {
			k.Log.Warn("another process keeps the books now")
			return
		}
		if err != nil && ctx.Err() == nil {
			k.Log.Debug("the books are not stored; trying again", zap.Error(err))
		}
		k.count(ctx, books)
		k.tally(ctx, books)
		for next := time.Now().Add(max(k.Period, 20*time.Since(began))); ctx.Err() == nil && time.Now().Before(next); {
			began := time.Now()
			if k.Shares != nil {
				if err := books.catchUp(ctx); err == nil {
					k.count(ctx, books)
					k.tally(ctx, books)
				}
			}
			sleep.For(ctx, min(max(countEvery, 20*time.Since(began)), time.Until(next)))
		}
	}
}

// tally writes the numbers of the messages that were read.
func (k *Keeper) tally(ctx context.Context, books *Books) {
	if err := books.tally.Write(ctx, books.notifications.At(), books.journal.At(), books.readAt); err != nil && ctx.Err() == nil {
		k.Log.Debug("no numbers are written; management counts", zap.Error(err))
	}
}

// count writes what accounts hold, where it changed or the last count is old.
func (k *Keeper) count(ctx context.Context, books *Books) {
	if k.Shares == nil {
		return
	}
	w := share.NewWork(time.Now().UTC(), books.notifications.At().Sequence, books.ledger.work())
	if last := k.counted; w.Position == last.Position && maps.Equal(w.Accounts, last.Accounts) &&
		w.At.Sub(last.At) < recountAfter {
		return
	}
	if err := share.WriteWork(ctx, k.Shares, w); err != nil {
		if ctx.Err() == nil {
			k.Log.Debug("what accounts hold is not written; trying again", zap.Error(err))
		}
		return
	}
	k.counted = w
}
