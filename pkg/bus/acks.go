package bus

import (
	"cmp"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// ackDelay is how long an ack waits for others.
	ackDelay = 50 * time.Millisecond
	// ackedBytes is how many bytes of messages may wait for their acks.
	ackedBytes = 1 << 20
)

// acks are those that wait for others. They are safe for concurrent use.
type acks struct {
	delay time.Duration // instead of ackDelay, in tests

	mu    sync.Mutex
	msgs  []jetstream.Msg
	bytes int
}

// AckSoon acknowledges a message within ackDelay, together with others: an ack by itself costs this process and the
// broker several system calls. A crash before loses it, and the message comes again.
func (b *Bus) AckSoon(m jetstream.Msg) {
	a := &b.acks
	a.mu.Lock()
	a.msgs = append(a.msgs, m)
	a.bytes += len(m.Data())
	first, full := len(a.msgs) == 1, a.bytes > ackedBytes
	a.mu.Unlock()
	switch {
	case full:
		a.send()
	case first:
		time.AfterFunc(cmp.Or(a.delay, ackDelay), a.send)
	}
}

// send sends those that wait.
func (a *acks) send() {
	a.mu.Lock()
	msgs := a.msgs
	a.msgs, a.bytes = nil, 0
	a.mu.Unlock()
	Ack(msgs)
}
