package monitor

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/suspension"
)

// outage is a lasting trouble with Redis. It is logged when it begins, when its cause changes, and once a minute at
// most. Safe for concurrent use.
type outage struct {
	log  *zap.Logger
	host string // of Redis, for people

	mu     sync.Mutex
	cause  string // "" while Redis works
	logged time.Time
}

const logEvery = time.Minute

// state is "" while Redis works, else the host and the cause.
func (o *outage) state() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cause == "" {
		return ""
	}
	return o.host + ": " + o.cause
}

func (o *outage) failed(err error, now time.Time) {
	cause := suspension.Cause(err)
	o.mu.Lock()
	defer o.mu.Unlock()
	if cause == o.cause && now.Sub(o.logged) < logEvery {
		return
	}
	o.cause, o.logged = cause, now
	o.log.Warn("Redis cannot be used; known suspensions stand, no new ones are decided",
		zap.String("host", o.host), zap.String("cause", cause), zap.Error(err))
}

// ended reports whether there was trouble until now.
func (o *outage) ended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cause == "" {
		return false
	}
	o.cause, o.logged = "", time.Time{}
	o.log.Info("Redis is back", zap.String("host", o.host))
	return true
}
