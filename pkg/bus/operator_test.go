package bus_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
)

// TestDeletedConsumerIsDoubted: row 72 of the bad inputs. What a consumer that was created again hands out
// is known to be doubtful, what is stored later is not.
func TestDeletedConsumerIsDoubted(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	js := s.JetStream()
	first, err := lane.First(t.Context(), b, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	notify := func(i int) {
		if err := lane.Notify(b, bustest.Example(i)).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		notify(i)
		d := pull(t, first, 1)[0]
		if d.Again {
			t.Errorf("message %d is doubted although it is new", i)
		}
		d.Ack()
	}
	if err := js.DeleteConsumer(t.Context(), topology.Notifications, topology.ConsumerFirst); err != nil {
		t.Fatal(err)
	}
	var got []*lane.Delivery
	for deadline := time.Now().Add(30 * time.Second); len(got) < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("got %d deliveries", len(got))
		}
		_, err := first.Pull(t.Context(), 3, bus.Unbounded, func(d *lane.Delivery) { got = append(got, d); d.Ack() }) // one pull meets the error
		if err != nil && !errors.Is(err, jetstream.ErrConsumerDeleted) && !strings.Contains(err.Error(), "responders") {
			t.Fatal(err)
		}
	}
	for _, d := range got {
		if !d.Again || d.NumDelivered != 1 {
			t.Errorf("message %d: doubted %v, NumDelivered %d", d.Sequence, d.Again, d.NumDelivered)
		}
	}
	notify(4)
	if d := pull(t, first, 1)[0]; d.Again {
		t.Error("a message stored after the consumer is doubted")
	}
}
