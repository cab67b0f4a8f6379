// Package broadcast lets goroutines wait for a change that another one announces.
package broadcast

import (
	"context"
	"sync"
)

// A Signal wakes those that wait for a change. The zero value is ready; it is safe for concurrent use.
type Signal struct {
	mu   sync.Mutex
	next chan struct{}
}

// Send wakes all waiters.
func (s *Signal) Send() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		close(s.next)
		s.next = nil
	}
}

// sent returns a channel that the next Send closes.
func (s *Signal) sent() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(chan struct{})
	}
	return s.next
}

// Wait returns true once done does, or false when ctx ends first. It calls done at once and after each Send.
func (s *Signal) Wait(ctx context.Context, done func() bool) bool {
	for {
		sent := s.sent() // before done, so that no change falls between
		if done() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-sent:
		}
	}
}
