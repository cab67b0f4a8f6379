package bus_test

import (
	"bytes"
	"testing"
	"time"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// TestAckSoon has acks wait for an hour: those of many bytes go at once all the same, and so do all when the process
// stops.
func TestAckSoon(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	other := s.Topology(bustest.Limits())
	b := s.Connect("dispatcher")
	b.AckDelay(time.Hour)
	first, err := lane.First(t.Context(), b, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	sent := uint64(0)
	send := func(size int) {
		t.Helper()
		sent++
		n := bustest.Example(int(sent))
		n.Body = bytes.Repeat([]byte(" "), size)
		if err := lane.Notify(other, n).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		pull(t, first, 1)[0].Ack()
	}
	durable := topology.Durable{Stream: topology.Notifications, Name: topology.ConsumerFirst}
	settled := func() uint64 {
		state, err := other.ConsumerState(t.Context(), durable)
		if err != nil {
			t.Fatal(err)
		}
		return state.Settled
	}
	send(100)
	if n := settled(); n != 0 {
		t.Errorf("%d are settled at once", n)
	}
	send(600 << 10)
	send(600 << 10)
	waittest.Until(t, "acks of many bytes", func() bool { return settled() == sent })
	send(100)
	b.Close()
	waittest.Until(t, "acks of a process that stops", func() bool { return settled() == sent })
}
