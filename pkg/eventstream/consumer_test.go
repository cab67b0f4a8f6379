package eventstream_test

import (
	"fmt"
	"testing"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
)

// TestKeep: an event under way stays with its publisher for longer than the ack wait; one that was abandoned comes
// again.
func TestKeep(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	c, err := eventstream.Consume(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := eventstream.Publish(t.Context(), b, event.Subject("acme", "crm_deal_created"), fmt.Sprint("keep-", i), nil, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint64]int{}
	// Sequence 2 comes three times: the third time is two ack waits after the first.
	for seen[2] < 3 {
		err := c.Pull(t.Context(), 2, 4<<20, func(d *eventstream.Delivery) {
			seen[d.Sequence]++
			switch {
			case d.Sequence == 1: // under way for the whole test
			case seen[2] < 3:
				d.Abandon()
			default:
				d.Ack()
			}
		})
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	if seen[1] != 1 {
		t.Errorf("the event under way was delivered %d times", seen[1])
	}
}
