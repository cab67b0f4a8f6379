package dispatcher

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/share"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

// backpressure holds back first attempts while RETRIES holds more than it may. The stream itself can have no limit: one
// that refuses messages cannot hold schedules, and one that drops old ones would lose notifications.
//
// Only the accounts above their fair level are held back: the level at which RETRIES would be a tenth below its limit
// if no account held more. Their first attempts are parked and released when they have shrunk; those of all other
// accounts go on. While the size of no account is known, or RETRIES holds twice its limit, no first attempts are made
// at all: they wait on NOTIFICATIONS, whose limit in turn makes events wait in CRM_EVENTS. Management explains this to
// owners (see paused in its package notifications).
//
// It is safe for concurrent use.
type backpressure struct {
	limit int64 // bytes; 0: none

	mu    sync.Mutex
	sizes map[string]int64 // of accounts on RETRIES, as the books counted them last; never changed
	bytes int64            // on RETRIES
	on    bool
	all   bool // no first attempts
	held  map[string]bool
}

// backpressurePause is how often the lane of first attempts looks whether it may go on.
const backpressurePause = 200 * time.Millisecond

// look takes over how much RETRIES holds.
func (b *backpressure) look(ctx context.Context, d *Dispatcher) error {
	if b.limit == 0 {
		return nil
	}
	s, err := d.bus.StreamState(ctx, topology.Retries)
	if err != nil {
		return err
	}
	b.update(d, func() { b.bytes = int64(s.Bytes) }) //nolint:gosec // a disk holds less
	return nil
}

// count takes over the accounts' amounts. Notifications that PARKED refused are on RETRIES although they are parked.
func (b *backpressure) count(d *Dispatcher, w share.Work) {
	overflowing := d.fullness.is(topology.Parked)
	sizes := make(map[string]int64, len(w.Accounts))
	for account, open := range w.Accounts {
		if sizes[account] = open.Retrying; overflowing {
			sizes[account] += open.Parked
		}
	}
	b.update(d, func() { b.sizes = sizes })
}

// update decides which accounts to hold back: above the limit, until RETRIES is a tenth below it.
func (b *backpressure) update(d *Dispatcher, change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	wasOn, wasAll, before := b.on, b.all, b.held
	low := b.limit / 10 * 9
	b.on = b.limit > 0 && (b.bytes > b.limit || b.on && b.bytes > low)
	b.all, b.held = false, nil
	if b.on {
		b.held = above(b.sizes, float64(low)/float64(b.bytes))
		b.all = len(b.held) == 0 || b.bytes > 2*b.limit
	}
	fields := []zap.Field{
		zap.Int64("bytes", b.bytes), zap.Int64("limit", b.limit), zap.Strings("account_ids", b.largest()),
	}
	switch {
	case wasOn && !b.on:
		d.metrics.paused.Set(0)
		d.log.Info("RETRIES has room again: first attempts go on", zap.Int64("bytes", b.bytes))
	case b.all && !wasAll:
		d.metrics.paused.Set(2)
		d.log.Error("RETRIES holds more than it may: no first attempts until it has shrunk", fields...)
	case b.on && !b.all:
		d.metrics.paused.Set(1)
		if (wasAll || !maps.Equal(b.held, before)) && d.bus.ShouldLog("backpressure") {
			d.log.Warn("RETRIES holds more than it may: the accounts that hold the most of it make no first attempts",
				fields...)
		}
	}
}

// above returns the accounts that hold more than the level at which all together would hold that part of the total.
func above(sizes map[string]int64, part float64) map[string]bool {
	var total int64
	for _, size := range sizes {
		total += size
	}
	room := int64(part * float64(total))
	held := map[string]bool{}
	accounts := slices.SortedFunc(maps.Keys(sizes), func(x, y string) int { return cmp.Compare(sizes[x], sizes[y]) })
	for i, account := range accounts { // the smallest first: what one does not use is left for the others
		if level := room / int64(len(accounts)-i); sizes[account] > level {
			held[account] = true
			room -= level
		} else {
			room -= sizes[account]
		}
	}
	return held
}

// holds reports whether the account's first attempts are held back.
func (b *backpressure) holds(account string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all || b.held[account]
}

// wait returns when first attempts may be made, or ctx ended.
func (b *backpressure) wait(ctx context.Context) {
	for b.stops() && sleep.For(ctx, backpressurePause) {
	}
}

// stops reports whether no first attempts are made at all.
func (b *backpressure) stops() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all
}

// mostListed is how many accounts a log line or a reason names.
const mostListed = 5

// largest returns the held accounts that hold the most, at most mostListed. The caller holds mu.
func (b *backpressure) largest() []string {
	accounts := slices.SortedFunc(maps.Keys(b.held), func(x, y string) int {
		return cmp.Or(cmp.Compare(b.sizes[y], b.sizes[x]), strings.Compare(x, y))
	})
	return accounts[:min(len(accounts), mostListed)]
}

// State says for /readyz which first attempts are held back, "" when none are.
func (b *backpressure) State() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.on && !b.all { // limit may not be known yet
		return ""
	}
	over := fmt.Sprintf("RETRIES holds %d bytes, more than its limit of %d", b.bytes, b.limit)
	if b.all {
		return over + ": no first attempts are made until it has shrunk"
	}
	return fmt.Sprintf("%s: first attempts of %d accounts wait, the largest %s", over, len(b.held),
		strings.Join(b.largest(), ", "))
}
