// Package sleep pauses until a time has passed or a context has ended.
package sleep

import (
	"context"
	"time"
)

// For pauses for d and reports whether d passed before ctx ended.
func For(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
