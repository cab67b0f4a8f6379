// Package jobs keeps long jobs in a bucket, one record each, and has one process at a time run each of them.
//
// # What survives
//
// Every write is a compare-and-set on the record's revision, so a job has one runner. A job whose runner died or
// stopped is taken up by another process, from its last record, within Rules.TakeOverAfter.
package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/sleep"
	"gancho/pkg/wireversion"
	"gancho/services/management/internal/broadcast"
	"gancho/services/management/internal/problem"
)

// beatEvery is how often a store looks for jobs whose runner is silent, and for those to forget.
const beatEvery = time.Second

// State of a job. A kind of job may have more states.
type State string

// Running is the state of jobs that need a runner.
const Running State = "running"

// Record is the part that all kinds of jobs have: they embed it.
type Record struct {
	Schema    int       `json:"schema,omitempty"` // see gancho/pkg/wireversion
	ID        string    `json:"id"`
	Account   string    `json:"account_id"`
	State     State     `json:"state"`
	Problem   string    `json:"problem,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	Runner    string    `json:"runner,omitempty"`
	BeatAt    time.Time `json:"beat_at,omitzero"` // when the runner last stored something

	revision uint64
}

// New returns the record of a job that begins in a state.
func New(account string, state State) Record {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return Record{ID: uuid.NewString(), Account: account, State: state, CreatedAt: now, UpdatedAt: now}
}

// Key returns the job's key in its bucket.
func (r *Record) Key() string { return r.Account + "." + r.ID }

// Base returns the record that the job embeds.
func (r *Record) Base() *Record { return r }

// Job is a pointer to a kind of job, which embeds Record.
type Job[T any] interface {
	*T
	Base() *Record
	// Valid reports whether a stored record is one of this kind.
	Valid() bool
	// Adopt takes over the changes that others than the runner made since: newest is the record that has them.
	Adopt(newest *T)
}

// ErrTaken says that the job is another runner's now.
var ErrTaken = errors.New("another runner has the job")

// Rules of one kind of jobs.
type Rules struct {
	Noun          string        // of one job, for messages
	TakeOverAfter time.Duration // how long a runner may be silent until another takes its job
	MaxRunning    int           // in one process
	ForgetAfter   time.Duration // how long jobs are kept that do not run
	Kept          []State       // besides Running, states in which jobs are never forgotten
}

// Store keeps the jobs of one kind. It is safe for concurrent use.
type Store[T any, P Job[T]] struct {
	rules   Rules
	bucket  *bus.Bucket
	log     *zap.Logger
	runner  string // this process
	changes broadcast.Signal

	mu    sync.Mutex
	jobs  map[string]P                  // by key, as the bucket has them; values are immutable
	stops map[string]context.CancelFunc // of the jobs that run here
}

// NewStore returns a store on a bucket. It has no lists until Run runs.
func NewStore[T any, P Job[T]](bucket *bus.Bucket, rules Rules, log *zap.Logger) *Store[T, P] {
	return &Store[T, P]{
		rules: rules, bucket: bucket, log: log, runner: uuid.NewString(), jobs: map[string]P{}, stops: map[string]context.CancelFunc{},
	}
}

// Get reads the job as it is now.
func (s *Store[T, P]) Get(ctx context.Context, account, id string) (P, error) {
	if uuid.Validate(id) != nil || len(id) != 36 || !event.ValidAccount(account) {
		return nil, problem.NotFound(s.rules.Noun)
	}
	e, err := s.bucket.Get(ctx, account+"."+id)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, problem.NotFound(s.rules.Noun)
	}
	if err != nil {
		return nil, problem.Broker(err)
	}
	return s.decode(e)
}

func (s *Store[T, P]) decode(e bus.Entry) (P, error) {
	j := P(new(T))
	if err := json.Unmarshal(e.Value, j); err != nil {
		return nil, fmt.Errorf("decode %s %s: %w", s.rules.Noun, e.Key, err)
	}
	if err := wireversion.Check(j.Base().Schema); err != nil {
		return nil, problem.Broker(fmt.Errorf("%s %s: %w", s.rules.Noun, e.Key, err))
	}
	if j.Base().Key() != e.Key || !j.Valid() {
		return nil, fmt.Errorf("decode %s %s: it is not one", s.rules.Noun, e.Key)
	}
	j.Base().revision = e.Revision
	return j, nil
}

// Create stores a new job.
func (s *Store[T, P]) Create(ctx context.Context, j P) error {
	value, err := s.encode(j)
	if err != nil {
		return err
	}
	if _, err := s.bucket.Create(ctx, j.Base().Key(), value); err != nil {
		return problem.Broker(err)
	}
	return nil
}

// Put stores the job on top of the revision with which it was read; bus.ErrConflict when another writer was faster.
func (s *Store[T, P]) Put(ctx context.Context, j P) error {
	r := j.Base()
	r.UpdatedAt = time.Now().UTC().Truncate(time.Millisecond)
	value, err := s.encode(j)
	if err != nil {
		return err
	}
	revision, err := s.bucket.Update(ctx, r.Key(), value, r.revision)
	if err == nil {
		r.revision = revision
	}
	return err
}

func (s *Store[T, P]) encode(j P) ([]byte, error) {
	value, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", s.rules.Noun, err)
	}
	return value, nil
}

// Note stores the progress of a job that runs here; ErrTaken when another runner has it. Changes that others made since
// the last note stand, see Job. A conflict may also mean that the answer to an earlier note was lost.
func (s *Store[T, P]) Note(ctx context.Context, j P) error {
	j.Base().BeatAt = time.Now().UTC()
	for {
		err := s.Put(ctx, j)
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
		newest, err := s.Get(ctx, j.Base().Account, j.Base().ID)
		if err != nil {
			return err
		}
		if newest.Base().Runner != s.runner {
			return ErrTaken
		}
		j.Base().revision = newest.Base().revision
		j.Adopt((*T)(newest))
	}
}

// List returns the account's jobs that are wanted, newest first. It may be behind a little. The jobs must not be
// changed.
func (s *Store[T, P]) List(account string, wanted func(P) bool) []P {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []P
	for _, j := range s.jobs {
		if j.Base().Account == account && wanted(j) {
			found = append(found, j)
		}
	}
	slices.SortFunc(found, func(a, b P) int {
		return cmp.Or(b.Base().CreatedAt.Compare(a.Base().CreatedAt), cmp.Compare(a.Base().ID, b.Base().ID))
	})
	return found
}

// Wait returns true once the account's job is as done wants it, or false when ctx ends first.
func (s *Store[T, P]) Wait(ctx context.Context, account, id string, done func(P) bool) bool {
	return s.changes.Wait(ctx, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		j := s.jobs[account+"."+id]
		return j != nil && done(j)
	})
}

// Run runs the jobs that no other process runs until ctx ends. It calls run for each with a copy of its own; stop ends
// when the job is deleted or leaves the state Running.
func (s *Store[T, P]) Run(ctx context.Context, run func(ctx, stop context.Context, j P, log *zap.Logger) error) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = s.bucket.Watch(ctx, s.apply, nil) })
	for ctx.Err() == nil {
		for _, j := range s.free() {
			stop, cancel := context.WithCancel(ctx)
			s.mu.Lock()
			s.stops[j.Base().Key()] = cancel
			s.mu.Unlock()
			running.Go(func() {
				s.try(ctx, stop, j, run)
				cancel()
				s.mu.Lock()
				delete(s.stops, j.Base().Key())
				s.mu.Unlock()
				s.changes.Send()
			})
		}
		wait, cancel := context.WithTimeout(ctx, beatEvery)
		s.changes.Wait(wait, func() bool { return len(s.free()) > 0 })
		cancel()
		s.forget(ctx)
	}
	return nil
}

func (s *Store[T, P]) apply(e bus.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop := s.stops[e.Key]
	if stop == nil {
		stop = func() {}
	}
	if e.Value == nil {
		delete(s.jobs, e.Key)
		stop()
		return
	}
	j, err := s.decode(e)
	if err != nil {
		s.log.Error("an unreadable "+s.rules.Noun+" is ignored", zap.Error(err))
		return
	}
	s.jobs[e.Key] = j
	if j.Base().State != Running {
		stop()
	}
	s.changes.Send()
}

// free returns jobs that this process should take: they have no runner, or one that is silent.
func (s *Store[T, P]) free() (out []P) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, j := range s.jobs {
		r := j.Base()
		if r.State == Running && s.stops[key] == nil && (r.Runner == "" || time.Since(r.BeatAt) > s.rules.TakeOverAfter) &&
			len(s.stops)+len(out) < s.rules.MaxRunning {
			out = append(out, j)
		}
	}
	return out
}

// try takes the job, unless another process was faster, and runs it. It gives the job up at the end, so that another
// process need not wait for it.
func (s *Store[T, P]) try(ctx, stop context.Context, seen P, run func(ctx, stop context.Context, j P, log *zap.Logger) error) {
	mine := *seen
	j := P(&mine)
	j.Base().Runner, j.Base().BeatAt = s.runner, time.Now().UTC()
	if err := s.Put(ctx, j); err != nil { // another process has it or changed it, or the broker is away
		sleep.For(ctx, beatEvery)
		return
	}
	log := s.log.With(zap.String("account_id", j.Base().Account), zap.String(s.rules.Noun+"_id", j.Base().ID))
	err := run(ctx, stop, j, log)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrTaken) {
		log.Warn(s.rules.Noun+" interrupted; it goes on", zap.Error(err))
		sleep.For(ctx, beatEvery)
	}
	if j.Base().Runner == "" || errors.Is(err, ErrTaken) {
		return
	}
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	j.Base().Runner = ""
	if err := s.Note(last, j); err != nil && !errors.Is(err, ErrTaken) {
		log.Warn("progress of the "+s.rules.Noun+" not noted", zap.Error(err))
	}
}

// forget deletes jobs that ended long ago.
func (s *Store[T, P]) forget(ctx context.Context) {
	s.mu.Lock()
	var old []*Record
	for _, j := range s.jobs {
		r := j.Base()
		if r.State != Running && !slices.Contains(s.rules.Kept, r.State) && time.Since(r.UpdatedAt) > s.rules.ForgetAfter {
			old = append(old, r)
		}
	}
	s.mu.Unlock()
	for _, r := range old {
		if err := s.bucket.Delete(ctx, r.Key(), r.revision); err != nil && ctx.Err() == nil && !errors.Is(err, bus.ErrConflict) {
			s.log.Warn("an old "+s.rules.Noun+" is not deleted; trying again", zap.Error(err))
		}
	}
}
