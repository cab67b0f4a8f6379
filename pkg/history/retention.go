package history

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/share"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

// retainEvery is how often what an account may keep no longer is looked for.
const retainEvery = time.Minute

// retain removes what accounts may keep no longer, until ctx ends.
func (k *Keeper) retain(ctx context.Context) {
	for sleep.For(ctx, retainEvery) {
		if err := k.expire(ctx, time.Now()); err != nil && ctx.Err() == nil {
			k.log.Debug("records older than an account's retention are not removed yet; trying again", zap.Error(err))
		}
	}
}

// expire removes the records that at the time now are older than the operator's retention for their account.
func (k *Keeper) expire(ctx context.Context, now time.Time) error {
	var failed []error
	for account, s := range k.settings() {
		for stream, seconds := range ages(s) {
			if seconds > 0 {
				failed = append(failed, k.expireOf(ctx, stream, account, now.Add(-time.Duration(seconds)*time.Second)))
			}
		}
	}
	return errors.Join(failed...)
}

// ages are the retention of an account by stream, in seconds; 0: as LOG_MAX_AGE has it.
func ages(s share.Settings) map[string]int64 {
	return map[string]int64{topology.Attempts: s.LogMaxAge, topology.Failed: s.FailedMaxAge}
}

// expireOf removes the account's records of before a time, mostRemoved sequences at a time.
func (k *Keeper) expireOf(ctx context.Context, stream, account string, before time.Time) error {
	subjects := topology.SubjectsOf(stream, account)
	end, err := k.firstAt(ctx, stream, subjects, before)
	if err != nil {
		return err
	}
	for {
		oldest, err := k.bus.Get(ctx, stream, subjects, 1)
		switch {
		case errors.Is(err, bus.ErrNotFound):
			return nil
		case err != nil:
			return err
		case oldest.Sequence >= end:
			return nil
		}
		if err := k.bus.PurgeBefore(ctx, stream, subjects, min(end, oldest.Sequence+mostRemoved)); err != nil {
			return err
		}
		if !sleep.For(ctx, aPurge) {
			return ctx.Err()
		}
	}
}

// firstAt returns a sequence: the subjects' messages below it were stored before a time, all others at that time or
// later.
func (k *Keeper) firstAt(ctx context.Context, stream, subjects string, at time.Time) (uint64, error) {
	state, err := k.bus.StreamState(ctx, stream)
	if errors.Is(err, bus.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	low, high := max(state.First, 1), state.Last+1
	for low < high {
		middle := low + (high-low)/2
		m, err := k.bus.Get(ctx, stream, subjects, middle)
		switch {
		case err != nil && !errors.Is(err, bus.ErrNotFound):
			return 0, err
		case err == nil && m.Time.Before(at):
			low = m.Sequence + 1
		default:
			high = middle
		}
	}
	return low, nil
}
