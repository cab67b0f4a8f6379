package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// PendingNotification returns the newest message of the notification on NOTIFICATIONS, ErrNotFound when
// there is none (any more). One that a newer version wrote comes with schema.ErrNewer, as from LastRecord.
func (b *Bus) PendingNotification(ctx context.Context, account, id string) (*notification.Notification, error) {
	return b.readNotification(ctx, topology.Notifications, topology.SubjectNotification(account, id))
}

// FailedNotification returns the kept payload of a permanently failed notification.
func (b *Bus) FailedNotification(ctx context.Context, account, webhook, id string) (*notification.Notification, error) {
	return b.readNotification(ctx, topology.Failed, topology.SubjectFailed(account, webhook, id))
}

func (b *Bus) readNotification(ctx context.Context, stream, subject string) (*notification.Notification, error) {
	raw, err := b.Last(ctx, stream, subject)
	if err != nil {
		return nil, err
	}
	n, err := notification.Decode(raw.Header, raw.Data)
	if err != nil {
		return &n, fmt.Errorf("read from %s: %w", stream, err)
	}
	return &n, nil
}

// Exhausted is a message on RETRIES that the broker will not deliver again because its deliveries are used up.
type Exhausted struct {
	notification.Notification
	Sequence uint64
}

// ExhaustedConsumer reads the broker's max-deliveries advisories.
type ExhaustedConsumer struct{ *Consumer }

// Exhausted returns the reader of advisories about RETRIES.
func (b *Bus) Exhausted(ctx context.Context) (*ExhaustedConsumer, error) {
	c, err := b.Consumer(ctx, topology.MaxDeliveries, jetstream.ConsumerConfig{
		Durable: topology.ConsumerMaxDeliveries, AckWait: 30 * time.Second, MaxAckPending: 1000, MaxDeliver: -1,
	})
	return &ExhaustedConsumer{c}, err
}

// Pull hands the exhausted messages to handle; a nil error from it settles the advisory.
func (c *ExhaustedConsumer) Pull(ctx context.Context, handle func(*Exhausted) error) error {
	_, err := c.Fetch(ctx, 100, Unbounded, func(m jetstream.Msg) {
		var advisory struct {
			Stream    string `json:"stream"`
			Consumer  string `json:"consumer"`
			StreamSeq uint64 `json:"stream_seq"`
		}
		if err := json.Unmarshal(m.Data(), &advisory); err != nil || advisory.Stream != topology.Retries || advisory.Consumer != topology.ConsumerRetries {
			_ = m.Ack() // about a consumer that is not ours to repair
			return
		}
		x, err := c.b.ExhaustedAt(ctx, advisory.StreamSeq)
		if errors.Is(err, ErrNotFound) || err == nil && handle(x) == nil {
			_ = m.Ack()
		}
	})
	return err
}

// ExhaustedAt reads the message of RETRIES with that sequence.
func (b *Bus) ExhaustedAt(ctx context.Context, sequence uint64) (*Exhausted, error) {
	raw, err := b.Get(ctx, topology.Retries, sequence)
	if err != nil {
		return nil, err
	}
	n, err := notification.Decode(raw.Header, raw.Data)
	if err != nil {
		return nil, fmt.Errorf("read RETRIES message %s: %w", strconv.FormatUint(sequence, 10), err)
	}
	return &Exhausted{n, sequence}, nil
}

// Remove deletes a message from RETRIES after what follows from it was stored.
func (b *Bus) Remove(ctx context.Context, x *Exhausted) error {
	s, err := b.Stream(ctx, topology.Retries)
	if err != nil {
		return err
	}
	if err := s.DeleteMsg(ctx, x.Sequence); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("delete from RETRIES: %w", err)
	}
	return nil
}

// LeftBehind yields the messages of RETRIES that are due and at or below the consumer's ack floor: acked
// ones are removed from a work queue, so these ran out of deliveries.
func (b *Bus) LeftBehind(ctx context.Context, retries *Puller) iter.Seq2[*Exhausted, error] {
	return func(yield func(*Exhausted, error) bool) {
		info, err := retries.Info(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		for next := uint64(1); next <= info.AckFloor.Stream; {
			raw, err := b.Get(ctx, topology.Retries, next, jetstream.WithGetMsgSubject("gancho.retries.due.>"))
			if errors.Is(err, ErrNotFound) || err == nil && raw.Sequence > info.AckFloor.Stream {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			next = raw.Sequence + 1
			n, err := notification.Decode(raw.Header, raw.Data)
			if err != nil {
				continue // Pull sets such messages aside
			}
			if !yield(&Exhausted{n, raw.Sequence}, nil) {
				return
			}
		}
	}
}
