// Package eventstream reads and writes CRM_EVENTS, the stream of the CRM's events: the publisher's consumer, the events
// of a range for replays, and single events.
package eventstream

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// Publish stores an event with that message id and those headers, as the CRM would. It returns an error, and does not
// repeat, when the broker gives no answer: the event may then be stored or not.
func Publish(
	ctx context.Context, b *bus.Bus, subject, msgID string, headers map[string]string, body []byte,
) (*jetstream.PubAck, error) {
	m := bus.NewMessage(subject, msgID, body)
	for name, value := range headers {
		m.Header[name] = []string{value}
	}
	ack, err := b.PublishOnce(ctx, topology.Events, m)
	if err != nil {
		return nil, fmt.Errorf("publish event: %w", err)
	}
	return ack, nil
}

// Event is a stored event.
type Event struct {
	event.Message // Body is nil when only headers were read

	StoredAt time.Time
	Size     int // bytes of the body
}

// At returns the event with that sequence, bus.ErrNotFound when it has aged out.
func At(ctx context.Context, b *bus.Bus, sequence uint64) (*Event, error) {
	return get(ctx, b, "", sequence)
}

// Notification makes a webhook's notification of an event once more, from the event with that sequence. The error is
// bus.ErrNotFound when it has aged out, or when the stream was created again and holds another event there.
func Notification(
	ctx context.Context, b *bus.Bus, sequence uint64, eventID, webhookID string,
) (*notification.Notification, error) {
	if sequence == 0 { // it is not known
		return nil, bus.ErrNotFound
	}
	e, err := At(ctx, b, sequence)
	if err != nil {
		return nil, err
	}
	ev, rejected := event.Parse(e.Message)
	id, err := uuid.Parse(webhookID)
	if rejected != nil || err != nil || !ev.Is(eventID) {
		return nil, bus.ErrNotFound
	}
	ev.ID = eventID // an event can have an older id
	n := notification.First(&ev, e.StoredAt, id)
	return &n, nil
}

// Next returns the account's first event with that sequence or a later one, bus.ErrNotFound when there is none.
func Next(ctx context.Context, b *bus.Bus, account string, sequence uint64) (*Event, error) {
	return get(ctx, b, event.SubjectPrefix+account+".*", sequence)
}

func get(ctx context.Context, b *bus.Bus, subject string, sequence uint64) (*Event, error) {
	raw, err := b.Get(ctx, topology.Events, subject, sequence)
	if err != nil {
		return nil, err
	}
	return &Event{
		Message:  event.Message{Subject: raw.Subject, Header: raw.Header.Get, Body: raw.Data, Sequence: raw.Sequence},
		StoredAt: raw.Time, Size: len(raw.Data),
	}, nil
}

// Subjects returns the subjects on which the account has events with a wanted name.
func Subjects(ctx context.Context, b *bus.Bus, account string, wanted func(eventName string) bool) ([]string, error) {
	subjects, err := b.Subjects(ctx, topology.Events, event.SubjectPrefix+account+".>")
	if err != nil {
		return nil, err
	}
	var out []string
	for subject := range subjects {
		if name := subject[strings.LastIndexByte(subject, '.')+1:]; wanted(name) {
			out = append(out, subject)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Range selects events on at least one subject. They were stored before To and from From on; with After above 0, their
// sequences are above After instead.
type Range struct {
	Subjects []string
	From, To time.Time
	After    uint64
}

func (r Range) config() jetstream.OrderedConsumerConfig {
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: r.Subjects, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &r.From,
	}
	if r.After > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartSequencePolicy, r.After+1, nil
	}
	return cfg
}

// Count returns how many events are in the range, without reading them.
func Count(ctx context.Context, b *bus.Bus, r Range) (uint64, error) {
	s, err := b.Stream(ctx, topology.Events)
	if err != nil {
		return 0, err
	}
	from := func(r Range) (uint64, error) {
		c, err := s.OrderedConsumer(ctx, r.config())
		if err != nil {
			return 0, fmt.Errorf("count CRM_EVENTS: %w", err)
		}
		info := c.CachedInfo()
		if err := s.DeleteConsumer(ctx, info.Name); err != nil {
			b.Logger().Debug("a consumer of CRM_EVENTS was not deleted; it times out", zap.Error(err))
		}
		return info.NumPending, nil
	}
	all, err := from(r)
	if err != nil || all == 0 || r.To.After(time.Now()) {
		return all, err
	}
	after, err := from(Range{Subjects: r.Subjects, From: r.To})
	return all - min(after, all), err
}

// Read hands the events of the range to handle in order until it returns false or an error.
func Read(ctx context.Context, b *bus.Bus, r Range, headersOnly bool, handle func(*Event) (bool, error)) error {
	cfg := r.config()
	cfg.HeadersOnly = headersOnly
	return b.Read(ctx, topology.Events, cfg, func(m jetstream.Msg, sequence, _ uint64) (bool, error) {
		meta, err := m.Metadata()
		if err != nil {
			return false, fmt.Errorf("read CRM_EVENTS: %w", err)
		}
		if !meta.Timestamp.Before(r.To) {
			return false, nil
		}
		e := &Event{
			Message:  event.Message{Subject: m.Subject(), Header: m.Headers().Get, Body: m.Data(), Sequence: sequence},
			StoredAt: meta.Timestamp, Size: len(m.Data()),
		}
		if headersOnly {
			e.Body, e.Size = nil, bus.BodySize(m)
		}
		return handle(e)
	})
}

// SizeReader reads the sizes of the events in order.
type SizeReader struct{ *bus.Reader }

// Sizes returns a reader that begins with the oldest event. name is that of its consumer; see bus.Reader.
func Sizes(b *bus.Bus, name string) *SizeReader {
	return &SizeReader{b.NewReader(topology.Events, name, bus.Position{})}
}

// Read hands the events that are stored now to handle: account, sequence and bytes of the body.
func (r *SizeReader) Read(ctx context.Context, handle func(account string, sequence uint64, bytes int)) error {
	last, _, err := r.Tail(ctx)
	if err != nil {
		return err
	}
	return r.ReadTo(ctx, last, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		account, _, _ := strings.Cut(strings.TrimPrefix(m.Subject(), event.SubjectPrefix), ".")
		handle(account, meta.Sequence.Stream, bus.BodySize(m))
	})
}
