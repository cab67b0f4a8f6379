package replays

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"gancho/pkg/bus"
	"gancho/pkg/eventstream"
	"gancho/services/management/internal/problem"
)

const (
	// noteEvery is how often a runner notes its progress.
	noteEvery = time.Second
	// takeOverAfter is how long a runner may be silent until another takes its job.
	takeOverAfter = 10 * time.Second
	// maxRunning is how many jobs one process runs at once.
	maxRunning = 8
	// forgetAfter is how long ended replays, and previews that were never started, are kept.
	forgetAfter = 30 * 24 * time.Hour
)

// Run runs the jobs that no other process runs until ctx ends; their progress is then noted.
func (s *Service) Run(ctx context.Context) error {
	var jobs sync.WaitGroup
	defer jobs.Wait()
	jobs.Go(func() { _ = s.bucket.Watch(ctx, s.apply, nil) })
	for ctx.Err() == nil {
		for _, j := range s.idle() {
			jobs.Go(func() { s.try(ctx, j) })
		}
		wait, cancel := context.WithTimeout(ctx, noteEvery)
		s.changes.Wait(wait, func() bool { return len(s.ready()) > 0 })
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
		s.stop(e.Key)
		return
	}
	j, err := decode(e)
	if err != nil {
		s.log.Error("an unreadable replay is ignored", zap.Error(err))
		return
	}
	s.jobs[e.Key] = j
	if j.State != Running {
		s.stop(e.Key)
	}
	s.changes.Send()
}

// stop ends the sending of a job that runs here. s.mu is held.
func (s *Service) stop(key string) {
	if stop := s.stops[key]; stop != nil {
		stop()
	}
}

// ready are the jobs that should run and have no runner.
func (s *Service) ready() []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*job
	for key, j := range s.jobs {
		if j.State == Running && !s.running[key] && (j.Runner == "" || time.Since(j.BeatAt) > takeOverAfter) &&
			len(s.running)+len(out) < maxRunning {
			out = append(out, j)
		}
	}
	return out
}

// idle marks the ready jobs as running here.
func (s *Service) idle() []*job {
	out := s.ready()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range out {
		s.running[j.key()] = true
	}
	return out
}

// try takes the job, unless another replica was faster, and runs it.
func (s *Service) try(ctx context.Context, seen *job) {
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.stops[seen.key()] = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.running, seen.key())
		delete(s.stops, seen.key())
		s.mu.Unlock()
		s.changes.Send()
	}()
	j := *seen
	j.Runner, j.BeatAt = s.name, time.Now().UTC()
	if err := s.store(ctx, &j); err != nil {
		return // another replica has it, or the owner changed it
	}
	log := s.log.With(zap.String("account_id", j.Account), zap.String("replay_id", j.ID),
		zap.String("webhook_id", j.WebhookID))
	log.Info("replay runs", zap.Uint64("stream_seq", j.Position), zap.Uint64("sent", j.Sent))
	r := &run{s: s, job: &j, noted: time.Now()}
	err := r.run(ctx, stop)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errTaken) {
		log.Warn("replay interrupted; it goes on", zap.Error(err))
	}
	// Progress is noted even when the process stops.
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	r.job.Runner = ""
	if !errors.Is(err, errTaken) {
		if err := r.note(last); err != nil {
			log.Warn("progress of a replay not noted", zap.Error(err))
		}
	}
	log.Info("replay stopped", zap.String("state", string(r.job.State)), zap.Uint64("sent", r.job.Sent),
		zap.Uint64("skipped", r.job.Skipped))
}

// errTaken says that the job is another runner's now.
var errTaken = errors.New("another runner has the replay")

// run is a job in this process's hands.
type run struct {
	s     *Service
	job   *job
	noted time.Time
	// ended says that the run itself came to an end, which no pause or cancellation can undo.
	ended bool
}

func (r *run) end(state State, why string) { r.job.State, r.job.Problem, r.ended = state, why, true }

// run sends until the range is through, its owner pauses or cancels the job (stop is done then), or ctx ends.
func (r *run) run(ctx, stop context.Context) error {
	w, err := r.s.webhooks.Get(ctx, r.job.Account, r.job.WebhookID)
	if err != nil {
		if problem.Of(err).Kind == problem.Missing {
			r.end(Cancelled, "its webhook was deleted")
			return nil
		}
		return err
	}
	span, err := r.s.events(ctx, r.job, w)
	if err != nil {
		return err
	}
	if len(span.Subjects) == 0 {
		r.end(Done, "")
		return nil
	}
	limiter := rate.NewLimiter(rate.Limit(r.job.Rate), max(1, r.job.Rate/10))
	err = r.s.batches(ctx, span, func(batch []*eventstream.Event) (bool, error) {
		// The states of as many as a fifth of a second may bring are read at once: they are those of a moment ago.
		for step := max(1, min(len(batch), r.job.Rate/5)); len(batch) > 0; {
			part := batch[:min(step, len(batch))]
			batch = batch[len(part):]
			done, err := r.s.notifications.Replay(ctx, stop, w, part, r.job.Only, r.job.ID, limiter)
			if err != nil {
				return false, err
			}
			r.job.Sent += done.Sent
			r.job.Skipped += done.Skipped
			if done.Handled > 0 {
				r.job.Position = part[done.Handled-1].Sequence
			}
			switch {
			case ctx.Err() != nil:
				return false, ctx.Err()
			case stop.Err() == nil && time.Since(r.noted) < noteEvery:
				continue
			}
			if err := r.note(ctx); err != nil {
				return false, err
			}
			if r.job.State != Running {
				return false, nil
			}
			if w, err = r.s.webhooks.Get(ctx, r.job.Account, r.job.WebhookID); err != nil {
				return false, err // the next run finds out what to do
			}
		}
		return true, nil
	})
	if err == nil && r.job.State == Running {
		r.end(Done, "")
	}
	return err
}

// note stores the progress. A pause or cancellation by the owner since the last note stands.
func (r *run) note(ctx context.Context) error {
	r.noted = time.Now()
	r.job.BeatAt = r.noted.UTC()
	for {
		err := r.s.store(ctx, r.job)
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
		newest, err := r.s.fetch(ctx, r.job.Account, r.job.ID)
		if err != nil {
			return err
		}
		if newest.Runner != r.s.name {
			return errTaken
		}
		r.job.revision = newest.revision
		if !r.ended {
			r.job.State, r.job.Problem = newest.State, newest.Problem
		}
	}
}

// forget deletes what ended long ago.
func (s *Service) forget(ctx context.Context) {
	s.mu.Lock()
	var old []*job
	for _, j := range s.jobs {
		if (j.State.Ended() || j.State == Preview) && time.Since(j.UpdatedAt) > forgetAfter {
			old = append(old, j)
		}
	}
	s.mu.Unlock()
	for _, j := range old {
		if err := s.bucket.Delete(ctx, j.key(), j.revision); err != nil && ctx.Err() == nil &&
			!errors.Is(err, bus.ErrConflict) {
			s.log.Warn("an old replay is not deleted; trying again", zap.Error(err))
		}
	}
}
