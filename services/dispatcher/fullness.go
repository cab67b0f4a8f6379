package dispatcher

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// fullness remembers which streams have lately refused a notification for lack of room. It is safe for concurrent use.
type fullness struct {
	log *zap.Logger
	bus *bus.Bus

	mu sync.Mutex
	at map[string]time.Time // of the last refusal, by stream
}

// fullFor is how long a stream counts as full after it refused a notification. fullRemembered is how long a refusal
// excuses many deliveries of one message.
const fullFor, fullRemembered = time.Minute, time.Hour

// refused notes that the stream has just refused a notification.
func (f *fullness) refused(stream string) {
	f.mu.Lock()
	if f.at == nil {
		f.at = map[string]time.Time{}
	}
	f.at[stream] = time.Now()
	f.mu.Unlock()
	if f.bus.ShouldLog("full " + stream) {
		f.log.Warn("a stream has no room: notifications that should wait there come back later",
			zap.String("stream", stream))
	}
}

// is reports whether the stream has refused a notification within the last minute.
func (f *fullness) is(stream string) bool { return f.within(stream, fullFor) }

// lately reports whether deliveries have been put off within the last hour because no stream had room for them.
func (f *fullness) lately() bool { return f.within(topology.Retries, fullRemembered) }

func (f *fullness) within(stream string, d time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.at[stream]
	return ok && time.Since(at) <= d
}

// State says for /readyz which stream is full, "" when none is.
func (f *fullness) State() string {
	switch {
	case f.is(topology.Retries):
		return "RETRIES has no room: notifications that should wait there are put off on their streams"
	case f.is(topology.Parked):
		return fmt.Sprintf("%s has no room: notifications that should wait there are moved to %s and come back",
			topology.Parked, topology.Retries)
	}
	return ""
}
