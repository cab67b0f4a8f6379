package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// Record writes r on top of the notification's record with the sequence r.Previous (0: none) and returns
// its sequence. ErrConflict means that another record came first: read LastRecord and follow it.
func (b *Bus) Record(ctx context.Context, r *notification.Record) (uint64, error) {
	return b.StartRecord(r).Wait(ctx)
}

// StartedRecord is a record on its way.
type StartedRecord struct {
	r   *notification.Record
	p   *Started
	err error
}

// StartRecord starts writing r as Record does. r must not be changed before Wait returns.
func (b *Bus) StartRecord(r *notification.Record) *StartedRecord {
	m, err := recordMessage(r)
	if err != nil {
		return &StartedRecord{err: err}
	}
	return &StartedRecord{r: r, p: b.Start(topology.Attempts, m)}
}

// recordMessage returns r as a message that is stored only on top of r.Previous.
func recordMessage(r *notification.Record) (*nats.Msg, error) {
	r.Schema = schema.Newest
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode journal record: %w", err)
	}
	m := NewMessage(topology.SubjectAttempts(r.Account, r.NotificationID), "", body)
	m.Header[notification.HeaderSummary] = []string{r.Summary()}
	m.Header[notification.HeaderSchema] = []string{strconv.Itoa(r.Schema)}
	expectLast(m, r.Previous)
	return m, nil
}

// Wait returns what Record does.
func (s *StartedRecord) Wait(ctx context.Context) (uint64, error) {
	if s.err != nil {
		return 0, s.err
	}
	ack, err := s.p.Receipt(ctx)
	if errors.Is(err, ErrConflict) {
		// Our own record, stored while its answer was lost, conflicts with its repetition.
		if last, lookErr := s.p.w.b.LastRecord(ctx, s.r.Account, s.r.NotificationID); lookErr == nil && last.sameAs(s.r) {
			return last.Sequence, nil
		}
	}
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// LastRecord returns the notification's newest journal record, ErrNotFound when it has none. One that a newer
// version wrote comes with schema.ErrNewer, read as far as this version knows it.
func (b *Bus) LastRecord(ctx context.Context, account, id string) (*Recorded, error) {
	raw, err := b.Last(ctx, topology.Attempts, topology.SubjectAttempts(account, id))
	if err != nil {
		return nil, err
	}
	return decodeRecord(raw.Data, raw.Sequence)
}

// RecordAt returns the journal record with that sequence as LastRecord does, ErrNotFound when it has aged out.
func (b *Bus) RecordAt(ctx context.Context, sequence uint64) (*Recorded, error) {
	raw, err := b.Get(ctx, topology.Attempts, sequence)
	if err != nil {
		return nil, err
	}
	return decodeRecord(raw.Data, raw.Sequence)
}

// History yields last, which was read from the journal, and the records before it, newest first. It ends with
// ErrNotFound when older ones have aged out; a record that a newer version wrote comes with schema.ErrNewer.
func (b *Bus) History(ctx context.Context, last *Recorded) iter.Seq2[*notification.Record, error] {
	return func(yield func(*notification.Record, error) bool) {
		for oldest := &last.Record; yield(oldest, schema.Check(oldest.Schema)); {
			carried, err := oldest.Carried()
			if err != nil && b.ShouldLog("carried records") {
				b.log.Warn("what a record carries cannot be read; it is read from the journal", zap.Uint64("sequence", oldest.Sequence), zap.Error(err))
			}
			for _, r := range carried {
				if !yield(r, schema.Check(r.Schema)) {
					return
				}
				oldest = r
			}
			if oldest.Previous == 0 {
				return
			}
			older, err := b.RecordAt(ctx, oldest.Previous)
			if err != nil && !errors.Is(err, schema.ErrNewer) {
				yield(nil, err)
				return
			}
			oldest = &older.Record
		}
	}
}

// Recorded is a record read from the journal.
type Recorded struct{ notification.Record }

func (r *Recorded) sameAs(o *notification.Record) bool {
	return r.Previous == o.Previous && r.Kind == o.Kind && r.Send == o.Send && r.AttemptsDone == o.AttemptsDone && r.At.Equal(o.At)
}

func decodeRecord(body []byte, sequence uint64) (*Recorded, error) {
	var r Recorded
	if err := json.Unmarshal(body, &r.Record); err != nil {
		return nil, fmt.Errorf("decode journal record %d: %w", sequence, err)
	}
	r.Sequence = sequence
	return &r, schema.Check(r.Schema)
}

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
