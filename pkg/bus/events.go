package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/event"
	"gancho/pkg/topology"
)

// EventMessage is a message of CRM_EVENTS handed to this process. Ack it when all that follows from it is
// stored.
type EventMessage struct {
	event.Message

	StoredAt     time.Time
	NumDelivered int
	// Again says that it may have been handled long before, by a consumer that somebody deleted since or that
	// went back; message ids may be forgotten then.
	Again bool

	msg jetstream.Msg
	b   *Bus
}

// Ack settles the event. A lost ack means that it comes again and is recognised.
func (m *EventMessage) Ack() {
	if err := m.msg.Ack(); err != nil {
		m.b.log.Debug("ack not sent; the event will come again", zap.Error(err))
	}
}

// InProgress tells the broker that the event is being worked on, which starts its ack wait anew.
func (m *EventMessage) InProgress() { _ = m.msg.InProgress() }

// Wait leaves an event that only a newer version can handle to one; it is handed out again after a while.
func (m *EventMessage) Wait() {
	m.b.metrics.newer.WithLabelValues(topology.Events).Inc()
	m.b.Newer(topology.Events)
	if err := m.msg.NakWithDelay(waiting(m.NumDelivered)); err != nil {
		m.b.log.Debug("nak not sent; the event will come again", zap.Error(err))
	}
}

// Return has the broker hand the event out again at once.
func (m *EventMessage) Return() {
	if err := m.msg.Nak(); err != nil {
		m.b.log.Debug("nak not sent; the event will come again", zap.Error(err))
	}
}

// EventsConsumer pulls CRM_EVENTS.
type EventsConsumer struct{ *Consumer }

// EventsAckWait is how long a publisher may be silent about an event before another one gets it.
const EventsAckWait = 30 * time.Second

// Events returns the publisher's consumer of CRM_EVENTS.
func (b *Bus) Events(ctx context.Context) (*EventsConsumer, error) {
	c, err := b.Consumer(ctx, topology.Events, jetstream.ConsumerConfig{
		Durable: topology.ConsumerPublisher, AckWait: EventsAckWait, MaxAckPending: 10_000, MaxDeliver: -1,
	})
	return &EventsConsumer{c}, err
}

// Pull asks for at most n events of together at most room bytes (at least MaxMessage) and hands each to handle as it comes.
func (c *EventsConsumer) Pull(ctx context.Context, n, room int, handle func(*EventMessage)) error {
	_, err := c.Fetch(ctx, n, room, func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			c.b.log.Error("a message without JetStream metadata was ignored", zap.Error(err))
			return
		}
		h := m.Headers()
		handle(&EventMessage{
			Message:  event.Message{Subject: m.Subject(), Header: h.Get, Body: m.Data(), Sequence: meta.Sequence.Stream},
			StoredAt: meta.Timestamp, NumDelivered: int(meta.NumDelivered), Again: c.Again(meta), msg: m, b: c.b, //nolint:gosec // a count
		})
	})
	return err
}

// Reject stores what cannot be an event on REJECTED_EVENTS, its bytes unchanged.
func (b *Bus) Reject(ctx context.Context, m event.Message, why *event.Rejected) error {
	r := NewMessage("gancho.rejected."+string(why.Reason), topology.Events+":"+strconv.FormatUint(m.Sequence, 10), m.Body)
	r.Header[topology.HeaderReason] = []string{string(why.Reason)}
	r.Header[topology.HeaderSubject] = []string{m.Subject}
	_, err := b.Publish(ctx, topology.Rejected, r)
	return err
}

// Published says where an event was stored.
type Published struct {
	Stream    string
	Sequence  uint64
	Duplicate bool
}

// PublishEvent stores an event as the CRM would, with that message id and those headers, once: it returns an error, and does
// not repeat, when the broker gives no answer. It is for ingest, whose caller decides.
func (b *Bus) PublishEvent(ctx context.Context, subject, msgID string, headers map[string]string, body []byte) (Published, error) {
	m := NewMessage(subject, msgID, body)
	for name, value := range headers {
		m.Header[name] = []string{value}
	}
	p := b.Start(topology.Events, m)
	ack, err := p.answer(ctx)
	if err != nil {
		if final := p.final(err); final != nil {
			err = final
		}
		return Published{}, fmt.Errorf("publish event: %w", err)
	}
	return Published{ack.Stream, ack.Sequence, ack.Duplicate}, nil
}

// purgeEvery is how often NOTIFICATIONS is trimmed.
const purgeEvery = 30 * time.Second

// TrimNotifications purges from NOTIFICATIONS what the dispatchers acknowledged longer than keep ago,
// until ctx ends. keep is the duplicate window: ids in it must survive a broker restart.
func (b *Bus) TrimNotifications(ctx context.Context, keep time.Duration) error {
	s, err := b.Stream(ctx, topology.Notifications)
	if err != nil {
		return err
	}
	type mark struct {
		at    time.Time
		floor uint64
	}
	var marks []mark // ack floors, oldest first
	ticker := time.NewTicker(min(purgeEvery, max(keep/4, time.Second)))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		c, err := s.Consumer(ctx, topology.ConsumerFirst)
		if err != nil {
			b.log.Debug("trim of NOTIFICATIONS put off", zap.Error(err))
			continue
		}
		now := time.Now()
		marks = append(marks, mark{now, c.CachedInfo().AckFloor.Stream})
		var upTo uint64
		for len(marks) > 0 && now.Sub(marks[0].at) > keep {
			upTo, marks = marks[0].floor, marks[1:]
		}
		if upTo == 0 {
			continue
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSequence(upTo+1)); err != nil {
			b.log.Warn("trim of NOTIFICATIONS failed; it is tried again", zap.Error(err))
		}
	}
}

// Notified reports whether a notification exists already: its message is on NOTIFICATIONS, or something of it
// is in the journal. It is for events that may have been handled before the broker's memory of message ids.
func (b *Bus) Notified(ctx context.Context, account, id string) (bool, error) {
	for stream, subject := range map[string]string{topology.Notifications: topology.SubjectNotification(account, id), topology.Attempts: topology.SubjectAttempts(account, id)} {
		s, err := b.known(ctx, stream)
		if err == nil {
			_, err = s.GetLastMsgForSubject(ctx, subject)
		}
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, jetstream.ErrMsgNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		default:
			return false, fmt.Errorf("look for a notification on %s: %w", stream, err)
		}
	}
	return false, nil
}

// NextEvent returns the account's first event at or behind a sequence, ErrNotFound when there is none.
func (b *Bus) NextEvent(ctx context.Context, account string, sequence uint64) (*StoredEvent, error) {
	raw, err := b.get(ctx, topology.Events, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(event.SubjectPrefix+account+".*"))
	})
	if err != nil {
		return nil, err
	}
	return &StoredEvent{
		Message:  event.Message{Subject: raw.Subject, Header: raw.Header.Get, Body: raw.Data, Sequence: raw.Sequence},
		StoredAt: raw.Time, Size: len(raw.Data),
	}, nil
}

// FreeNotifications purges NOTIFICATIONS up to a sequence that the dispatchers have settled. The broker recognises the
// message ids of what was purged until it restarts.
func (b *Bus) FreeNotifications(ctx context.Context, upTo uint64) error {
	s, err := b.Stream(ctx, topology.Notifications)
	if err != nil {
		return err
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(upTo+1)); err != nil {
		return fmt.Errorf("purge NOTIFICATIONS: %w", err)
	}
	return nil
}

// ServerID identifies one run of the broker's server that this process is connected to, "" without a connection.
func (b *Bus) ServerID() string { return b.nc.ConnectedServerId() }

// EventAt reads an event back from CRM_EVENTS; ErrNotFound when it has aged out.
func (b *Bus) EventAt(ctx context.Context, sequence uint64) (event.Message, time.Time, error) {
	raw, err := b.get(ctx, topology.Events, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetMsg(ctx, sequence)
	})
	if err != nil {
		return event.Message{}, time.Time{}, err
	}
	return event.Message{Subject: raw.Subject, Header: raw.Header.Get, Body: raw.Data, Sequence: raw.Sequence}, raw.Time, nil
}
