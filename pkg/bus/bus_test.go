package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

const ackWait = time.Second

// pull returns the next n deliveries of the lane.
func pull(t *testing.T, p *lane.Puller, n int) []*lane.Delivery {
	t.Helper()
	var got []*lane.Delivery
	for deadline := time.Now().Add(30 * time.Second); len(got) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("got %d deliveries, want %d", len(got), n)
		}
		if _, err := p.Pull(t.Context(), n-len(got), bus.Unbounded, func(d *lane.Delivery) { got = append(got, d) }); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

func TestPublishOutlivesTheBroker(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	s.Stop()
	done := make(chan error, 1)
	go func() { done <- lane.Notify(b, bustest.Example(1)).Wait(context.Background()) }()
	s.Run()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	first, err := lane.First(t.Context(), b, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	pull(t, first, 1)
}

func TestLeaseHasOneHolder(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	leases, err := b.Bucket(t.Context(), topology.BucketLeases)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var held []*bus.Lease
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			l, err := leases.Acquire(context.Background(), "acme.lane", fmt.Sprint(i))
			if err == nil {
				mu.Lock()
				held = append(held, l)
				mu.Unlock()
			} else if !errors.Is(err, bus.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(held) != 1 {
		t.Fatalf("%d hold the lease", len(held))
	}
	if err := held[0].Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := held[0].Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := leases.Acquire(t.Context(), "acme.lane", "next"); err != nil {
		t.Errorf("after its release: %v", err)
	}
	if err := held[0].Renew(t.Context()); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("renewing a lost lease: got %v", err)
	}
}

// TestUnder: work under a lease outlasts its life, ends when the lease is lost, and gives it back.
func TestUnder(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	leases, err := b.Bucket(t.Context(), topology.BucketLeases)
	if err != nil {
		t.Fatal(err)
	}
	const key, ttl = "acme.lane", topology.LeaseTTL
	other := func() error { _, err := leases.Acquire(t.Context(), key, "other"); return err }
	err = leases.Under(t.Context(), key, "one", ttl, func(held context.Context) error {
		sleep.For(held, ttl+ttl/2)
		if err := other(); held.Err() != nil || !errors.Is(err, bus.ErrConflict) {
			t.Errorf("after its life: held %v, another one gets %v", held.Err(), err)
		}
		if err := leases.Delete(t.Context(), key, 0); err != nil {
			return err
		}
		<-held.Done()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stop, cancel := context.WithCancel(t.Context())
	if err := leases.Under(stop, key, "one", ttl, func(held context.Context) error {
		cancel()
		<-held.Done()
		return other()
	}); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("while work comes to its end another one gets %v", err)
	}
	if err := other(); err != nil {
		t.Errorf("after the end: %v", err)
	}
}
