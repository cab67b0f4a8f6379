package publisher

import (
	"context"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/numbers"
)

// startHeld starts noting on HELD which webhooks the event was held back from. Without conditions it does nothing.
func (p *Publisher) startHeld(ctx context.Context, j *job, storedAt time.Time) ([]*bus.Started, error) {
	if len(j.held) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, handleWithin)
	defer cancel()
	h := numbers.Held{Account: j.event.Account, Sequence: j.event.Sequence, Again: j.unsure}
	for _, w := range j.held {
		if !j.unsure || !w.CreatedAt.After(storedAt.Add(clockGap)) {
			h.Webhooks = append(h.Webhooks, w.UUID)
		}
	}
	return h.Start(ctx, p.bus)
}

// noteHeld returns once it is stored on HELD which webhooks the event was held back from.
func (p *Publisher) noteHeld(ctx context.Context, j *job, storedAt time.Time) error {
	started, err := p.startHeld(ctx, j, storedAt)
	return awaitAll(ctx, started, err)
}

// awaitAll waits for all that was started and returns the first error, err if there is one.
func awaitAll(ctx context.Context, started []*bus.Started, err error) error {
	for _, s := range started {
		if failed := s.Wait(ctx); err == nil {
			err = failed
		}
	}
	return err
}
