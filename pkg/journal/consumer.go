package journal

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// Consumer reads the summaries of the whole journal from its beginning. One goroutine uses it.
type Consumer struct {
	consumer *bus.Consumer
	bus      *bus.Bus
	decides  bool // records of a newer version wait for one; a reader that only shows them takes the fields it knows
}

// Consume returns a consumer that all processes share which use its name. The broker sends headers only.
func Consume(ctx context.Context, b *bus.Bus, durable string) (*Consumer, error) {
	c, err := b.Consumer(ctx, topology.Attempts, jetstream.ConsumerConfig{
		Durable: durable, AckWait: 30 * time.Second, MaxAckPending: 20_000, MaxDeliver: -1, HeadersOnly: true,
	})
	return &Consumer{c, b, durable == topology.ConsumerMonitor}, err
}

// Batch is summaries in the order of the journal, to be acknowledged together.
type Batch struct {
	Summaries []notification.Summary
	msgs      []jetstream.Msg
}

// Ack settles the whole batch. After a lost ack its summaries come again.
func (b *Batch) Ack() { bus.Ack(b.msgs) }

// Pull returns at most n summaries: the first after a pause, for which it waits about a second, or those of the last
// linger.
func (c *Consumer) Pull(ctx context.Context, n int, linger time.Duration) (*Batch, error) {
	var batch Batch
	add := func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		if version, _ := strconv.Atoi(m.Headers().Get(notification.HeaderSchema)); c.decides &&
			wireversion.Check(version) != nil {
			c.bus.Newer(topology.Attempts)
			_ = m.NakWithDelay(wireversion.Wait(int(meta.NumDelivered))) //nolint:gosec // a count
			return
		}
		s, err := notification.ParseSummary(m.Headers().Get(notification.HeaderSummary), meta.Sequence.Stream)
		if err != nil {
			c.bus.Logger().Error("an unreadable journal record is skipped", zap.Error(err))
			_ = m.Ack()
			return
		}
		batch.Summaries = append(batch.Summaries, s)
		batch.msgs = append(batch.msgs, m)
	}
	return &batch, c.consumer.Gather(ctx, n, linger, add)
}

// Reader reads summaries from a position that its user keeps; see bus.Reader.
type Reader struct {
	*bus.Reader

	last uint64
}

// NewReader returns a reader from a position, from the beginning with a zero one. name is that of its consumer.
func NewReader(b *bus.Bus, name string, at bus.Position) *Reader {
	return &Reader{Reader: b.NewReader(topology.Attempts, name, at)}
}

// Mark remembers the newest record that there is now; Read reads up to it.
func (r *Reader) Mark(ctx context.Context) (met bus.Progress, err error) {
	r.last, met, err = r.Tail(ctx)
	return met, err
}

// Read hands the summaries up to the mark to handle, with the times at which they were stored.
func (r *Reader) Read(ctx context.Context, handle func(s notification.Summary, stored time.Time)) error {
	return r.ReadTo(ctx, r.last, func(msg jetstream.Msg, m *jetstream.MsgMetadata) {
		if s, err := notification.ParseSummary(msg.Headers().Get(notification.HeaderSummary),
			m.Sequence.Stream); err == nil {
			handle(s, m.Timestamp)
		}
	})
}

// Follow hands the account's records to handle as they are written, beginning now, until ctx ends. It calls began once
// it listens. Every caller gets all records.
func Follow(ctx context.Context, b *bus.Bus, account string, began func(), handle func(*notification.Record)) error {
	s, err := b.Stream(ctx, topology.Attempts)
	if err != nil {
		return err
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverNewPolicy, FilterSubjects: []string{topology.SubjectAttempts(account, "*")},
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return fmt.Errorf("follow ATTEMPTS: %w", err)
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(500))
	if err != nil {
		return fmt.Errorf("follow ATTEMPTS: %w", err)
	}
	defer messages.Stop()
	began()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return fmt.Errorf("follow ATTEMPTS: %w", err)
		}
		if err != nil {
			b.Logger().Debug("follow interrupted; it goes on", zap.Error(err))
			continue
		}
		meta, err := m.Metadata()
		if err != nil {
			continue
		}
		if r, err := decode(m.Data(), meta.Sequence.Stream); err == nil || errors.Is(err, wireversion.ErrNewer) {
			handle(r)
		}
	}
}
