package eventstream

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

const (
	// AckWait is how long a publisher may be silent about an event before another one gets it. It is short, so that the
	// events of a crashed publisher go on soon; one that lives keeps its events with Keep.
	AckWait = 4 * time.Second
	// keepEvery is how often events under way are kept: twice before their ack wait ends.
	keepEvery = AckWait / 3
)

// Consumer pulls events. One goroutine uses Pull; another one runs Keep.
type Consumer struct {
	consumer *bus.Consumer
	bus      *bus.Bus

	mu       sync.Mutex
	underway map[*Delivery]time.Time // when its ack wait last began
}

// Consume returns the consumer that all publishers share.
func Consume(ctx context.Context, b *bus.Bus) (*Consumer, error) {
	c, err := b.Consumer(ctx, topology.Events, jetstream.ConsumerConfig{
		Durable: topology.ConsumerPublisher, AckWait: AckWait, MaxAckPending: 10_000, MaxDeliver: -1,
	})
	return &Consumer{consumer: c, bus: b, underway: map[*Delivery]time.Time{}}, err
}

// Keep restarts the ack waits of all events under way, again and again, until ctx ends.
func (c *Consumer) Keep(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			c.keep(now)
		}
	}
}

func (c *Consumer) keep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for d, since := range c.underway {
		if now.Sub(since) >= keepEvery/2 {
			d.sent("in progress", d.msg.InProgress())
			c.underway[d] = now
		}
	}
}

// end stops keeping an event.
func (c *Consumer) end(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.underway, d)
}

// Pull asks for at most n events of together at most room bytes (at least topology.MaxMessage) and hands each to handle
// as it comes. It waits about a second for the first.
func (c *Consumer) Pull(ctx context.Context, n, room int, handle func(*Delivery)) error {
	_, err := c.consumer.Fetch(ctx, n, room, func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			c.bus.Logger().Error("a message without JetStream metadata was ignored", zap.Error(err))
			return
		}
		d := &Delivery{
			Message:  event.Message{Subject: m.Subject(), Header: m.Headers().Get, Body: m.Data(), Sequence: meta.Sequence.Stream},
			StoredAt: meta.Timestamp, NumDelivered: int(meta.NumDelivered), Again: c.consumer.Again(meta), msg: m, consumer: c, //nolint:gosec // a count
		}
		c.mu.Lock()
		c.underway[d] = time.Now()
		c.mu.Unlock()
		handle(d)
	})
	return err
}

// Delivery is an event handed to this process, which ends it with exactly one of Ack, Wait, Return and Abandon.
type Delivery struct {
	event.Message

	StoredAt     time.Time
	NumDelivered int // counts from 1
	// Again reports that the event may have been handled long before, by a consumer that was deleted since or that went
	// back. The broker may have forgotten the message ids of its notifications.
	Again bool

	msg      jetstream.Msg
	consumer *Consumer
}

// Ack settles the event once everything that follows from it is stored. After a lost ack the event comes again and is
// recognised.
func (d *Delivery) Ack() {
	d.consumer.end(d)
	d.sent("ack", d.msg.Ack())
}

// Wait has the broker deliver an event that only a newer version can handle again after a while.
func (d *Delivery) Wait() {
	d.consumer.end(d)
	d.consumer.bus.Newer(topology.Events)
	d.sent("nak", d.msg.NakWithDelay(wireversion.Wait(d.NumDelivered)))
}

// Return has the broker deliver the event again at once.
func (d *Delivery) Return() {
	d.consumer.end(d)
	d.sent("nak", d.msg.Nak())
}

// Abandon has the broker deliver the event again after AckWait: it could not be handled now.
func (d *Delivery) Abandon() { d.consumer.end(d) }

func (d *Delivery) sent(answer string, err error) {
	if err != nil {
		d.consumer.bus.Logger().Debug(answer+" not sent; the event comes again", zap.Error(err))
	}
}
