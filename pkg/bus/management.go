package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// Position returns the sequences of the oldest and the newest journal record; both are 0 when there never
// was one.
func (b *Bus) Position(ctx context.Context) (first, last uint64, err error) {
	s, err := b.Stream(ctx, topology.Attempts)
	if err != nil {
		return 0, 0, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("look at ATTEMPTS: %w", err)
	}
	return info.State.FirstSeq, info.State.LastSeq, nil
}

// SummariesOf hands the summaries of the journal records with sequences from first to last, both included, to
// handle in order. It returns an error when it could not read to the end.
func (b *Bus) SummariesOf(ctx context.Context, first, last uint64, handle func(*notification.Summary)) error {
	cfg := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(first, 1), HeadersOnly: true}
	return b.Read(ctx, topology.Attempts, cfg, func(m jetstream.Msg, sequence, pending uint64) (bool, error) {
		if sequence > last {
			return false, nil
		}
		s, err := notification.ParseSummary(m.Headers().Get(notification.HeaderSummary), sequence)
		if err != nil {
			b.log.Error("an unreadable journal record is skipped", zap.Error(err))
		} else {
			handle(&s)
		}
		return sequence < last && pending > 0, nil
	})
}

// Read hands the messages of a stream to handle in order, until handle returns false, an error, nothing is
// left, or ctx ends. pending is how many the broker says follow.
func (b *Bus) Read(ctx context.Context, stream string, cfg jetstream.OrderedConsumerConfig, handle func(m jetstream.Msg, sequence, pending uint64) (bool, error)) error {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return err
	}
	cfg.InactiveThreshold = time.Minute
	c, err := s.OrderedConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	info, err := c.Info(ctx)
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	if info.NumPending == 0 && info.Delivered.Consumer == 0 {
		return nil
	}
	prefetch := 500
	if stream == topology.Events && !cfg.HeadersOnly {
		prefetch = 32 // bodies may be large
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(prefetch))
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	defer messages.Stop()
	for {
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		m, err := messages.Next(jetstream.NextContext(wait))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			// Nothing came although something was there: it may have aged out meanwhile.
			if info, infoErr := c.Info(ctx); infoErr == nil && info.NumPending == 0 {
				return nil
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", stream, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read %s: %w", stream, err)
		}
		more, err := handle(m, meta.Sequence.Stream, meta.NumPending)
		if err != nil || !more {
			return err
		}
		if meta.NumPending == 0 {
			return nil
		}
	}
}

// Arrival is a message on NOTIFICATIONS, without its body.
type Arrival struct {
	notification.Notification

	StoredAt time.Time
	Size     int // bytes of its body
}

// ArrivalBatch is arrivals read in order, to be acknowledged together.
type ArrivalBatch struct {
	Arrivals []Arrival
	msgs     []jetstream.Msg
}

// Ack settles all of the batch. A lost ack means that arrivals come again.
func (a *ArrivalBatch) Ack() { settle(a.msgs) }

// ArrivalConsumer reads the headers of NOTIFICATIONS.
type ArrivalConsumer struct{ *Consumer }

// Arrivals returns the durable reader of what is put on NOTIFICATIONS, shared by all that use its name.
func (b *Bus) Arrivals(ctx context.Context, durable string) (*ArrivalConsumer, error) {
	c, err := b.Consumer(ctx, topology.Notifications, jetstream.ConsumerConfig{
		Durable: durable, AckWait: 30 * time.Second, MaxAckPending: 20_000, MaxDeliver: -1, HeadersOnly: true,
	})
	return &ArrivalConsumer{c}, err
}

// Pull returns at most n arrivals; it waits for the first about a second, and for more at most linger.
func (c *ArrivalConsumer) Pull(ctx context.Context, n int, linger time.Duration) (*ArrivalBatch, error) {
	var batch ArrivalBatch
	add := func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		d, err := notification.Decode(m.Headers(), nil)
		if err != nil && !errors.Is(err, schema.ErrNewer) {
			_ = m.Ack() // the dispatcher deals with it
			return
		}
		batch.Arrivals = append(batch.Arrivals, Arrival{d, meta.Timestamp, BodySize(m)})
		batch.msgs = append(batch.msgs, m)
	}
	return &batch, c.Gather(ctx, n, linger, add)
}

// Follow hands the account's journal records to handle as they are written, beginning now, until ctx ends.
// began is called once it listens. Every caller gets all of them.
func (b *Bus) Follow(ctx context.Context, account string, began func(), handle func(*notification.Record)) error {
	s, err := b.Stream(ctx, topology.Attempts)
	if err != nil {
		return err
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverNewPolicy, FilterSubjects: []string{topology.SubjectAttempts(account, "*")}, InactiveThreshold: time.Minute,
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
			b.log.Debug("follow interrupted; it goes on", zap.Error(err))
			continue
		}
		meta, err := m.Metadata()
		if err != nil {
			continue
		}
		if r, err := decodeRecord(m.Data(), meta.Sequence.Stream); err == nil || errors.Is(err, schema.ErrNewer) {
			handle(&r.Record)
		}
	}
}
