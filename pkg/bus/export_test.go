package bus

import (
	"time"

	"github.com/nats-io/nats.go"
)

// SyncingBroker has the stream's writer act as with a broker that syncs every message: waiting messages go in batches.
func (b *Bus) SyncingBroker(stream string) {
	w := b.writer(stream)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.synced = true
}

// Written is a writer's state.
type Written struct {
	Queued, InFlight, Batches int
	Spared                    bool
}

// Written returns the state of the stream's writer.
func (b *Bus) Written(stream string) Written {
	w := b.writer(stream)
	w.mu.Lock()
	defer w.mu.Unlock()
	return Written{len(w.queue), w.inFlight, w.batches, time.Now().Before(w.spared)}
}

// CommitUnanswered stores the messages in one batch, loses the broker's answer, and goes on as the writer then does.
func (b *Bus) CommitUnanswered(stream string, messages []*nats.Msg) ([]*Started, error) {
	w := b.writer(stream)
	started := make([]*Started, 0, len(messages))
	for _, m := range messages {
		started = append(started, &Started{w: w, msg: m, began: time.Now(), sent: make(chan struct{})})
	}
	if _, err := w.commit(started); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.batching = true
	w.mu.Unlock()
	w.batch(started)
	return started, nil
}

// AckDelay has acknowledgements that may wait for others wait that long.
func (b *Bus) AckDelay(d time.Duration) { b.acks.delay = d }

// LookEvery has streams, buckets and consumers that are opened from now on looked at that often.
func (b *Bus) LookEvery(d time.Duration) { b.lookEvery = d }

// ConnectDialing is Connect with another way to dial.
var ConnectDialing = connect

// IgnoreVersion has the bus work with a broker of any version.
func (b *Bus) IgnoreVersion() {
	b.link.mu.Lock()
	defer b.link.mu.Unlock()
	b.link.lenient = true
}
