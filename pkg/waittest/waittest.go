// Package waittest waits in tests for a state of another process or server that gives no signal.
package waittest

import (
	"context"
	"time"
)

// patience is far more than any state takes on a busy machine, and less than the time of a test binary.
const patience = 2 * time.Minute

// T is the part of a test or a benchmark that waiting needs. Fatalf must not return.
type T interface {
	Helper()
	Context() context.Context
	Fatalf(format string, args ...any)
}

// Until returns once done returns true. It calls done at once, and then again after pauses that grow from 1 ms to 20
// ms. It fails the test, naming what was waited for, when that takes longer than two minutes or the test's context
// ends.
func Until(t T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pause := time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for !done() {
		select {
		case <-timer.C:
			pause = min(2*pause, 20*time.Millisecond)
			timer.Reset(pause)
		case <-ctx.Done():
			t.Fatalf("waited until %s: %v", what, ctx.Err())
		}
	}
}
