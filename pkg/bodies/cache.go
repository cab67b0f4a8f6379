package bodies

import (
	"context"
	"sync"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
)

const (
	// fetchWithin is how long a fetch may take until the notification is left for later.
	fetchWithin = 10 * time.Second
	// keepFor is how long a body stays in memory after it was fetched: the notifications of one event come together.
	keepFor = 30 * time.Second
)

// Cache fetches each body once for the notifications of one event that come together. It is safe for concurrent use.
type Cache struct {
	bus  *bus.Bus
	most int // bytes that it keeps

	mu     sync.Mutex
	bodies map[string]*cached // by subject
	order  []*cached          // those that are kept, the first fetched first
	bytes  int                // of those
}

// cached is a body that is there once done is closed.
type cached struct {
	subject string
	done    chan struct{}
	body    []byte
	err     error
}

// NewCache returns a cache that keeps at most that many bytes in addition to those that notifications in flight use.
func NewCache(b *bus.Bus, most int) *Cache {
	return &Cache{bus: b, most: most, bodies: map[string]*cached{}}
}

// Fill fetches the body of a notification that only refers to it, as bodies.Fill. The bytes must not be changed.
func (c *Cache) Fill(ctx context.Context, n *notification.Notification) error {
	if n.Ref == nil || len(n.Body) > 0 {
		return nil
	}
	subject := n.Ref.Subject(n.Account, n.EventID)
	c.mu.Lock()
	x := c.bodies[subject]
	if x == nil {
		x = &cached{subject: subject, done: make(chan struct{})}
		c.bodies[subject] = x
		go c.fetch(*n, x) //nolint:gosec // who waits for it may give up, others go on
	}
	c.mu.Unlock()
	select {
	case <-x.done:
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller knows
	}
	n.Body = x.body
	return x.err
}

func (c *Cache) fetch(n notification.Notification, x *cached) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchWithin)
	defer cancel()
	x.body, x.err = Fetch(ctx, c.bus, &n)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(x.done)
	if x.err != nil { // the next one asks again
		delete(c.bodies, x.subject)
		return
	}
	c.order, c.bytes = append(c.order, x), c.bytes+len(x.body)
	for c.bytes > c.most {
		c.drop(c.order[0])
	}
	time.AfterFunc(keepFor, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.drop(x)
	})
}

// drop forgets a body that is kept. The caller holds mu.
func (c *Cache) drop(x *cached) {
	for i, kept := range c.order {
		if kept == x {
			c.order, c.bytes = append(c.order[:i:i], c.order[i+1:]...), c.bytes-len(x.body)
			delete(c.bodies, x.subject)
			return
		}
	}
}
