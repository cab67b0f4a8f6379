package eventstream

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// Consumer pulls events. One goroutine uses it.
type Consumer struct {
	consumer *bus.Consumer
	bus      *bus.Bus
}

// Consume returns the consumer that all publishers share.
func Consume(ctx context.Context, b *bus.Bus) (*Consumer, error) {
	c, err := b.Consumer(ctx, topology.Events, jetstream.ConsumerConfig{
		Durable: topology.ConsumerPublisher, AckWait: bus.AckWait, MaxAckPending: 10_000, MaxDeliver: -1,
	})
	return &Consumer{consumer: c, bus: b}, err
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
		held := c.bus.Hold(m, meta, bus.AckWait)
		if held == nil {
			return
		}
		handle(&Delivery{
			Message:  event.Message{Subject: m.Subject(), Header: m.Headers().Get, Body: m.Data(), Sequence: meta.Sequence.Stream},
			StoredAt: meta.Timestamp, NumDelivered: int(meta.NumDelivered), Again: c.consumer.Again(meta), msg: m, held: held, consumer: c, //nolint:gosec // a count
		})
	})
	return err
}

// Delivery is an event handed to this process, which ends it with exactly one of Ack, Wait, Return and Abandon. Until
// then the process keeps it.
type Delivery struct {
	event.Message

	StoredAt     time.Time
	NumDelivered int // counts from 1
	// Again reports that the event may have been handled long before, by a consumer that was deleted since or that went
	// back. The broker may have forgotten the message ids of its notifications.
	Again bool

	msg      jetstream.Msg
	held     *bus.Held
	consumer *Consumer
}

// Ack settles the event once everything that follows from it is stored. After a lost ack the event comes again and is
// recognised.
func (d *Delivery) Ack() {
	d.held.Release()
	d.consumer.bus.AckSoon(d.msg)
}

// Wait has the broker deliver an event that only a newer version can handle again after a while.
func (d *Delivery) Wait() {
	d.held.Release()
	d.consumer.bus.Newer(topology.Events)
	d.sent("nak", d.msg.NakWithDelay(wireversion.Wait(d.NumDelivered)))
}

// Return has the broker deliver the event again at once.
func (d *Delivery) Return() {
	d.held.Release()
	d.sent("nak", d.msg.Nak())
}

// Abandon has the broker deliver the event again after bus.AckWait: it could not be handled now.
func (d *Delivery) Abandon() { d.held.Release() }

func (d *Delivery) sent(answer string, err error) {
	if err != nil {
		d.consumer.bus.Logger().Debug(answer+" not sent; the event comes again", zap.Error(err))
	}
}
