// Package revocation is the list of console sessions that were ended before their time, shared by all replicas of
// management and kept over restarts.
//
// A session is a sealed cookie that says how long it lasts; the list names those that do not count any more. It lies
// in the bucket ENDED_SESSIONS, whose entries outlast every session. An entry ends its session, with any content: a
// broker's user who writes or deletes one can end a session, not revive it.
package revocation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// List is safe for concurrent use.
type List struct {
	bucket *bus.Bucket
	loaded chan struct{}

	mu    sync.Mutex
	ended map[string]time.Time // by key, until when the entry is remembered
	next  chan struct{}        // closed when the next session ends
}

// New returns a list. Run must run for it to fill.
func New(bucket *bus.Bucket) *List {
	return &List{bucket: bucket, loaded: make(chan struct{}), ended: map[string]time.Time{}, next: make(chan struct{})}
}

// Loaded is closed once the sessions that ended before this process began are known.
func (l *List) Loaded() <-chan struct{} { return l.loaded }

// Run keeps the list up to date until ctx ends.
func (l *List) Run(ctx context.Context) error {
	return l.bucket.Watch(ctx, func(e bus.Entry) { l.end(e.Key) }, func() { close(l.loaded) })
}

// key names a session in the bucket without giving its id away.
func key(session string) string {
	h := sha256.Sum256([]byte(session))
	return hex.EncodeToString(h[:16])
}

// end remembers that a key's session has ended.
func (l *List) end(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if _, known := l.ended[key]; !known && len(l.ended)%1000 == 999 {
		for k, until := range l.ended {
			if now.After(until) {
				delete(l.ended, k)
			}
		}
	}
	l.ended[key] = now.Add(topology.EndedSessionsMaxAge)
	close(l.next)
	l.next = make(chan struct{})
}

// Ended reports whether the session with that id was ended.
func (l *List) Ended(session string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ended := l.ended[key(session)]
	return ended
}

// While returns a context that ends with ctx, or when the session with that id is ended. Its cancel function must be
// called.
func (l *List) While(ctx context.Context, session string) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancel(ctx)
	go func() {
		for {
			changed := l.changed() // before the look, so that no change falls between
			if l.Ended(session) {
				end()
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return ctx, end
}

// changed returns a channel that the next end of a session closes.
func (l *List) changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// Take ends that id for the first caller only, and reports whether by was the first. A reply of the broker that was
// lost does not matter: the entry says who was first. After an error it is not known.
func (l *List) Take(ctx context.Context, id, by string) (first bool, err error) {
	k := key(id)
	_, err = l.bucket.Create(ctx, k, []byte(by))
	if err == nil {
		l.end(k)
		return true, nil
	}
	e, readErr := l.bucket.Latest(ctx, k)
	switch {
	case readErr == nil:
		l.end(k)
		return string(e.Value) == by, nil
	case errors.Is(err, bus.ErrConflict):
		return false, nil
	}
	return false, fmt.Errorf("store that a link was used: %w", err)
}

// End ends a session: here at once, elsewhere as soon as they see it. The error says that others may not have
// learned of it.
func (l *List) End(ctx context.Context, session string) error {
	k := key(session)
	l.end(k)
	_, err := l.bucket.Create(ctx, k, []byte(time.Now().UTC().Format(time.RFC3339)))
	if err != nil && !errors.Is(err, bus.ErrConflict) {
		return fmt.Errorf("store that a session has ended: %w", err)
	}
	return nil
}
