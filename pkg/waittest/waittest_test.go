package waittest_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"gancho/pkg/waittest"
)

// spy is a test that may fail.
type spy struct {
	ctx    context.Context //nolint:containedctx // as a test has one
	failed string
}

func (s *spy) Helper()                  {}
func (s *spy) Context() context.Context { return s.ctx }
func (s *spy) Fatalf(format string, args ...any) {
	s.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestUntil(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		after  time.Duration // it is so
		ends   time.Duration // the test's context
		failed string
		waited time.Duration // at most, and at least a pause less
	}{
		"at once":          {0, time.Hour, "", 0},
		"after a while":    {time.Second, time.Hour, "", time.Second + 20*time.Millisecond},
		"never":            {time.Hour, 2 * time.Hour, "waited until it is so: context deadline exceeded", 2 * time.Minute},
		"the test is over": {time.Hour, time.Minute, "waited until it is so: context deadline exceeded", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tc.ends)
				defer cancel()
				s, began, ended := &spy{ctx: ctx}, time.Now(), make(chan struct{})
				go func() { // Goexit ends a goroutine
					defer close(ended)
					waittest.Until(s, "it is so", func() bool { return time.Since(began) >= tc.after })
				}()
				<-ended
				if waited := time.Since(began); s.failed != tc.failed || waited > tc.waited || waited < tc.waited-20*time.Millisecond {
					t.Errorf("failed with %q after %v, want %q after %v", s.failed, waited, tc.failed, tc.waited)
				}
			})
		})
	}
}
