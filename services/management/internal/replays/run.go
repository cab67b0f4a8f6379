package replays

import (
	"context"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"gancho/pkg/eventstream"
	"gancho/services/management/internal/jobs"
	"gancho/services/management/internal/problem"
)

// noteEvery is how often a runner notes its progress.
const noteEvery = time.Second

// rules forget replays that have ended, and previews that were never started.
var rules = jobs.Rules{
	Noun: "replay", TakeOverAfter: 10 * time.Second, MaxRunning: 8, ForgetAfter: 30 * 24 * time.Hour, Kept: []State{Paused},
}

// Run runs the jobs that no other process runs until ctx ends; their progress is then noted.
func (s *Service) Run(ctx context.Context) error {
	return s.jobs.Run(ctx, func(ctx, stop context.Context, j *job, log *zap.Logger) error {
		log = log.With(zap.String("webhook_id", j.WebhookID))
		log.Info("replay runs", zap.Uint64("stream_seq", j.Position), zap.Uint64("sent", j.Sent))
		r := &run{s: s, job: j, noted: time.Now()}
		err := r.run(ctx, stop)
		log.Info("replay stopped", zap.String("state", string(j.State)), zap.Uint64("sent", j.Sent), zap.Uint64("skipped", j.Skipped))
		return err
	})
}

// run is a job in this process's hands.
type run struct {
	s     *Service
	job   *job
	noted time.Time
}

func (r *run) end(state State, why string) {
	r.job.State, r.job.Problem, r.job.ended = state, why, true
}

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

// note stores the progress.
func (r *run) note(ctx context.Context) error {
	r.noted = time.Now()
	return r.s.jobs.Note(ctx, r.job)
}
