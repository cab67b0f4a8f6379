package dispatcher

import (
	"math/rand/v2"
	"time"
)

// schedule says when to try again.
type schedule struct {
	delays   []time.Duration // one for each retry
	jitter   float64         // fraction to both sides
	maxAfter time.Duration   // most that Retry-After can ask for
}

// delay returns the wait before the retry (1..5). The schedule's delay carries jitter to both sides. What
// the receiver asked for with Retry-After lengthens it, up to the limit, and never shortens it; the jitter
// then only adds, so the receiver is never called before it said.
func (s schedule) delay(retry int, retryAfter time.Duration) time.Duration {
	base := s.delays[retry-1]
	if asked := min(retryAfter, s.maxAfter); asked > base {
		return asked + time.Duration(s.jitter*rand.Float64()*float64(asked)) //nolint:gosec // spreading load needs no secrecy
	}
	return base + time.Duration(s.jitter*(2*rand.Float64()-1)*float64(base)) //nolint:gosec // as above
}
