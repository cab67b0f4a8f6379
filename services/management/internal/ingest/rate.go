package ingest

import (
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"gancho/services/management/internal/problem"
)

// rates holds accounts to the rates that operators set, a second's worth at a time. Accounts without a rate take no
// memory. It is safe for concurrent use.
type rates struct {
	mu  sync.Mutex
	all map[string]*rate.Limiter
}

// take counts one event of an account that may send perSecond; 0 is no limit. It returns 429 account_rate for an event
// too many, which does not count.
func (r *rates) take(account string, perSecond float64, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	limiter := r.all[account]
	if perSecond <= 0 {
		delete(r.all, account)
		return nil
	}
	burst := int(math.Ceil(perSecond))
	if limiter == nil || limiter.Limit() != rate.Limit(perSecond) {
		limiter = rate.NewLimiter(rate.Limit(perSecond), burst)
		if r.all == nil {
			r.all = map[string]*rate.Limiter{}
		}
		r.all[account] = limiter
	}
	if limiter.AllowN(now, 1) {
		return nil
	}
	wait := time.Duration((1 - limiter.TokensAt(now)) / perSecond * float64(time.Second))
	return &problem.Error{Kind: problem.Limited, RetryAfter: max(wait, time.Millisecond), Problems: []problem.Problem{{
		Code: "account_rate", Detail: fmt.Sprintf("the account may send %v events a second (ingest_rate); the event was not stored, send it again later", perSecond),
	}}}
}
