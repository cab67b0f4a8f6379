package bus

import (
	"context"
	"time"

	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// SyncingBroker has the stream's writer act as beside a broker that syncs every message: what waits goes in batches.
func (b *Bus) SyncingBroker(stream string) {
	w := b.writer(stream)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.synced = true
}

// Written is what a writer holds and has done.
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

// RecordUnanswered stores the records in one batch, loses the broker's answer, and goes on as the writer then
// does.
func (b *Bus) RecordUnanswered(ctx context.Context, records []*notification.Record) (sequences []uint64, err error) {
	w := b.writer(topology.Attempts)
	messages := make([]*Started, 0, len(records))
	for _, r := range records {
		m, err := recordMessage(r)
		if err != nil {
			return nil, err
		}
		messages = append(messages, &Started{w: w, msg: m, began: time.Now(), sent: make(chan struct{})})
	}
	if _, err := w.commit(messages); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.batching = true
	w.mu.Unlock()
	w.batch(messages)
	for i, r := range records {
		sequence, err := (&StartedRecord{r: r, p: messages[i]}).Wait(ctx)
		if err != nil {
			return nil, err
		}
		sequences = append(sequences, sequence)
	}
	return sequences, nil
}

// LookEvery has streams, buckets and consumers that are opened from now on looked at that often.
func (b *Bus) LookEvery(d time.Duration) { b.lookEvery = d }
