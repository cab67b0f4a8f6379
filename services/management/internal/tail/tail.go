// Package tail shows an account's attempts as they happen.
//
// Each tail is its own reader of the journal with a bounded buffer. A reader that is slower than its account's
// attempts is cut off, so that it costs neither memory nor anyone else's speed.
package tail

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/problem"
)

const (
	// buffer is how many attempts a reader may be behind.
	buffer = 512
	// maxTails is how many tails one process serves at once.
	maxTails = 200
	// maxOfAccount is how many of them one account may have, so that none takes all.
	maxOfAccount = 20
)

// Attempt is one attempt, with its notification and webhook.
type Attempt struct {
	notifications.Attempt

	WebhookID      string     `json:"webhook_id" format:"uuid"`
	NotificationID string     `json:"notification_id" format:"uuid"`
	EventID        string     `json:"event_id" format:"uuid"`
	EventName      string     `json:"event_name"`
	State          string     `json:"state" doc:"of the notification, after the attempt"`
	NextAttemptAt  *time.Time `json:"next_attempt_at"`

	// Sequence is the attempt's place in the journal.
	Sequence uint64 `json:"-"`
}

// Filter says which attempts are wanted; "" is any.
type Filter struct {
	WebhookID string
	Outcome   string
}

func (f Filter) wants(r *notification.Record) bool {
	return r.Attempt != nil && (f.WebhookID == "" || f.WebhookID == r.WebhookID) &&
		(f.Outcome == "" || f.Outcome == r.Attempt.Outcome)
}

// Service opens tails. It is safe for concurrent use.
type Service struct {
	bus *bus.Bus

	mu       sync.Mutex
	open     int            // tails
	accounts map[string]int // tails of each account that has one
}

// New returns a service.
func New(b *bus.Bus) *Service { return &Service{bus: b, accounts: map[string]int{}} }

// enter counts one more tail of the account, or says why there may be none.
func (s *Service) enter(account string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(kind problem.Kind, detail string) error {
		return &problem.Error{
			Kind: kind, RetryAfter: 10 * time.Second,
			Problems: []problem.Problem{{Code: "too_many_tails", Detail: detail}},
		}
	}
	switch {
	case s.accounts[account] >= maxOfAccount:
		return refuse(problem.Limited, fmt.Sprintf("this account has %d live tails "+
			"open here, as many as it may; close one", maxOfAccount))
	case s.open >= maxTails:
		return refuse(problem.Unavailable, "this process serves as many live tails "+
			"as it may; close one, or try again later")
	}
	s.open++
	s.accounts[account]++
	return nil
}

func (s *Service) leave(account string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if s.accounts[account]--; s.accounts[account] == 0 {
		delete(s.accounts, account)
	}
}

// End says why a tail ended.
type End string

// The ends of a tail.
const (
	EndTooSlow End = "too_slow" // the reader was slower than the attempts came
	EndLost    End = "lost"     // the journal could not be read any more
)

// Tail is a running tail.
type Tail struct {
	// Attempts is closed when the tail ended.
	Attempts <-chan Attempt

	began <-chan struct{} // closed once attempts are seen, or the tail ended before that
	end   atomic.Pointer[End]
}

// ErrLost reports that the journal cannot be followed.
var ErrLost = errors.New("the journal cannot be followed")

// beginWithin is how long a tail may take until it sees attempts.
const beginWithin = 10 * time.Second

// Await returns once the tail sees attempts or has ended. It returns an error of 503 when that takes too long, or when
// the process stops before.
func (t *Tail) Await(stopping <-chan struct{}) error {
	late := time.NewTimer(beginWithin)
	defer late.Stop()
	select {
	case <-t.began:
		return nil
	case <-late.C:
		return problem.Broker(ErrLost)
	case <-stopping:
		return problem.Down("stopping", "the service is stopping; connect again", nil)
	}
}

// End returns why the tail ended, "" when ctx did it. It is known when Attempts is closed.
func (t *Tail) End() End {
	if e := t.end.Load(); e != nil {
		return *e
	}
	return ""
}

// Open starts a tail of the account's attempts that ends with ctx. It is an error of 429 when the
// account has too many already, of 503 when all together have.
func (s *Service) Open(ctx context.Context, account string, f Filter) (*Tail, error) {
	if err := s.enter(account); err != nil {
		return nil, err
	}
	began, attempts := make(chan struct{}), make(chan Attempt, buffer)
	t := &Tail{began: began, Attempts: attempts}
	ctx, cut := context.WithCancel(ctx)
	go func() {
		defer s.leave(account)
		defer close(attempts)
		defer cut()
		start := sync.OnceFunc(func() { close(began) })
		defer start()
		err := journal.Follow(ctx, s.bus, account, start, func(r *notification.Record) {
			if !f.wants(r) || ctx.Err() != nil {
				return
			}
			select {
			case attempts <- show(r):
			default:
				t.ended(EndTooSlow)
				cut()
			}
		})
		if err != nil && ctx.Err() == nil {
			t.ended(EndLost)
		}
	}()
	return t, nil
}

func (t *Tail) ended(why End) { t.end.CompareAndSwap(nil, &why) }

func show(r *notification.Record) Attempt {
	a := Attempt{
		Attempt: notifications.ShowAttempt(r.Attempt), WebhookID: r.WebhookID, NotificationID: r.NotificationID,
		EventID: r.EventID, EventName: r.EventName, State: string(r.State), Sequence: r.Sequence,
	}
	if !r.NextAttemptAt.IsZero() {
		a.NextAttemptAt = &r.NextAttemptAt
	}
	return a
}
