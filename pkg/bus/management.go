package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

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
func (a *ArrivalBatch) Ack() { Ack(a.msgs) }

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
