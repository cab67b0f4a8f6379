package bus_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/topology"
)

// TestWatchLoadsAllKeys: loaded is called when every key is there, although others are written all the time.
// A publisher that believed the broker's client here would not notify webhooks that it has not read yet.
func TestWatchLoadsAllKeys(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	bucket, err := s.Topology(bustest.Limits()).Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	const keys, busy = 300, 8
	for i := range keys {
		if _, err := bucket.Put(t.Context(), fmt.Sprintf("acme.%d", i), []byte("0")); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	for w := range busy {
		writers.Go(func() {
			for i := w; ctx.Err() == nil; i += busy {
				_, _ = bucket.Put(ctx, fmt.Sprintf("acme.%d", i%(keys/2)), []byte("1"))
			}
		})
	}
	for range 4 {
		watching, done := context.WithTimeout(ctx, 30*time.Second)
		seen := map[string]bool{}
		var at int
		if err := bucket.Watch(watching, func(e bus.Entry) { seen[e.Key] = true }, func() { at = len(seen); done() }); err != nil {
			t.Fatal(err)
		}
		done()
		if at != keys {
			t.Fatalf("loaded after %d of %d keys", at, keys)
		}
	}
}
