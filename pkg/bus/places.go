package bus

import (
	"context"
	"sync"
	"time"
)

// Places bounds the messages that a process has pulled and not finished, by number and by bytes, because a thousand
// messages may be a megabyte or a gigabyte. It is safe for concurrent use.
type Places struct {
	mu   sync.Mutex
	free int
	all  int
	room int // free bytes
	most int // of one message
	wake chan struct{}
}

// NewPlaces returns n free places and room for that many bytes, of which one message takes at most most; there
// is always room for one.
func NewPlaces(n, bytes, most int) *Places {
	return &Places{free: n, all: n, room: max(bytes, most), most: most, wake: make(chan struct{}, 1)}
}

// gather is how long Take waits for more than a few places, so that a busy lane asks for many at once.
const gather = 2 * time.Millisecond

// Take waits until a place is free, and room for the largest message, then takes all that are; 0 places mean
// that ctx ended.
func (p *Places) Take(ctx context.Context) (n, bytes int) {
	for ctx.Err() == nil {
		switch free := p.count(); {
		case free >= max(p.all/8, 1):
			return p.grab(p.all, Unbounded)
		case free > 0:
			t := time.NewTimer(gather)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
			return p.grab(p.all, Unbounded)
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		}
	}
	return 0, 0
}

// Try takes up to n places with room for one message of the largest size, or several smaller ones, without
// waiting. It may return 0 places.
func (p *Places) Try(n int) (places, bytes int) { return p.grab(n, p.most) }

// Give gives places and bytes back that were taken.
func (p *Places) Give(n, bytes int) {
	p.mu.Lock()
	p.free += n
	p.room += bytes
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// count returns how many places can be taken.
func (p *Places) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.room < p.most {
		return 0
	}
	return p.free
}

func (p *Places) grab(n, bytes int) (int, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.room < p.most || p.free == 0 {
		return 0, 0
	}
	n, bytes = min(n, p.free), min(bytes, p.room)
	p.free -= n
	p.room -= bytes
	return n, bytes
}
