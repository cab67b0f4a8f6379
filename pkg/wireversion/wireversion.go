// Package wireversion is the version of what processes store for one another: messages, journal records and the
// values of buckets. Old and new versions of Gancho run side by side during an upgrade, and data stored
// by the newer one is still there after a way back.
//
// Each thing carries the lowest schema that reads it rightly; none means 1. A field that an older version may
// ignore does not raise it. A value above Newest is not touched: it waits for a process that knows it.
// Whoever only counts or shows may read it as far as it knows it.
package wireversion

import (
	"errors"
	"time"
)

// ErrNewer says that something was written by a newer version, and waits for one.
var ErrNewer = errors.New("it was written by a newer version of Gancho and waits for one: upgrade this service")

// Check returns ErrNewer for a schema that this version does not know. 0, where none is stored, is 1.
func Check(schema int) error {
	if schema > Newest {
		return ErrNewer
	}
	return nil
}

// Wait returns how long a message of a newer version waits before it is delivered again for the nth time: a second at
// first, twice as long each time, at most a minute.
func Wait(n int) time.Duration {
	return min(time.Second<<min(n-1, 10), time.Minute)
}
