package erasures

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

const (
	// settle is how long nothing may be found until a job ends: longer than a process holds a message that it has
	// taken.
	settle = 15 * time.Second
	// beatEvery is how often a runner notes that it lives.
	beatEvery = time.Second
	// takeOverAfter is how long a runner may be silent until another takes its job.
	takeOverAfter = 15 * time.Second
	// maxRunning is how many jobs one process runs at once.
	maxRunning = 4
	// forgetAfter is how long ended erasures are kept.
	forgetAfter = 400 * 24 * time.Hour
)

// Run runs the jobs that no other process runs, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = s.bucket.Watch(ctx, s.apply, nil) })
	mine := map[string]bool{} // by key; of s.mu
	for ctx.Err() == nil {
		for _, j := range s.ready(mine) {
			running.Go(func() {
				s.try(ctx, j)
				s.mu.Lock()
				delete(mine, j.key())
				s.mu.Unlock()
				s.changes.Send()
			})
		}
		wait, cancel := context.WithTimeout(ctx, beatEvery)
		s.changes.Wait(wait, func() bool { return s.waiting(mine) })
		cancel()
		s.forget(ctx)
	}
	return nil
}

func (s *Service) apply(e bus.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Value == nil {
		delete(s.jobs, e.Key)
		return
	}
	j, err := decode(e)
	if err != nil {
		s.log.Error("an unreadable erasure is ignored", zap.Error(err))
		return
	}
	s.jobs[e.Key] = j
	s.changes.Send()
}

// free reports whether j should run and has no runner. s.mu is held.
func free(j *job, mine map[string]bool) bool {
	return j.State == Running && !mine[j.key()] && (j.Runner == "" || time.Since(j.BeatAt) > takeOverAfter)
}

func (s *Service) waiting(mine map[string]bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		if free(j, mine) && len(mine) < maxRunning {
			return true
		}
	}
	return false
}

// ready returns jobs that should run and have no runner, and marks them as mine.
func (s *Service) ready(mine map[string]bool) (out []*job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, j := range s.jobs {
		if free(j, mine) && len(mine) < maxRunning {
			mine[key] = true
			out = append(out, j)
		}
	}
	return out
}

// errTaken says that the job is another runner's now.
var errTaken = errors.New("another runner has the erasure")

// try takes the job, unless another process was faster, and runs it until it ends.
func (s *Service) try(ctx context.Context, seen *job) {
	j := *seen
	j.Runner, j.BeatAt = s.name, time.Now().UTC()
	if err := s.store(ctx, &j); err != nil {
		return // another process has it
	}
	log := s.log.With(zap.String("account_id", j.Account), zap.String("erasure_id", j.ID))
	about, err := s.unseal(&j)
	if err != nil {
		log.Error("erasure failed", zap.Error(err))
		j.State, j.Problem = Failed, "it cannot be read: "+err.Error()
		_ = s.store(ctx, &j) // else the next runner finds out
		return
	}
	log.Info("erasure runs", zap.Int("matched", j.Matched))
	r := &run{s: s, job: &j, about: about, beat: time.Now()}
	for failing := false; ; {
		err := r.run(ctx)
		switch {
		case err == nil:
			log.Info("erasure done", zap.Int("matched", j.Matched), zap.Any("erased", j.Erased), zap.Strings("left", j.Left))
			return
		case ctx.Err() != nil, errors.Is(err, errTaken):
			j.Runner = ""
			last, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer done()
			_ = s.store(last, &j) // so that another process need not wait
			return
		case !failing:
			log.Warn("erasure interrupted; it goes on", zap.Error(err))
		}
		failing = true
		sleep.For(ctx, beatEvery)
	}
}

// note stores what r knows, if the last time was beatEvery ago, or at once.
func (r *run) note(ctx context.Context, atOnce bool) error {
	if !atOnce && time.Since(r.beat) < beatEvery {
		return nil
	}
	r.beat = time.Now()
	r.job.BeatAt = r.beat.UTC()
	err := r.s.store(ctx, r.job)
	if errors.Is(err, bus.ErrConflict) {
		// The answer to an earlier write may have been lost.
		newest, lookErr := r.s.fetch(ctx, r.job.Account, r.job.ID)
		if lookErr != nil {
			return lookErr
		}
		if newest.Runner != r.s.name {
			return errTaken
		}
		r.job.revision = newest.revision
		return r.s.store(ctx, r.job)
	}
	return err
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

// forget deletes what ended long ago.
func (s *Service) forget(ctx context.Context) {
	s.mu.Lock()
	var old []*job
	for _, j := range s.jobs {
		if j.State != Running && time.Since(j.UpdatedAt) > forgetAfter {
			old = append(old, j)
		}
	}
	s.mu.Unlock()
	for _, j := range old {
		if err := s.bucket.Delete(ctx, j.key(), j.revision); err != nil && ctx.Err() == nil && !errors.Is(err, bus.ErrConflict) {
			s.log.Warn("an old erasure is not deleted; trying again", zap.Error(err))
		}
	}
}
