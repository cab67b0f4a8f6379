package bus

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// AckWait is how long a process may be silent about a message that it holds before the broker hands the message to
// another one. It is short, so that the work of a crashed process goes on soon; one that lives keeps its work with
// Hold, however long that takes.
const AckWait = 4 * time.Second

// holder restarts the ack waits of all messages that this process holds. It is safe for concurrent use.
type holder struct {
	b     *Bus
	begin sync.Once
	again chan struct{} // there is a new connection

	mu   sync.Mutex
	held map[place]*Held
}

// place is where a message is stored.
type place struct {
	stream   string
	sequence uint64
}

// Held is a message that this process works on. It is safe for concurrent use.
type Held struct {
	holder *holder
	place  place
	msg    jetstream.Msg
	wait   time.Duration

	// The rest is guarded by the holder's mu.
	since     time.Time // when its ack wait began
	lost      bool      // its ack wait may have ended
	delivered uint64    // how often it was delivered when it came to this process last
}

// Hold keeps m, which has just come from a consumer with that ack wait, for this process until Release. It returns nil
// for a message that this process holds already: the broker delivered it again, as after an outage, while it is worked
// on.
func (b *Bus) Hold(m jetstream.Msg, meta *jetstream.MsgMetadata, wait time.Duration) *Held {
	x := &b.holder
	x.begin.Do(func() { b.keepers.Go(func() { x.run(b.closing) }) })
	h := &Held{
		holder: x, place: place{meta.Stream, meta.Sequence.Stream}, msg: m, wait: wait, since: time.Now(),
		delivered: meta.NumDelivered,
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if before := x.held[h.place]; before != nil {
		if h.delivered == before.delivered+1 { // no other process had it in between
			before.since, before.lost, before.delivered = h.since, false, h.delivered
		}
		return nil
	}
	x.held[h.place] = h
	return h
}

// Release stops keeping the message. It is released before or after it is settled, or comes again.
func (h *Held) Release() {
	if h == nil {
		return
	}
	h.holder.mu.Lock()
	defer h.holder.mu.Unlock()
	if h.holder.held[h.place] == h {
		delete(h.holder.held, h.place)
	}
}

// Ours reports whether no other process can have got the message meanwhile. It is false after the process was frozen,
// or cut off from the broker, for about as long as the ack wait. One that was never held is ours.
func (h *Held) Ours() bool {
	if h == nil {
		return true
	}
	h.holder.mu.Lock()
	defer h.holder.mu.Unlock()
	return !h.late(time.Now())
}

// late reports whether the ack wait may have ended. The caller holds mu.
func (h *Held) late(now time.Time) bool {
	h.lost = h.lost || now.Sub(h.since) > h.wait-h.wait/8
	return h.lost
}

// run looks at the held messages often enough for the shortest ack wait that is used.
func (x *holder) run(ctx context.Context) {
	tick := time.NewTicker(AckWait / 16)
	defer tick.Stop()
	for {
		reconnected := false
		select {
		case <-ctx.Done():
			return
		case <-x.again:
			reconnected = true
		case <-tick.C:
		}
		if x.b.link.isUp() {
			x.keep(time.Now(), reconnected)
		}
	}
}

// keep restarts the ack waits that began a while ago, or all of them: a broker that restarts gives those that it finds
// open a second or less.
func (x *holder) keep(now time.Time, all bool) {
	var due []*Held
	x.mu.Lock()
	for _, h := range x.held {
		if !h.late(now) && (all || now.Sub(h.since) >= h.wait/4) {
			due = append(due, h)
		}
	}
	x.mu.Unlock()
	sent := due[:0]
	for _, h := range due {
		if err := h.msg.InProgress(); err == nil { // else it was settled meanwhile, or the connection is lost
			sent = append(sent, h)
		}
	}
	if len(sent) == 0 {
		return
	}
	if err := x.b.nc.FlushTimeout(AckWait / 4); err != nil { // the broker may not have them
		x.b.log.Debug("in progress not sent", zap.Error(err))
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, h := range sent {
		h.since = now
	}
}
