package eventstream

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// AckWait is how long a publisher may be silent about an event before another one gets it.
const AckWait = 30 * time.Second

// Consumer pulls events. One goroutine uses it.
type Consumer struct {
	consumer *bus.Consumer
	bus      *bus.Bus
}

// Consume returns the consumer that all publishers share.
func Consume(ctx context.Context, b *bus.Bus) (*Consumer, error) {
	c, err := b.Consumer(ctx, topology.Events, jetstream.ConsumerConfig{
		Durable: topology.ConsumerPublisher, AckWait: AckWait, MaxAckPending: 10_000, MaxDeliver: -1,
	})
	return &Consumer{c, b}, err
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
		handle(&Delivery{
			Message:  event.Message{Subject: m.Subject(), Header: m.Headers().Get, Body: m.Data(), Sequence: meta.Sequence.Stream},
			StoredAt: meta.Timestamp, NumDelivered: int(meta.NumDelivered), Again: c.consumer.Again(meta), msg: m, bus: c.bus, //nolint:gosec // a count
		})
	})
	return err
}

// Delivery is an event handed to this process, which settles it with one of Ack, Wait and Return. The broker delivers
// an event again that is not settled within AckWait.
type Delivery struct {
	event.Message

	StoredAt     time.Time
	NumDelivered int // counts from 1
	// Again reports that the event may have been handled long before, by a consumer that was deleted since or that went
	// back. The broker may have forgotten the message ids of its notifications.
	Again bool

	msg jetstream.Msg
	bus *bus.Bus
}

// Ack settles the event once everything that follows from it is stored. After a lost ack the event comes again and is
// recognised.
func (d *Delivery) Ack() { d.sent("ack", d.msg.Ack()) }

// InProgress restarts the event's ack wait.
func (d *Delivery) InProgress() { _ = d.msg.InProgress() }

// Wait has the broker deliver an event that only a newer version can handle again after a while.
func (d *Delivery) Wait() {
	d.bus.Newer(topology.Events)
	d.sent("nak", d.msg.NakWithDelay(schema.Wait(d.NumDelivered)))
}

// Return has the broker deliver the event again at once.
func (d *Delivery) Return() { d.sent("nak", d.msg.Nak()) }

func (d *Delivery) sent(answer string, err error) {
	if err != nil {
		d.bus.Logger().Debug(answer+" not sent; the event comes again", zap.Error(err))
	}
}
