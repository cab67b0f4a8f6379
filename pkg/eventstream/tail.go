package eventstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/topology"
)

// tailAhead is how many events a listener asks the broker for at a time: their bodies may be large.
const tailAhead = 4

// Listener receives an account's events as they are stored.
type Listener struct {
	// After is the sequence behind which it begins; 0: with the next event that is stored.
	After uint64
	// Began is called once it listens.
	Began func()
	// Handle is called with each event in order. The next one is read when it returns, so a slow one falls behind and
	// loses nothing that is kept. Idle is called whenever nothing came for IdleEvery. Tail ends with their errors.
	Handle    func(*Event) error
	Idle      func() error
	IdleEvery time.Duration
}

// Tail hands the account's events to f until ctx ends, which is no error.
func Tail(ctx context.Context, b *bus.Bus, account string, f Listener) error {
	s, err := b.Stream(ctx, topology.Events)
	if err != nil {
		return err
	}
	cfg := jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverNewPolicy, FilterSubjects: []string{event.SubjectPrefix + account + ".*"},
		InactiveThreshold: time.Minute,
	}
	if f.After > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.After+1
	}
	c, err := s.OrderedConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("follow CRM_EVENTS: %w", err)
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(tailAhead))
	if err != nil {
		return fmt.Errorf("follow CRM_EVENTS: %w", err)
	}
	defer messages.Stop()
	f.Began()
	for {
		wait, cancel := context.WithTimeout(ctx, f.IdleEvery)
		m, err := messages.Next(jetstream.NextContext(wait))
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, context.DeadlineExceeded):
			if err := f.Idle(); err != nil {
				return err
			}
			continue
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return fmt.Errorf("follow CRM_EVENTS: %w", err)
		case err != nil:
			b.Logger().Debug("following CRM_EVENTS was interrupted; it goes on", zap.Error(err))
			continue
		}
		meta, err := m.Metadata()
		if err != nil {
			continue
		}
		err = f.Handle(&Event{
			Message: event.Message{
				Subject: m.Subject(), Header: m.Headers().Get, Body: m.Data(), Sequence: meta.Sequence.Stream,
			},
			StoredAt: meta.Timestamp, Size: len(m.Data()),
		})
		if err != nil {
			return err
		}
	}
}
