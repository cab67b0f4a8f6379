package lane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// Retry is a message on RETRIES, read without a delivery.
type Retry struct {
	notification.Notification

	Sequence uint64
}

// Scheduled returns the notification's message that waits on RETRIES for its time, bus.ErrNotFound when there is none.
func Scheduled(ctx context.Context, b *bus.Bus, account, id string) (*Retry, error) {
	raw, err := b.Last(ctx, topology.Retries, topology.SubjectRetryAt(account, id))
	return retry(raw, err)
}

// Remove deletes a message from RETRIES. Everything that follows from it must be stored before.
func Remove(ctx context.Context, b *bus.Bus, r *Retry) error {
	return b.Delete(ctx, topology.Retries, r.Sequence)
}

func retry(raw *jetstream.RawStreamMsg, err error) (*Retry, error) {
	if err != nil {
		return nil, err
	}
	n, err := notification.Decode(raw.Header, raw.Data)
	if err != nil {
		return nil, fmt.Errorf("read RETRIES message %d: %w", raw.Sequence, err)
	}
	return &Retry{n, raw.Sequence}, nil
}

// ExhaustedConsumer reads the broker's advisories about messages of RETRIES whose deliveries are used up. The broker
// keeps such a message and delivers it no more. One goroutine pulls.
type ExhaustedConsumer struct {
	consumer *bus.Consumer
	bus      *bus.Bus
}

// Exhausted returns the reader of advisories that all dispatchers share.
func Exhausted(ctx context.Context, b *bus.Bus) (*ExhaustedConsumer, error) {
	c, err := b.Consumer(ctx, topology.MaxDeliveries, jetstream.ConsumerConfig{
		Durable: topology.ConsumerMaxDeliveries, AckWait: 30 * time.Second, MaxAckPending: 1000, MaxDeliver: -1,
	})
	return &ExhaustedConsumer{c, b}, err
}

// Pull hands exhausted messages to handle; a nil error from it settles the advisory.
func (c *ExhaustedConsumer) Pull(ctx context.Context, handle func(*Retry) error) error {
	_, err := c.consumer.Fetch(ctx, 100, bus.Unbounded, func(m jetstream.Msg) {
		var advisory struct {
			Stream    string `json:"stream"`
			Consumer  string `json:"consumer"`
			StreamSeq uint64 `json:"stream_seq"`
		}
		if err := json.Unmarshal(m.Data(), &advisory); err != nil || advisory.Stream != topology.Retries || advisory.Consumer != topology.ConsumerRetries {
			_ = m.Ack() // about a consumer that is not ours to repair
			return
		}
		r, err := retry(c.bus.Get(ctx, topology.Retries, "", advisory.StreamSeq))
		if errors.Is(err, bus.ErrNotFound) || err == nil && handle(r) == nil {
			_ = m.Ack()
		}
	})
	return err
}

// LeftBehind yields the due messages of RETRIES at or below the ack floor of the puller's consumer: the broker removes
// acknowledged ones from a work queue, so these ran out of deliveries.
func LeftBehind(ctx context.Context, b *bus.Bus, retries *Puller) iter.Seq2[*Retry, error] {
	return func(yield func(*Retry, error) bool) {
		info, err := retries.consumer.Info(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		for next := uint64(1); next <= info.AckFloor.Stream; {
			raw, err := b.Get(ctx, topology.Retries, topology.SubjectsRetriesDue, next)
			if errors.Is(err, bus.ErrNotFound) || err == nil && raw.Sequence > info.AckFloor.Stream {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			next = raw.Sequence + 1
			r, err := retry(raw, nil)
			if err != nil {
				continue // Pull sets such messages aside
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}
