package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/sleep"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
)

// laneKey names one backlog of PARKED: an account's URL, or its disabled webhooks.
type laneKey struct{ account, lane string }

func (k laneKey) url() urlKey { return urlKey{k.account, k.lane} }

func (k laneKey) lease() string { return k.account + "." + k.lane }

// drains takes parked notifications out again: as the probe of a suspended URL, at the URL's growing share
// once it is active and at its pace where it has a limit per minute, to their new URL when the webhook changed, or to
// their end when they expired or their webhook is gone. One dispatcher at a time works on a lane; a lease in the bucket
// LEASES says which.
//
// It is safe for concurrent use.
type drains struct {
	d      *Dispatcher
	leases *bus.Bucket
	paces  *bus.Bucket
	places *bus.Places

	mu      sync.Mutex
	running map[laneKey]bool
	flagged map[urlKey]chan struct{} // closed when the URL's flag or its limit per minute changes
	resting map[urlKey]time.Time     // until then the moments of a URL's pace are far away
	nudge   chan struct{}
	lanes   sync.WaitGroup
	ctx     context.Context //nolint:containedctx // of the loop; lanes woken from elsewhere end with it
}

func newDrains(d *Dispatcher, leases, paces *bus.Bucket) *drains {
	return &drains{
		d: d, leases: leases, paces: paces, places: bus.NewPlaces(max(d.cfg.MaxInFlight/4, 1), int(d.cfg.MaxInFlightBytes)/4, d.mostBytes()),
		running: map[laneKey]bool{}, flagged: map[urlKey]chan struct{}{},
		resting: map[urlKey]time.Time{}, nudge: make(chan struct{}, 1),
	}
}

// lookEvery is how often PARKED is listed. Parking here, a changed flag or a changed webhook does not wait for it.
const lookEvery = time.Second

// run looks after the backlogs until ctx ended and the lanes in hand are settled.
func (x *drains) run(ctx context.Context) {
	x.mu.Lock()
	x.ctx = ctx
	x.mu.Unlock()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	defer x.lanes.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-x.nudge:
		}
		backlogs, err := lane.Backlogs(ctx, x.d.bus, "")
		if err != nil {
			if ctx.Err() == nil {
				x.d.log.Debug("PARKED cannot be listed; trying again", zap.Error(err))
			}
			continue
		}
		x.rested()
		x.act(backlogs)
		x.d.limiter.forget()
		x.d.receivers.sweep()
		x.d.clients.sweep()
	}
}

// look has the backlogs looked at now.
func (x *drains) look() {
	select {
	case x.nudge <- struct{}{}:
	default:
	}
}

// changed wakes who waits for the URL's flag or its limit, and has the backlogs looked at.
func (x *drains) changed(k urlKey) {
	x.mu.Lock()
	delete(x.resting, k)
	if c := x.flagged[k]; c != nil {
		close(c)
		delete(x.flagged, k)
	}
	x.mu.Unlock()
	x.look()
}

// rest leaves the URL's backlog alone until shortly before its next moment, which is that far away.
func (x *drains) rest(k urlKey, wait time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.resting[k] = time.Now().Add(wait - lookEvery - lookEvery/2)
}

// rests reports whether the moments of the URL's pace are far away.
func (x *drains) rests(k urlKey) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return time.Now().Before(x.resting[k])
}

// rested forgets the URLs whose rest is over.
func (x *drains) rested() {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(x.resting, func(_ urlKey, until time.Time) bool { return !now.Before(until) })
}

// flagChange returns a channel that is closed when the URL's flag or its limit per minute changes.
func (x *drains) flagChange(k urlKey) <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.flagged[k]
	if c == nil {
		c = make(chan struct{})
		x.flagged[k] = c
	}
	return c
}

// act starts the work that each backlog needs.
func (x *drains) act(backlogs []lane.Backlog) {
	waiting := map[laneKey][]lane.Backlog{}
	for _, b := range backlogs {
		k := laneKey{b.Account, b.Lane}
		waiting[k] = append(waiting[k], b)
	}
	for k, webhooks := range waiting {
		if k.lane == notification.LaneDisabled {
			x.moved(k, webhooks)
			continue
		}
		flag, suspended := x.d.suspensions.Get(k.url().suspension())
		x.d.limiter.setBacklog(k.url(), !suspended)
		switch {
		case x.rests(k.url()):
			x.moved(k, webhooks)
		case !suspended:
			x.start(k, x.release)
		case flag.ProbeDue(time.Now(), x.d.cfg.probeWait()):
			x.start(k, x.probe)
		default:
			x.moved(k, webhooks)
			x.start(k, x.expire)
		}
	}
}

// moved takes out what no longer belongs to the lane: webhooks that are gone, enabled again, or have
// another URL now.
func (x *drains) moved(k laneKey, webhooks []lane.Backlog) {
	for _, b := range webhooks {
		w := x.d.registry.Get(b.Account, b.WebhookID)
		if w != nil && (w.URLKey == k.lane || k.lane == notification.LaneDisabled && w.Status != "active") {
			continue
		}
		id := b.WebhookID
		x.start(laneKey{k.account, k.lane + "." + id}, func(ctx context.Context, _ laneKey) error {
			return x.empty(ctx, k, id, outlet{permits: func(_ *lane.Drain, n int) ([]permit, bool) { return make([]permit, n), true }})
		})
	}
}

// wake starts the release of a lane in which this process has just parked something.
func (x *drains) wake(k laneKey) {
	if !x.d.suspended(k.url()) && !x.rests(k.url()) {
		x.d.limiter.setBacklog(k.url(), true)
		x.start(k, x.release)
	}
}

// start runs work on the lane unless it is running here already, under the lane's lease.
func (x *drains) start(k laneKey, work func(context.Context, laneKey) error) {
	x.mu.Lock()
	ctx := x.ctx
	if ctx == nil || ctx.Err() != nil || x.running[k] {
		x.mu.Unlock()
		return
	}
	x.running[k] = true
	x.lanes.Add(1)
	x.mu.Unlock()
	go func() {
		defer x.lanes.Done()
		defer func() {
			x.mu.Lock()
			delete(x.running, k)
			x.mu.Unlock()
		}()
		err := x.leases.Under(ctx, k.lease(), x.d.name, topology.LeaseTTL, func(ctx context.Context) error { return work(ctx, k) })
		if err != nil && ctx.Err() == nil && !errors.Is(err, bus.ErrConflict) && !errors.Is(err, lane.ErrBusy) {
			x.d.lasting.Warn("parked notifications cannot be released; trying again", zap.String("account_id", k.account), zap.Error(err))
		}
	}()
}

// release hands a lane's backlog, oldest first, to the live path until it is empty, the URL is suspended again, or the
// lease is lost: at the share that the limiter gives the URL, and at its pace where it has a limit per minute.
func (x *drains) release(ctx context.Context, k laneKey) error {
	d, key := x.d, k.url()
	for limit := x.perMinute(k); ; limit = x.perMinute(k) {
		work := x.unpaced
		if limit > 0 {
			work = x.paced
		}
		err := work(ctx, k)
		if err == nil && !d.suspended(key) && !x.rests(key) {
			d.limiter.setBacklog(key, false)
		}
		if err != nil || ctx.Err() != nil || (limit > 0) == (x.perMinute(k) > 0) {
			return err
		}
	}
}

func (x *drains) perMinute(k laneKey) int { return x.d.registry.MaxPerMinute(k.account, k.lane) }

// unpaced is release for a URL without a limit per minute. It ends when the URL gets one.
func (x *drains) unpaced(ctx context.Context, k laneKey) error {
	d, key := x.d, k.url()
	return x.empty(ctx, k, "*", outlet{
		permits: func(_ *lane.Drain, n int) ([]permit, bool) {
			if d.suspended(key) || x.perMinute(k) > 0 {
				return nil, false
			}
			if d.backpressure.holds(k.account) {
				return nil, true
			}
			var permits []permit
			for _, s := range d.limiter.take(key, n) {
				permits = append(permits, permit{slot: s})
			}
			return permits, true
		},
		pause: func(ctx context.Context) bool { return sleep.For(ctx, d.limiter.pause(key)) },
	})
}

// paced is release for a URL with a limit per minute. It ends when the URL has none any more, and leaves the backlog
// alone while the next moment is far away.
func (x *drains) paced(ctx context.Context, k laneKey) error {
	d, key := x.d, k.url()
	plan, err := openTimetable(ctx, x.paces, key.name(), max(x.perMinute(k), 1))
	if err != nil {
		return err
	}
	var wait time.Duration
	var change <-chan struct{}
	var failed error
	err = x.empty(ctx, k, "*", outlet{
		permits: func(drain *lane.Drain, n int) ([]permit, bool) {
			change = x.flagChange(key)
			limit := x.perMinute(k)
			if d.suspended(key) || limit == 0 {
				return nil, false
			}
			plan.limit(limit)
			due, reserve, next := plan.due(wall())
			switch {
			case due == 0 && next > longestTurn:
				x.rest(key, next)
				return nil, false
			case due == 0:
				wait = next
				return nil, true
			case reserve: // the moment of an empty lane would be lost to the next that comes
				if none, err := drain.Empty(ctx); err != nil || none {
					failed = err
					return nil, false
				}
			}
			wait = d.limiter.pause(key)
			if d.backpressure.holds(k.account) {
				return nil, true
			}
			slots := d.limiter.take(key, min(n, due))
			if len(slots) == 0 {
				return nil, true
			}
			turns, next, err := plan.turns(ctx, len(slots))
			permits := make([]permit, 0, len(turns))
			for i, s := range slots {
				if i < len(turns) {
					permits = append(permits, permit{slot: s, turn: turns[i]})
				} else {
					s.release()
				}
			}
			wait = next
			if err != nil && len(turns) == 0 {
				failed = err
				return nil, false
			}
			return permits, true
		},
		pause: func(ctx context.Context) bool {
			timer := time.NewTimer(max(wait, time.Millisecond))
			defer timer.Stop()
			select {
			case <-ctx.Done():
				return false
			case <-change:
			case <-timer.C:
			}
			return true
		},
	})
	return errors.Join(err, failed)
}

// outlet is how a drain takes notifications out.
type outlet struct {
	// permits returns those for at most n messages of the drain that may be taken now, and false to stop.
	permits func(drain *lane.Drain, n int) ([]permit, bool)
	// pause waits when there was no permit, and reports whether to go on. Nil: for drainPause.
	pause func(context.Context) bool
}

// drainPause is how long a drain waits for a free place, or for the last deliveries to settle; longestDrainPause how
// long when a place will not be free before.
const drainPause, longestDrainPause = 5 * time.Millisecond, 100 * time.Millisecond

// empty takes messages out of a lane, of one webhook or of all with "*", until none is left.
func (x *drains) empty(ctx context.Context, k laneKey, webhook string, out outlet) error {
	drain, err := lane.OpenDrain(ctx, x.d.bus, k.account, k.lane, webhook, max(x.d.cfg.MaxInFlightPerURL, 1), x.d.cfg.ackWait())
	if err != nil {
		return err
	}
	defer x.close(ctx, drain)
	work := context.WithoutCancel(ctx)
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	largest := 0 // bytes of a message lately
	for ctx.Err() == nil {
		places, room := x.places.Try(x.d.cfg.MaxInFlightPerURL)
		free, goOn := out.permits(drain, min(places, max(room/cmp.Or(largest, firstSize), 1)))
		if !goOn {
			x.places.Give(places, room)
			return nil
		}
		got, used := 0, 0
		if len(free) > 0 {
			got, err = drain.Take(ctx, len(free), func(m *lane.Delivery) {
				p, size := free[0], m.Size()
				free, used, largest = free[1:], used+size, max(size, largest-largest/64, 1)
				p.slot.weigh(size)
				inFlight.Go(func() {
					defer x.places.Give(1, size)
					x.handle(work, m, p)
				})
			})
		}
		for _, p := range free {
			p.release()
		}
		x.places.Give(places-got, room-used)
		none := got+len(free) == 0 // no permit
		switch {
		case err != nil:
			return err
		case got > 0:
			continue
		case !none:
			if empty, err := drain.Empty(ctx); err != nil || empty {
				return err
			}
		}
		pause := out.pause
		if !none || pause == nil {
			pause = func(ctx context.Context) bool { return sleep.For(ctx, drainPause) }
		}
		if !pause(ctx) {
			return nil //nolint:nilerr // the lease or the process ended; another dispatcher goes on
		}
	}
	return nil
}

// handle is Dispatcher.handle for a notification that was just taken out.
func (x *drains) handle(ctx context.Context, m *lane.Delivery, p permit) (attempted bool) {
	if !m.Hold(x.d.cfg.ackWait()) {
		p.release()
		return false
	}
	defer m.Abandon()
	return x.d.handle(ctx, m, p)
}

// close removes a drain's consumer. Messages that it did not settle are parked as before; a consumer that cannot be
// removed now is removed by the broker when it has been idle.
func (x *drains) close(ctx context.Context, drain *lane.Drain) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := drain.Close(ctx); err != nil {
		x.d.log.Debug("drain not closed; the broker removes it when it is idle", zap.Error(err))
	}
}

// probe sends the oldest parked notification to a suspended URL whose time has come, and waits for the
// monitor's verdict. The claim is a compare-and-set on the flag, so one probe is in flight across all
// dispatchers; a dispatcher that dies in the middle blocks it for no longer than probeWait.
func (x *drains) probe(ctx context.Context, k laneKey) error {
	d, key := x.d, k.url()
	flag, suspended := d.suspensions.Get(key.suspension())
	if !suspended || !flag.ProbeDue(time.Now(), d.cfg.probeWait()) {
		return nil
	}
	own, ok, err := x.probeTurn(ctx, k)
	if err != nil || !ok {
		return err
	}
	drain, err := lane.OpenDrain(ctx, d.bus, k.account, k.lane, "*", 1, d.cfg.ackWait())
	if err != nil {
		return err
	}
	defer x.close(ctx, drain)
	work := context.WithoutCancel(ctx)
	claimed := flag
	claimed.State, claimed.Probe = suspension.Probing, &suspension.Probe{StartedAt: time.Now().UTC(), By: d.name}
	if claimed.Revision, err = d.suspensions.Write(ctx, claimed.Flag, flag.Revision); err != nil {
		return err
	}
	for attempted := false; !attempted; {
		took, err := drain.Take(ctx, 1, func(m *lane.Delivery) { attempted = x.handle(work, m, permit{probe: &claimed, turn: own}) })
		if err != nil {
			return err
		}
		if took > 0 {
			continue
		}
		if none, err := drain.Empty(ctx); err != nil || none { // the lane was emptied: the claim is given back
			_, err = d.suspensions.Write(work, flag.Flag, claimed.Revision)
			return err
		}
		if !sleep.For(ctx, 10*drainPause) { // the one delivery allowed is still with a dispatcher that died
			return nil //nolint:nilerr // the lease or the process ended; another dispatcher goes on
		}
	}
	verdict := time.NewTimer(d.cfg.probeWait())
	defer verdict.Stop()
	for {
		change := x.flagChange(key)
		if now, still := d.suspensions.Get(key.suspension()); !still || now.Revision > claimed.Revision {
			return nil
		}
		select {
		case <-change:
		case <-verdict.C: // the monitor is down: its missed outcomes are in the journal
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// probeTurn returns the turn of a probe, nil where the URL has no limit per minute. It is not ok while the URL's next
// moment has not come.
func (x *drains) probeTurn(ctx context.Context, k laneKey) (_ *turn, ok bool, _ error) {
	limit := x.perMinute(k)
	if limit == 0 {
		return nil, true, nil
	}
	plan, err := openTimetable(ctx, x.paces, k.url().name(), limit)
	if err != nil {
		return nil, false, err
	}
	turns, wait, err := plan.turns(ctx, 1)
	if err != nil || len(turns) == 0 {
		x.rest(k.url(), wait)
		return nil, false, err
	}
	return turns[0], true, nil
}

// expire ends notifications that have waited for a suspended URL longer than allowed.
func (x *drains) expire(ctx context.Context, k laneKey) error {
	oldest, err := lane.OldestParked(ctx, x.d.bus, k.account, k.lane, "*")
	if errors.Is(err, bus.ErrNotFound) || err == nil && time.Since(oldest) <= x.d.cfg.ParkedMaxAge {
		return nil
	}
	if err != nil {
		return err
	}
	drain, err := lane.OpenDrain(ctx, x.d.bus, k.account, k.lane, "*", 64, x.d.cfg.ackWait())
	if err != nil {
		return err
	}
	defer x.close(ctx, drain)
	work := context.WithoutCancel(ctx)
	for {
		young := false
		took, err := drain.Take(ctx, 64, func(m *lane.Delivery) {
			if time.Since(m.StoredAt) <= x.d.cfg.ParkedMaxAge {
				young = true
				return
			}
			if !m.Hold(x.d.cfg.ackWait()) {
				return
			}
			defer m.Abandon()
			if last, ok := x.d.resume(work, m); ok {
				x.d.end(work, m, x.d.record(m, nil, last, notification.KindExpired), string(delivery.ExpiredWhileSuspended))
			}
		})
		if err != nil {
			return err
		}
		if (young || took == 0) && !drain.Skip() {
			return nil
		}
	}
}
