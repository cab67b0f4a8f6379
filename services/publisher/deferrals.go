package publisher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/eventstream"
	"gancho/pkg/history"
	"gancho/pkg/share"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

// deferrals are the accounts whose events wait in CRM_EVENTS, because the account has its share of a store.
//
// An event of a deferred account is acknowledged on the shared consumer once the account's record says that events up
// to it wait. The record is compared-and-set, so it cannot be deleted while another publisher adds to it: an event is
// either covered by a record or handled. Whoever holds the lease "shares" catches up from the record.
type deferrals struct {
	p      *Publisher
	shares *bus.Bucket
	maxAge time.Duration // of CRM_EVENTS
	kept   *keptCounter

	histories *history.Keeper
	bodies    *bodies.Sweeper

	mu       sync.Mutex
	lines    map[string]*line // accounts with events that are not covered by a record yet
	underway map[string]int   // events that are being fanned out, by account
	idle     sync.Cond        // an account has none left
	work     sync.WaitGroup
}

// line is an account's events on their way to be covered by its record.
type line struct {
	waiting []waiting
	over    *share.Excess // why the account is deferred; nil: it was already
}

// waiting is an event of a line. done, if not nil, is called once it is settled or given up.
type waiting struct {
	*eventstream.Delivery

	done func()
}

func newDeferrals(p *Publisher, shares *bus.Bucket, maxAge time.Duration, reg prometheus.Registerer) *deferrals {
	d := &deferrals{p: p, shares: shares, maxAge: maxAge, lines: map[string]*line{}, underway: map[string]int{}}
	d.idle.L = &d.mu
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gancho_accounts_deferred", Help: "Accounts whose events wait in CRM_EVENTS because they have their share of a store.",
		}, func() float64 { return float64(len(p.meter.AllDeferred())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gancho_deferred_oldest_age_ratio", Help: "Age of the oldest event of a deferred account, as a part of EVENTS_MAX_AGE. At 1 it is removed.",
		}, func() float64 { return d.oldest().Seconds() / maxAge.Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gancho_accounts_over_events_share", Help: "Accounts that hold more than their share of CRM_EVENTS.",
		}, func() float64 { return float64(len(p.meter.OverEvents())) }),
	)
	return d
}

// oldest returns the age of the oldest event that waits.
func (d *deferrals) oldest() (age time.Duration) {
	for _, r := range d.p.meter.AllDeferred() {
		age = max(age, time.Since(r.OldestAt))
	}
	return age
}

// maxNamed is how many accounts a message names.
const maxNamed = 5

// state says whose events wait, "" when none do.
func (d *deferrals) state() string {
	accounts := slices.Sorted(maps.Keys(d.p.meter.AllDeferred()))
	if len(accounts) == 0 {
		return ""
	}
	names := strings.Join(accounts[:min(len(accounts), maxNamed)], ", ")
	if len(accounts) > maxNamed {
		names += ", ..."
	}
	return fmt.Sprintf("%d accounts have their share of a store, their events wait in CRM_EVENTS: %s", len(accounts), names)
}

// begin admits an event of the account to the fan-out; leave follows when that has ended. It returns false when the
// account's events are to wait.
func (d *deferrals) begin(account string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, joining := d.lines[account]; joining {
		return false
	}
	if _, deferred := d.p.meter.Deferred(account); deferred {
		return false
	}
	d.underway[account]++
	return true
}

// leave ends what begin began.
func (d *deferrals) leave(account string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.underway[account]--; d.underway[account] == 0 {
		delete(d.underway, account)
		d.idle.Broadcast()
	}
}

// add has an event wait. over says why its account is to be deferred, nil that it is already.
func (d *deferrals) add(m *eventstream.Delivery, account string, over *share.Excess, done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lines[account]
	if l == nil {
		l = &line{}
		d.lines[account] = l
		d.work.Go(func() { d.cover(account, l) })
	}
	l.waiting = append(l.waiting, waiting{m, done})
	if over != nil {
		l.over = over
	}
}

// coverWithin is how long the broker may take to store an account's record; its events come again after that.
const coverWithin = 15 * time.Second

// cover writes the account's record until no event of it waits to be covered. It first waits for the events under way:
// those that find no room for the rest of their notifications join the line, and the catch-up starts with the oldest.
func (d *deferrals) cover(account string, l *line) {
	for {
		d.mu.Lock()
		for d.underway[account] > 0 {
			d.idle.Wait()
		}
		batch, over := l.waiting, l.over
		if len(batch) == 0 {
			delete(d.lines, account)
			d.mu.Unlock()
			return
		}
		l.waiting, l.over = nil, nil
		d.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), coverWithin)
		covered, err := d.record(ctx, account, batch, over)
		cancel()
		switch {
		case err != nil:
			d.p.lasting.Warn("events of a deferred account are not settled; they come again", zap.String("account_id", account), zap.Error(err))
			for _, m := range batch {
				m.Abandon()
			}
		case covered:
			for _, m := range batch {
				m.Ack()
			}
		default: // it has caught up in between: the events are handed out again at once
			d.p.meter.Defer(account, nil)
			for _, m := range batch {
				m.Return()
			}
		}
		for _, m := range batch {
			if m.done != nil {
				m.done()
			}
		}
	}
}

// record covers the events by the account's record. It returns false when there is none and none is to be made.
func (d *deferrals) record(ctx context.Context, account string, batch []waiting, over *share.Excess) (bool, error) {
	first, last, oldest := batch[0].Sequence, batch[0].Sequence, batch[0].StoredAt
	for _, m := range batch {
		first, last = min(first, m.Sequence), max(last, m.Sequence)
		if m.StoredAt.Before(oldest) {
			oldest = m.StoredAt
		}
	}
	for {
		e, err := d.shares.Get(ctx, share.DeferralKey(account))
		switch {
		case errors.Is(err, bus.ErrNotFound) && over == nil:
			return false, nil
		case errors.Is(err, bus.ErrNotFound):
			r := share.Deferral{
				Since: time.Now().UTC(), Store: over.Store, From: first - 1, After: first - 1, Last: last, Tried: last, OldestAt: oldest.UTC(),
			}
			if err = d.write(ctx, account, &r, 0); err == nil {
				d.p.log.Warn("account deferred: its events wait in CRM_EVENTS", zap.String("account_id", account), zap.String("store", over.Store),
					zap.Int64("used_bytes", over.Used), zap.Int64("share_bytes", over.Share), zap.Uint64("stream_seq", first))
			}
		case err != nil:
			return false, err
		default:
			r, decodeErr := share.DecodeDeferral(e.Value)
			if decodeErr != nil {
				return false, decodeErr
			}
			if first <= r.From { // it came again from before the deferral
				r.Tried = max(r.Tried, r.After)
				r.From, r.After, r.OldestAt = first-1, first-1, oldest.UTC()
			} else if last <= r.Last && (over == nil || last <= r.Tried) {
				return true, nil
			}
			if over != nil { // some of its notifications may be stored
				r.Tried = max(r.Tried, last)
			}
			r.Last = max(r.Last, last)
			err = d.write(ctx, account, r, e.Revision)
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err == nil, err
		}
	}
}

// write stores a record over the one with that revision, 0: over none, and has the meter know of it.
func (d *deferrals) write(ctx context.Context, account string, r *share.Deferral, revision uint64) error {
	_, err := d.store(ctx, account, r, revision)
	return err
}

func (d *deferrals) store(ctx context.Context, account string, r *share.Deferral, revision uint64) (uint64, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	if revision == 0 {
		revision, err = d.shares.Create(ctx, share.DeferralKey(account), value)
	} else {
		revision, err = d.shares.Update(ctx, share.DeferralKey(account), value, revision)
	}
	if err == nil {
		d.p.meter.Defer(account, r)
	}
	return revision, err
}

// leaseKey is the key of the lease for catching up.
const leaseKey = "shares"

// keep catches up whenever this publisher can hold the lease, until ctx ends.
func (d *deferrals) keep(ctx context.Context) {
	var leases *bus.Bucket
	for ctx.Err() == nil {
		var err error
		if leases == nil {
			if leases, err = d.p.bus.Bucket(ctx, topology.BucketLeases); err != nil {
				leases = nil
				continue
			}
		}
		if leases.Under(ctx, leaseKey, uuid.NewString(), topology.LeaseTTL, d.hold) != nil {
			sleep.For(ctx, topology.LeaseTTL/4)
		}
	}
}

// hold catches up until held ends, with the process or the lease.
func (d *deferrals) hold(held context.Context) error {
	var work sync.WaitGroup
	work.Go(func() { d.kept.run(held) })
	work.Go(func() { d.histories.Run(held) })
	work.Go(func() { d.bodies.Run(held) })
	running := map[string]bool{}
	var mu sync.Mutex
	for held.Err() == nil {
		for account := range d.p.meter.AllDeferred() {
			mu.Lock()
			start := !running[account] && len(running) < maxCatchUps
			if start {
				running[account] = true
			}
			mu.Unlock()
			if start {
				work.Go(func() {
					c := &catchUp{d: d, account: account, log: d.p.lasting.With(zap.String("account_id", account))}
					if err := c.run(held); err != nil && held.Err() == nil {
						c.log.Warn("catching up is interrupted; it goes on", zap.Error(err))
						sleep.For(held, time.Second)
					}
					mu.Lock()
					delete(running, account)
					mu.Unlock()
				})
			}
		}
		sleep.For(held, catchUpEvery)
	}
	work.Wait()
	return nil
}
