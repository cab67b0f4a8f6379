package publisher

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
)

const (
	// lookEvery is how often NOTIFICATIONS is looked at.
	lookEvery = time.Second
	// freeAbove is the part of NOTIFICATIONS above which acknowledged messages are freed before the duplicate window
	// ends.
	freeAbove = 0.4
	// keyFreed is the key of the bucket SHARES that says when messages were freed early.
	keyFreed = "freed"
)

// room keeps NOTIFICATIONS from filling with acknowledged messages, and the meter informed of what left it.
//
// The broker recognises the ids of freed messages as long as it runs. After a restart it knows only stored ones, so
// for the rest of the duplicate window each event is compared with what exists before its webhooks are notified.
type room struct {
	p        *Publisher
	shares   *bus.Bucket
	limit    int64 // bytes of NOTIFICATIONS; 0: none
	window   time.Duration
	replicas int

	doubt atomic.Bool
}

// freed is the record of messages that were freed early.
type freed struct {
	Server string    `json:"server"` // the run of the broker that still recognises their ids
	Until  time.Time `json:"until"`
}

// doubtful reports whether the broker may have forgotten ids of the duplicate window.
func (r *room) doubtful() bool { return r.doubt.Load() }

// keep looks after NOTIFICATIONS until ctx ends.
func (r *room) keep(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var last freed
	if e, err := r.shares.Get(ctx, keyFreed); err == nil {
		if err := json.Unmarshal(e.Value, &last); err != nil {
			r.p.log.Warn("an unreadable record of freed messages is ignored", zap.Error(err))
		}
	}
	for ; ; tick.Reset(lookEvery) {
		r.doubt.Store(time.Now().Before(last.Until) && (r.replicas > 1 || last.Server != r.p.bus.ServerID()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if r.limit == 0 {
			continue
		}
		if err := r.look(ctx, &last); err != nil && ctx.Err() == nil {
			r.p.log.Debug("NOTIFICATIONS cannot be looked at; trying again", zap.Error(err))
		}
	}
}

func (r *room) look(ctx context.Context, last *freed) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	floor, err := lane.Settled(ctx, r.p.bus)
	if err != nil {
		return err
	}
	r.p.meter.Settled(floor)
	if r.p.meter.StaleWork() {
		if err := r.bound(ctx); err != nil {
			return err
		}
	}
	state, err := r.p.bus.StreamState(ctx, topology.Notifications)
	if err != nil || float64(state.Bytes) < freeAbove*float64(r.limit) || floor == 0 {
		return err
	}
	if until := time.Now().Add(r.window + r.window/10); until.Sub(last.Until) > r.window/10 ||
		last.Server != r.p.bus.ServerID() {
		f := freed{r.p.bus.ServerID(), until.UTC()}
		value, err := json.Marshal(f)
		if err != nil {
			return err
		}
		if _, err := r.shares.Put(ctx, keyFreed, value); err != nil {
			return err
		}
		*last = f
	}
	return r.p.bus.Purge(ctx, topology.Notifications, floor)
}

// bound corrects counts of books that fell silent by the bytes in all stores together.
func (r *room) bound(ctx context.Context) error {
	var all int64
	for _, stream := range []string{topology.Retries, topology.Parked} {
		s, err := r.p.bus.StreamState(ctx, stream)
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
		all += int64(s.Bytes) //nolint:gosec // below the disk's size
	}
	first, err := r.p.bus.ConsumerState(ctx, topology.Durable{
		Stream: topology.Notifications, Name: topology.ConsumerFirst,
	})
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	if n := int64(first.Pending) + int64(first.AckPending); n > 0 { //nolint:gosec // a count
		all += r.limit // how large they are is not known
	}
	r.p.meter.Bound(all)
	return nil
}
