package bus_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// TestGather reads the first message after a pause at once, those that follow together after the linger, and full
// batches without it. Nothing is lost, also not with the consumer.
func TestGather(t *testing.T) {
	t.Parallel()
	const never = time.Hour
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	c, err := b.Consumer(t.Context(), topology.Notifications, jetstream.ConsumerConfig{Durable: "gatherer"})
	if err != nil {
		t.Fatal(err)
	}
	sent, seen := 0, uint64(0)
	send := func(n int) {
		t.Helper()
		for range n {
			sent++
			if err := lane.Notify(b, bustest.Example(sent)).Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	gather := func(n int, linger time.Duration, want int) {
		t.Helper()
		var got []jetstream.Msg
		if err := c.Gather(t.Context(), n, linger, func(m jetstream.Msg) { got = append(got, m) }); err != nil {
			t.Fatal(err)
		}
		if len(got) != want {
			t.Fatalf("got %d messages, want %d", len(got), want)
		}
		for _, m := range got {
			meta, err := m.Metadata()
			if err != nil || meta.Sequence.Stream != seen+1 {
				t.Fatalf("after message %d came %+v, %v", seen, meta, err)
			}
			seen++
		}
		bus.Ack(got)
	}
	send(1)
	gather(3, never, 1)
	send(8)
	gather(3, time.Millisecond, 3)
	gather(3, never, 3)
	gather(3, never, 2)
	gather(3, time.Millisecond, 0) // nothing came in the linger, nor in the wait for a first one
	send(2)
	gather(3, never, 1)
	if err := s.JetStream().DeleteConsumer(t.Context(), topology.Notifications, "gatherer"); err != nil {
		t.Fatal(err)
	}
	came := false
	waittest.Until(t, "what comes after the consumer was deleted", func() bool {
		_ = c.Gather(t.Context(), 3, time.Millisecond, func(m jetstream.Msg) {
			meta, err := m.Metadata()
			came = came || err == nil && meta.Sequence.Stream == seen+1
		})
		return came
	})
}
