package publisher

import (
	"context"
	"maps"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/eventstream"
	"gancho/pkg/share"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

const (
	// countAbove is the part of a share that CRM_EVENTS holds in all before its events are counted by account.
	countAbove = 0.5
	// segmentEvents is how many events are counted together; they are forgotten together when the last has aged out.
	segmentEvents = 4096
)

// keptCounter counts how many bytes each account has on CRM_EVENTS, for every meter. While the stream holds less than
// half a share no account can be near its own, and nothing is read. Above that the headers of all events are read once.
type keptCounter struct {
	log    *zap.Logger
	bus    *bus.Bus
	shares *bus.Bucket
	share  float64
	limit  int64 // of CRM_EVENTS; 0: none

	reader   *eventstream.SizeReader // nil while nothing is counted
	segments []segment               // oldest first
	written  share.Kept
}

// segment is events that lie next to one another.
type segment struct {
	last   uint64 // sequence of the newest
	events int
	bytes  map[string]int64 // by account
}

// run counts until ctx ends.
func (k *keptCounter) run(ctx context.Context) {
	if k.limit == 0 {
		return
	}
	defer func() {
		if k.reader != nil {
			k.reader.Close(context.WithoutCancel(ctx))
		}
		k.reader, k.segments, k.written = nil, nil, share.Kept{}
	}()
	for ctx.Err() == nil {
		if err := k.count(ctx); err != nil && ctx.Err() == nil {
			k.log.Debug("CRM_EVENTS cannot be counted; trying again", zap.Error(err))
		}
		sleep.For(ctx, lookEvery)
	}
}

func (k *keptCounter) count(ctx context.Context) error {
	state, err := k.bus.StreamState(ctx, topology.Events)
	if err != nil {
		return err
	}
	now := share.Kept{At: time.Now().UTC(), Position: state.Last, Total: int64(state.Bytes)} //nolint:gosec // below the disk's size
	if k.reader == nil && float64(now.Total) < countAbove*k.share*float64(k.limit) {
		return k.write(ctx, now)
	}
	if k.reader == nil {
		k.reader = eventstream.Sizes(k.bus, "shares")
	}
	if err := k.reader.Read(ctx, k.add); err != nil {
		return err
	}
	for len(k.segments) > 0 && k.segments[0].last < state.First {
		k.segments = k.segments[1:]
	}
	now.Position, now.Exact = k.reader.At().Sequence, true
	all := map[string]int64{}
	for _, s := range k.segments {
		for account, n := range s.bytes {
			all[account] += n
		}
	}
	now.Accounts = share.Largest(all)
	return k.write(ctx, now)
}

// add takes in an event.
func (k *keptCounter) add(account string, sequence uint64, bytes int) {
	if n := len(k.segments); n == 0 || k.segments[n-1].events == segmentEvents {
		k.segments = append(k.segments, segment{bytes: map[string]int64{}})
	}
	s := &k.segments[len(k.segments)-1]
	s.last, s.events = sequence, s.events+1
	s.bytes[account] += int64(bytes) + share.Overhead
}

// write spreads a count that differs from the one before.
func (k *keptCounter) write(ctx context.Context, now share.Kept) error {
	if w := k.written; w.Position == now.Position && w.Exact == now.Exact && w.Total == now.Total &&
		maps.Equal(w.Accounts, now.Accounts) {
		return nil
	}
	if err := share.WriteKept(ctx, k.shares, now); err != nil {
		return err
	}
	k.written = now
	return nil
}
