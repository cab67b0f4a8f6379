package eventstream_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
)

// TestFollow: every event comes once, and a batch of few allocates little, whatever the room. It is not parallel,
// because others allocate too.
func TestFollow(t *testing.T) { //nolint:paralleltest // see above
	b := bustest.Start(t).Topology(bustest.Limits())
	f, err := eventstream.Follow(t.Context(), b, "follower")
	if err != nil {
		t.Fatal(err)
	}
	const events = 20
	publish := func(from int) {
		for i := range events {
			if _, err := eventstream.Publish(t.Context(), b, event.Subject("acme", "crm_deal_created"), fmt.Sprint("follow-", from+i), nil, []byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
	}
	seen := uint64(0)
	read := func(until uint64) {
		for seen < until {
			batch, err := f.Pull(t.Context(), 8<<20, 10*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range batch.Events {
				if e.Sequence != seen+1 {
					t.Fatalf("event %d came after %d", e.Sequence, seen)
				}
				seen = e.Sequence
			}
			batch.Ack()
		}
	}
	publish(0)
	read(events)
	publish(events)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read(2 * events)
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 8<<20 {
		t.Errorf("reading %d events allocated %d bytes", events, allocated)
	}
}
