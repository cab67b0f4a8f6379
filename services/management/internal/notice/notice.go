// Package notice lets goroutines wait for a change that another one announces.
package notice

import (
	"context"
	"sync"
)

// Board announces changes. The zero value is ready; it is safe for concurrent use.
type Board struct {
	mu   sync.Mutex
	next chan struct{}
}

// Post wakes all waiters.
func (b *Board) Post() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// changed returns a channel that the next Post closes.
func (b *Board) changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

// Wait returns true once done does, looking again after each Post, or false when ctx ends first.
func (b *Board) Wait(ctx context.Context, done func() bool) bool {
	for {
		changed := b.changed() // before done, so that no change falls between
		if done() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}
