package erasures

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
	"gancho/services/management/internal/jobs"
)

const (
	// settle is how long nothing may be found until a job ends: longer than a process holds a message that it has
	// taken.
	settle = 15 * time.Second
	// beatEvery is how often a runner notes that it lives.
	beatEvery = time.Second
)

var rules = jobs.Rules{Noun: "erasure", TakeOverAfter: 15 * time.Second, MaxRunning: 4, ForgetAfter: 400 * 24 * time.Hour}

// Run runs the jobs that no other process runs, until ctx ends.
func (s *Service) Run(ctx context.Context) error { return s.jobs.Run(ctx, s.run) }

// run runs a job until it ends.
func (s *Service) run(ctx, _ context.Context, j *job, log *zap.Logger) error {
	about, err := s.unseal(j)
	if err != nil {
		log.Error("erasure failed", zap.Error(err))
		j.State, j.Problem = Failed, "it cannot be read: "+err.Error()
		return nil
	}
	log.Info("erasure runs", zap.Int("matched", j.Matched))
	r := &run{s: s, job: j, about: about, beat: time.Now(), bodies: map[string]bool{}}
	for failing := false; ; failing = true {
		err := r.run(ctx)
		switch {
		case err == nil:
			log.Info("erasure done", zap.Int("matched", j.Matched), zap.Any("erased", j.Erased), zap.Strings("left", j.Left))
			return nil
		case ctx.Err() != nil, errors.Is(err, jobs.ErrTaken):
			return err
		case !failing:
			log.Warn("erasure interrupted; it goes on", zap.Error(err))
		}
		sleep.For(ctx, beatEvery)
	}
}

// note stores what r knows, if the last time was beatEvery ago, or at once.
func (r *run) note(ctx context.Context, atOnce bool) error {
	if !atOnce && time.Since(r.beat) < beatEvery {
		return nil
	}
	r.beat = time.Now()
	return r.s.jobs.Note(ctx, r.job)
}

// run makes passes until the job is done.
func (r *run) run(ctx context.Context) error {
	r.next, r.journal = map[string]uint64{}, 0 // a pass that failed is made again from the beginning
	for quiet := time.Now(); ; {
		changed, err := r.pass(ctx)
		if err != nil {
			return err
		}
		if err := r.absent(ctx); err != nil {
			return err
		}
		if changed {
			quiet = time.Now()
			continue
		}
		held, err := r.held(ctx)
		if err != nil {
			return err
		}
		if !held && time.Since(quiet) >= r.s.settle {
			break
		}
		if err := r.note(ctx, false); err != nil {
			return err
		}
		if !sleep.For(ctx, min(beatEvery, r.s.settle/4)) {
			return ctx.Err()
		}
	}
	r.job.Left = nil
	for _, stream := range []string{topology.Notifications, topology.Retries, topology.Parked} {
		dropped, err := r.s.bus.Discard(ctx, stream)
		if err != nil {
			return err
		}
		if !dropped {
			r.job.Left = append(r.job.Left, stream)
		}
	}
	r.job.State, r.job.Sealed, r.job.Runner = Done, "", ""
	return r.note(ctx, true)
}

// absent notes servers of a cluster that are away from streams that messages were erased from, if any was since the
// last time.
func (r *run) absent(ctx context.Context) error {
	if !r.erased {
		return nil
	}
	known := len(r.job.Away)
	for stream := range r.job.Erased {
		state, err := r.s.bus.StreamState(ctx, stream)
		if err != nil {
			return err
		}
		r.job.Away = append(r.job.Away, state.Away...)
	}
	slices.Sort(r.job.Away)
	r.job.Away = slices.Compact(r.job.Away)
	if err := r.note(ctx, len(r.job.Away) > known); err != nil {
		return err
	}
	r.erased = false
	return nil
}

// held reports whether a publisher may hold an event that was erased: it has not settled it yet.
func (r *run) held(ctx context.Context) (bool, error) {
	if r.about.Last == 0 {
		return false, nil
	}
	state, err := r.s.bus.ConsumerState(ctx, topology.Durable{Stream: topology.Events, Name: topology.ConsumerPublisher})
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the publishers: %w", err)
	}
	return state.Settled < r.about.Last && state.AckPending > 0, nil
}
