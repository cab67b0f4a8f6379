package bodies

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

const (
	// sweepEvery is how long the sweeper rests between two looks. A body that nothing refers to stays for up to twice
	// as long.
	sweepEvery = 5 * time.Minute
	// restFor is how many times as long as the last look took the sweeper rests at least.
	restFor = 20
	// failedSlack is how much longer than LOG_MAX_AGE a message on FAILED counts as a reference.
	failedSlack = time.Hour
	// reader is the name of the consumers that look: the broker's rights name them.
	reader = "bodies"
)

// Sweeper removes bodies that nothing refers to any more. One process at a time runs it, under a lease of its caller;
// two that run for a moment do no harm. One goroutine uses it.
type Sweeper struct {
	bus       *bus.Bus
	log       *zap.Logger
	logMaxAge time.Duration

	bodies   map[uint64]string    // subjects on BODIES, by sequence
	suspects map[uint64]bool      // sequences of those that nothing referred to at the last look
	failed   *bus.Reader          // of FAILED, whose messages are looked at once
	kept     map[string]time.Time // subjects that FAILED refers to, and until when at most
}

// NewSweeper returns a sweeper. logMaxAge is how long messages stay on FAILED.
func NewSweeper(b *bus.Bus, log *zap.Logger, logMaxAge time.Duration) *Sweeper {
	return &Sweeper{bus: b, log: log, logMaxAge: logMaxAge}
}

// Run removes bodies until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	s.suspects = nil // another process may have run it in between
	for wait := sweepEvery; sleep.For(ctx, wait); {
		began := time.Now()
		if _, err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("BODIES cannot be looked through; trying again", zap.Error(err))
		}
		wait = max(sweepEvery, restFor*time.Since(began))
	}
}

// Sweep looks once, and removes the bodies that the look before did not find a reference to either. It returns their
// number. While BODIES is empty it looks no further.
func (s *Sweeper) Sweep(ctx context.Context) (removed int, err error) {
	before := s.suspects
	s.suspects = nil // after an error the next two looks decide
	state, err := s.bus.StreamState(ctx, topology.Bodies)
	if err != nil || state.Messages == 0 {
		return 0, err
	}
	if err := s.list(ctx); err != nil {
		return 0, err
	}
	accounts := map[string]bool{}
	for _, subject := range s.bodies {
		accounts[accountOf(subject)] = true
	}
	referred := map[string]bool{}
	for account := range accounts {
		if err := s.look(ctx, account, referred); err != nil {
			return 0, err
		}
	}
	if err := s.lookAtFailed(ctx); err != nil {
		return 0, err
	}
	now, suspects := time.Now(), map[uint64]bool{}
	for subject, until := range s.kept {
		if now.After(until) {
			delete(s.kept, subject)
		}
	}
	for sequence, subject := range s.bodies {
		switch _, failed := s.kept[subject]; {
		case failed, referred[subject]:
		case !before[sequence]:
			suspects[sequence] = true
		default:
			if err := s.bus.Erase(ctx, topology.Bodies, sequence); err != nil {
				return removed, err
			}
			removed++
		}
	}
	s.suspects = suspects
	return removed, nil
}

// list reads which bodies there are.
func (s *Sweeper) list(ctx context.Context) error {
	r := s.bus.NewReader(topology.Bodies, reader, bus.Position{})
	defer r.Close(context.WithoutCancel(ctx))
	last, _, err := r.Tail(ctx)
	if err != nil {
		return err
	}
	s.bodies = map[uint64]string{}
	return r.ReadTo(ctx, last, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		s.bodies[meta.Sequence.Stream] = m.Subject()
	})
}

func accountOf(subject string) string { return strings.SplitN(subject, ".", 4)[2] }

// look notes what an account's notifications on their way refer to. RETRIES comes twice, because notifications move
// between it and PARKED in both directions.
func (s *Sweeper) look(ctx context.Context, account string, referred map[string]bool) error {
	settled, err := lane.Settled(ctx, s.bus)
	if err != nil {
		return err
	}
	retries := "gancho.retries.*." + account + ".>"
	for _, place := range []struct {
		stream, subject string
		from            uint64
	}{
		{topology.Notifications, topology.SubjectNotification(account, "*"), settled + 1},
		{topology.Retries, retries, 1},
		{topology.Parked, topology.SubjectParked(account, "*", "*"), 1},
		{topology.Retries, retries, 1},
	} {
		for next := place.from; ; {
			raw, err := s.bus.Get(ctx, place.stream, place.subject, next)
			if errors.Is(err, bus.ErrNotFound) {
				break
			}
			if err != nil {
				return err
			}
			if subject := referredBy(raw.Header); subject != "" {
				referred[subject] = true
			}
			next = raw.Sequence + 1
		}
	}
	return nil
}

// lookAtFailed notes what messages on FAILED refer to that came since the last look. Those that are removed before
// LOG_MAX_AGE count until then.
func (s *Sweeper) lookAtFailed(ctx context.Context) error {
	if s.failed == nil {
		s.failed, s.kept = s.bus.NewReader(topology.Failed, reader, bus.Position{}), map[string]time.Time{}
	}
	last, met, err := s.failed.Tail(ctx)
	if err != nil {
		return err
	}
	if met.Renewed {
		clear(s.kept)
	}
	defer s.failed.Close(context.WithoutCancel(ctx))
	return s.failed.ReadTo(ctx, last, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		if subject := referredBy(m.Headers()); subject != "" {
			s.kept[subject] = meta.Timestamp.Add(s.logMaxAge + failedSlack)
		}
	})
}

// referredBy returns the subject of the body that a notification's message refers to, "" when it has its body. It does
// not check the rest: what a newer version wrote refers to a body too.
func referredBy(header map[string][]string) string {
	n, _ := notification.Decode(header, nil)
	if n.Ref == nil {
		return ""
	}
	return n.Ref.Subject(n.Account, n.EventID)
}
