package eventstream

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/topology"
)

// Batch is events in the order of CRM_EVENTS, to be acknowledged together.
type Batch struct {
	Events []*Event
	msgs   []jetstream.Msg
}

// Ack settles all of the batch. After a lost ack events come again.
func (b *Batch) Ack() {
	for _, m := range b.msgs {
		_ = m.Ack()
	}
}

// Follower reads all events with their bodies. One goroutine uses it.
type Follower struct{ c *bus.Consumer }

// Follow returns the durable reader with that name, from the oldest event on. All that use its name share it.
func Follow(ctx context.Context, b *bus.Bus, durable string) (*Follower, error) {
	c, err := b.Consumer(ctx, topology.Events, jetstream.ConsumerConfig{
		Durable: durable, AckWait: bus.AckWait, MaxAckPending: 20_000, MaxDeliver: -1,
	})
	return &Follower{c}, err
}

// Pull returns events of together about room bytes at most: the first after a pause, for which it waits about a
// second, or those of the last linger.
func (f *Follower) Pull(ctx context.Context, room int, linger time.Duration) (*Batch, error) {
	var batch Batch
	err := f.c.GatherBytes(ctx, room, linger, func(m jetstream.Msg) {
		if e := stored(m); e != nil {
			batch.Events, batch.msgs = append(batch.Events, e), append(batch.msgs, m)
		}
	})
	return &batch, err
}

// Between hands the events on a subject with sequences from first to last, both included, to handle in order, until it
// returns false.
func Between(ctx context.Context, b *bus.Bus, subject string, first, last uint64, handle func(*Event) bool) error {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}}
	return b.ReadBetween(ctx, topology.Events, cfg, first, last, func(m jetstream.Msg, _ uint64) bool {
		e := stored(m)
		return e == nil || handle(e)
	})
}

// stored returns the message as an event, nil when it lacks JetStream's metadata.
func stored(m jetstream.Msg) *Event {
	meta, err := m.Metadata()
	if err != nil {
		return nil
	}
	return &Event{
		Message:  event.Message{Subject: m.Subject(), Header: m.Headers().Get, Body: m.Data(), Sequence: meta.Sequence.Stream},
		StoredAt: meta.Timestamp, Size: len(m.Data()),
	}
}
