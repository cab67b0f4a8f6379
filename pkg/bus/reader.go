package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// Position is how far somebody has read a stream. Created tells one life of the stream from the next: one
// that was deleted and made anew counts its messages from 1 again.
type Position struct {
	Sequence uint64    `json:"sequence"` // everything up to here has been read
	Created  time.Time `json:"created"`
}

// Reader reads the headers of a stream in order, each message once, from a position that its user keeps.
// Its consumer has a name, so that the broker's rights can name it too: of two readers of a stream with one
// name each notices that the other came, and goes on from its position. It is used by one goroutine.
type Reader struct {
	b      *Bus
	stream string
	name   string
	at     Position
	c      jetstream.Consumer
	next   uint64 // sequence of the consumer's next delivery
}

// NewReader returns a reader of a stream from a position. The name is that of its consumer. One goroutine uses it.
func (b *Bus) NewReader(stream, name string, at Position) *Reader {
	return &Reader{b: b, stream: stream, name: name, at: at}
}

// At returns how far the reader has read.
func (r *Reader) At() Position { return r.at }

// Progress reports changes of the stream since the last read.
type Progress struct {
	Renewed bool   // the stream was created again and has none of the messages read before
	Missed  uint64 // messages that were removed before they were read
}

// Tail returns the stream's newest sequence.
func (r *Reader) Tail(ctx context.Context) (last uint64, met Progress, err error) {
	s, err := r.b.Stream(ctx, r.stream)
	if err != nil {
		return 0, met, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return 0, met, fmt.Errorf("look at %s: %w", r.stream, err)
	}
	switch {
	case r.at.Created.IsZero():
		r.at = Position{Created: info.Created, Sequence: max(info.State.FirstSeq, 1) - 1}
	case !r.at.Created.Equal(info.Created):
		// One that was restored from a backup holds messages older than itself, and goes on where it was.
		restored := info.State.LastSeq >= r.at.Sequence && (info.State.Msgs == 0 || info.State.FirstTime.Before(info.Created))
		if r.c = nil; restored {
			r.at.Created = info.Created
		} else {
			r.at, met.Renewed = Position{Created: info.Created}, true
		}
	}
	if first := info.State.FirstSeq; first > r.at.Sequence+1 {
		met.Missed = first - r.at.Sequence - 1
		r.at.Sequence = first - 1
	}
	return info.State.LastSeq, met, nil
}

// ReadTo hands every message up to the sequence to handle.
func (r *Reader) ReadTo(ctx context.Context, last uint64, handle func(m jetstream.Msg, meta *jetstream.MsgMetadata)) error {
	for r.at.Sequence < last {
		if err := r.open(ctx); err != nil {
			return err
		}
		left, err := r.fetch(ctx, handle)
		if err != nil {
			r.c = nil
			return fmt.Errorf("read %s: %w", r.stream, err)
		}
		if !left { // what is missing up to last has been removed
			r.at.Sequence = max(r.at.Sequence, last)
		}
	}
	return nil
}

func (r *Reader) open(ctx context.Context) (err error) {
	if r.c != nil {
		return nil
	}
	r.next = 1
	if err := r.b.js.DeleteConsumer(ctx, r.stream, r.name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("read %s: %w", r.stream, err)
	}
	cfg := jetstream.ConsumerConfig{
		Name: r.name, AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: r.at.Sequence + 1,
		HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: 5 * time.Minute,
	}
	c, err := r.b.js.CreateConsumer(ctx, r.stream, cfg)
	if err == nil {
		err = r.b.answer(ignored(cfg, c.CachedInfo().Config))
		r.c = c
	}
	if err != nil {
		r.c = nil
		return fmt.Errorf("read %s: %w", r.stream, err)
	}
	return nil
}

// errGap says that a delivery was lost on its way.
var errGap = errors.New("a delivery was lost")

// fetch hands on what comes at once and reports whether more is left.
func (r *Reader) fetch(ctx context.Context, handle func(jetstream.Msg, *jetstream.MsgMetadata)) (left bool, err error) {
	batch, err := r.c.FetchNoWait(5000) // a request that stays open would take what is read for nobody
	if err != nil {
		return false, err
	}
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return false, err
		}
		if meta.Sequence.Consumer != r.next {
			return false, errGap
		}
		r.next++
		r.at.Sequence = meta.Sequence.Stream
		handle(m, meta)
		left = meta.NumPending > 0
	}
	if err := batch.Error(); err != nil {
		return false, err
	}
	return left, ctx.Err()
}

// Close ends the reader.
func (r *Reader) Close(ctx context.Context) {
	if r.c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = r.b.js.DeleteConsumer(ctx, r.stream, r.name) // the broker removes it when it is idle
	r.c = nil
}

// NotificationReader reads NOTIFICATIONS.
type NotificationReader struct{ *Reader }

// ReadNotifications returns a reader of NOTIFICATIONS from a position, from the beginning with a zero one.
func (b *Bus) ReadNotifications(name string, at Position) *NotificationReader {
	return &NotificationReader{b.NewReader(topology.Notifications, name, at)}
}

// Read hands over what is there now, without bodies. Sequence is that in NOTIFICATIONS. What is not one of
// our messages is left out: the dispatcher sets it aside.
func (r *NotificationReader) Read(ctx context.Context, began func(Progress), handle func(a Arrival, sequence uint64)) error {
	last, met, err := r.Tail(ctx)
	if err != nil {
		return err
	}
	began(met)
	return r.ReadTo(ctx, last, func(msg jetstream.Msg, m *jetstream.MsgMetadata) {
		h := msg.Headers()
		if n, err := notification.Decode(h, nil); err == nil || errors.Is(err, schema.ErrNewer) { // counting is not handling
			handle(Arrival{n, m.Timestamp, BodySize(msg)}, m.Sequence.Stream)
		}
	})
}

// FirstAcked returns the sequence of NOTIFICATIONS up to which the dispatchers have settled everything; 0
// when they never ran.
func (b *Bus) FirstAcked(ctx context.Context) (uint64, error) {
	c, err := b.js.Consumer(ctx, topology.Notifications, topology.ConsumerFirst)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("consumer %s: %w", topology.ConsumerFirst, err)
	}
	return c.CachedInfo().AckFloor.Stream, nil
}

// maxListed is how many subjects of RETRIES are listed at once. The broker goes through all of them for
// each page of 100,000, so more are listed account by account.
const maxListed = 100_000

// OnRetries shows every notification that has a message on RETRIES, scheduled or due; one can be shown
// twice. Of a long list only those of the accounts are looked at.
func (b *Bus) OnRetries(ctx context.Context, accounts func() []string, show func(account string, id uuid.UUID, scheduled bool)) error {
	s, err := b.Stream(ctx, topology.Retries)
	if err != nil {
		return err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return fmt.Errorf("list RETRIES: %w", err)
	}
	filters := []string{"gancho.retries.>"}
	switch {
	case info.State.Msgs == 0:
		return nil
	case info.State.NumSubjects > maxListed:
		filters = nil
		for _, a := range accounts() {
			filters = append(filters, "gancho.retries.*."+a+".>")
		}
	}
	for _, filter := range filters {
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
		if err != nil {
			return fmt.Errorf("list RETRIES: %w", err)
		}
		for subject := range info.State.Subjects {
			t := strings.Split(subject, ".")
			if id, err := uuid.Parse(t[len(t)-1]); err == nil && len(t) >= 5 {
				show(t[3], id, t[2] == "at")
			}
		}
	}
	return nil
}

// Scheduled returns the notification's message that waits on RETRIES for its time, ErrNotFound when there is none.
func (b *Bus) Scheduled(ctx context.Context, account, id string) (*Exhausted, error) {
	raw, err := b.Last(ctx, topology.Retries, topology.SubjectRetryAt(account, id))
	if err != nil {
		return nil, err
	}
	n, err := notification.Decode(raw.Header, raw.Data)
	if err != nil {
		return nil, fmt.Errorf("read from %s: %w", topology.Retries, err)
	}
	return &Exhausted{n, raw.Sequence}, nil
}

// ParkedOf returns the ids of the webhook's notifications on PARKED, in whatever lane, at most n of them.
// It reads the messages one by one.
func (b *Bus) ParkedOf(ctx context.Context, account, webhook string, n int) (map[uuid.UUID]bool, error) {
	out := map[uuid.UUID]bool{}
	for next := uint64(1); len(out) < n; {
		raw, err := b.Get(ctx, topology.Parked, next, jetstream.WithGetMsgSubject(topology.SubjectParked(account, "*", webhook)))
		if errors.Is(err, ErrNotFound) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		next = raw.Sequence + 1
		if id, err := uuid.Parse(raw.Header.Get(notification.HeaderID)); err == nil {
			out[id] = true
		}
	}
	return out, nil
}

// Reschedule is ScheduleRetry for a repair: it reports whether the broker stored the message. If it did not,
// the same move had been stored before.
func (b *Bus) Reschedule(ctx context.Context, n *notification.Notification, at time.Time) (stored bool, err error) {
	ack, err := b.Publish(ctx, topology.Retries, scheduled(n, at))
	return err == nil && !ack.Duplicate, err
}
