package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/sleep"
)

// This file holds the pace of URLs that may get only so many requests per minute. Each request to such a URL has a
// moment. The moments of a URL are round / limit apart, and a request begins at most momentLate after its moment: so
// any minute holds the requests of at most limit moments, and 95 % of limit while the moments are used.
//
// Compare-and-set in the bucket PACES reserves each moment for one dispatcher, even when two believe that they hold the
// lease of the URL's drain. A dispatcher that was frozen finds its moments passed, and sends nothing.

const (
	// round is the time that a URL's limit per minute is spread over: a minute, momentLate, and half a second for
	// clocks that differ.
	round = 61500 * time.Millisecond
	// momentLate is how late a moment may be used.
	momentLate = time.Second
	// momentMissed is how late a moment may be handed out, so that it can still be used in time.
	momentMissed = momentLate / 2
	// reserveAhead is how far ahead moments are reserved at most. Those of a process that dies are lost.
	reserveAhead = time.Second
	// handAhead is how long before its moment a turn is handed out at most: it holds a slot.
	handAhead = 25 * time.Millisecond
	// handAgain is how long before a moment a drain without a turn comes back: later than it might, for several turns
	// at once.
	handAgain = 5 * time.Millisecond
	// paceWithin bounds a call to the bucket.
	paceWithin = 5 * time.Second
	// longestTurn is how long a drain or a notification waits in memory for the next moment at most.
	longestTurn = 5 * time.Second
	// clocksDiffer is how far ahead a reservation can be; one that is further came from a clock that was wrong.
	clocksDiffer = 10 * time.Second
)

// wall is the time without the monotonic part, which stands still while a machine sleeps.
func wall() time.Time { return time.Now().Round(0) }

// between is how far the moments of a URL are apart.
func between(limit int) time.Duration {
	return (round + time.Duration(limit) - 1) / time.Duration(limit)
}

// following returns at most n moments after last, which is a moment or zero: the next ones, or from now on where those
// have passed.
func following(last, now time.Time, every time.Duration, n int) []time.Time {
	next := last.Add(every)
	if next.Before(now.Add(-momentMissed)) {
		next = now
	}
	var out []time.Time
	for ; len(out) < n && !next.After(now.Add(reserveAhead)); next = next.Add(every) {
		out = append(out, next)
	}
	return out
}

// timetable hands out the moments of one URL. It is safe for concurrent use.
type timetable struct {
	bucket *bus.Bucket
	key    string

	reserving sync.Mutex // one goroutine reserves at a time

	mu       sync.Mutex
	every    time.Duration
	moments  []time.Time // reserved and not handed out, in order
	last     time.Time   // the last one that any process has reserved, as far as known
	revision uint64      // of the key; 0: there is none
	batch    int         // how many to reserve next
}

// openTimetable returns the timetable of a URL.
func openTimetable(ctx context.Context, bucket *bus.Bucket, key string, limit int) (*timetable, error) {
	p := &timetable{bucket: bucket, key: key, every: between(limit), batch: 1}
	return p, p.read(ctx)
}

// read learns up to when moments are reserved.
func (p *timetable) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, paceWithin)
	defer cancel()
	e, err := p.bucket.Get(ctx, p.key)
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return fmt.Errorf("read the pace of a URL: %w", err)
	}
	last, _ := time.Parse(time.RFC3339Nano, string(e.Value)) // zero where there is none, or none that can be read
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.revision = last, e.Revision
	return nil
}

// limit sets the limit. Moments that were reserved under another one are given up.
func (p *timetable) limit(limit int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if every := between(limit); every != p.every {
		p.every, p.moments, p.batch = every, nil, 1
	}
}

// due returns how many turns there are at most now, and whether moments must be reserved for them. Without any, wait is
// how long it is to the next.
func (p *timetable) due(now time.Time) (n int, reserve bool, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	soon := now.Add(handAhead)
	if len(p.moments) == 0 {
		if next := p.last.Add(p.every); next.After(soon) && !p.last.After(now.Add(clocksDiffer)) {
			return 0, false, next.Sub(now.Add(handAgain))
		}
		return p.batch, true, 0
	}
	for n < len(p.moments) && !p.moments[n].After(soon) {
		n++
	}
	return n, false, max(p.moments[0].Sub(now.Add(handAgain)), 0)
}

// turns returns at most n turns whose moments have come or are about to. Without any, wait is how long to wait before
// the next call.
func (p *timetable) turns(ctx context.Context, n int) (turns []*turn, wait time.Duration, err error) {
	p.reserving.Lock()
	defer p.reserving.Unlock()
	for {
		now := wall()
		turns, wait = p.hand(turns, n, now)
		if len(turns) == n || wait > 0 {
			return turns, wait, nil
		}
		if err := p.reserve(ctx, now); err != nil {
			return turns, 0, err
		}
	}
}

// hand appends to turns, up to n, those of reserved moments that have come. Where wait is 0 more must be reserved.
func (p *timetable) hand(turns []*turn, n int, now time.Time) (_ []*turn, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.After(now.Add(clocksDiffer)) {
		p.last, p.moments = now, nil
	}
	for len(p.moments) > 0 && len(turns) < n && !p.moments[0].After(now.Add(handAhead)) {
		if !p.moments[0].Before(now.Add(-momentMissed)) {
			turns = append(turns, &turn{timetable: p, at: p.moments[0], every: p.every})
		}
		p.moments = p.moments[1:]
	}
	next := p.last.Add(p.every)
	if len(p.moments) > 0 {
		next = p.moments[0]
	}
	return turns, max(next.Sub(now.Add(handAhead)), 0)
}

// reserve makes the next moments this process's. They are twice as many as the last time, so that few are left when
// nothing waits any more.
func (p *timetable) reserve(ctx context.Context, now time.Time) error {
	p.mu.Lock()
	moments := following(p.last, now, p.every, p.batch)
	revision := p.revision
	p.mu.Unlock()
	if len(moments) == 0 {
		return nil
	}
	last := moments[len(moments)-1]
	value := []byte(last.UTC().Format(time.RFC3339Nano))
	calling, cancel := context.WithTimeout(ctx, paceWithin)
	defer cancel()
	var err error
	if revision == 0 {
		revision, err = p.bucket.Create(calling, p.key, value)
	} else {
		revision, err = p.bucket.Update(calling, p.key, value, revision)
	}
	if errors.Is(err, bus.ErrConflict) { // another process was faster, or the key has run out
		return p.read(ctx)
	}
	if err != nil {
		return fmt.Errorf("reserve moments of a URL: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moments, p.last, p.revision, p.batch = append(p.moments, moments...), last, revision, 2*len(moments)
	return nil
}

// turn is the right to begin one request to a URL at a moment of its pace. The methods of a nil turn say that there is
// nothing to wait for. One goroutine uses it.
type turn struct {
	timetable *timetable
	at        time.Time
	every     time.Duration // between moments when it was handed out
	used      bool
}

// errFar reports that the next moment is far away.
var errFar = errors.New("the next moment of the URL's pace is far away")

// wait returns when the turn's moment has come. A turn that missed its moment gets another one, or errFar.
func (t *turn) wait(ctx context.Context) error {
	if t == nil {
		return nil
	}
	for {
		sleep.For(ctx, t.at.Sub(wall()))
		if t.inTime() {
			return ctx.Err() //nolint:wrapcheck // it says all
		}
		turns, wait, err := t.timetable.turns(ctx, 1)
		switch {
		case err != nil:
			return err
		case len(turns) > 0:
			t.at, t.every = turns[0].at, turns[0].every
		case wait > longestTurn:
			return errFar
		default:
			if !sleep.For(ctx, wait) {
				return ctx.Err() //nolint:wrapcheck // it says all
			}
		}
	}
}

func (t *turn) inTime() bool { return !wall().After(t.at.Add(momentLate)) }

// use reports whether the request may begin now. The turn is then over.
func (t *turn) use() bool {
	if t == nil {
		return true
	}
	t.used = t.inTime()
	return t.used
}

// release gives a turn back that was not used, for another notification.
func (t *turn) release() {
	if t == nil || t.used {
		return
	}
	t.used = true
	p := t.timetable
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.every != p.every {
		return
	}
	at, _ := slices.BinarySearchFunc(p.moments, t.at, time.Time.Compare)
	p.moments = slices.Insert(p.moments, at, t.at)
}
