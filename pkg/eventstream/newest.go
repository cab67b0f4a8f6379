package eventstream

import (
	"context"
	"fmt"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// Newest hands the newest events on the subjects to handle, oldest first: at least n, where there are as many, and
// few more than twice as many. It stops at an error.
func Newest(ctx context.Context, b *bus.Bus, subjects []string, n uint64, handle func(*Event) error) error {
	if len(subjects) == 0 {
		return nil
	}
	s, err := b.Stream(ctx, topology.Events)
	if err != nil {
		return err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return fmt.Errorf("look at CRM_EVENTS: %w", err)
	}
	r := Range{Subjects: subjects, From: time.Unix(0, 0), To: time.Now().Add(time.Hour)}
	// The stream is read forwards: look for a place with about n events behind it.
	enough, few := max(info.State.FirstSeq, 1)-1, info.State.LastSeq
	for few-enough > n {
		r.After = enough + (few-enough)/2
		count, err := Count(ctx, b, r)
		if err != nil {
			return err
		}
		if count < n {
			few = r.After
			continue
		}
		if enough = r.After; count <= 2*n {
			break
		}
	}
	r.After = enough
	return Read(ctx, b, r, false, func(e *Event) (bool, error) {
		err := handle(e)
		return err == nil, err
	})
}
