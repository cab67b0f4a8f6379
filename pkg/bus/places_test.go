package bus_test

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
)

// TestPullIsBoundedByBytes: a pull brings no more than it has room for, and what is left comes with the next.
func TestPullIsBoundedByBytes(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	first, err := lane.First(t.Context(), b, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	const count, size = 20, 100 << 10
	for i := range count {
		n := bustest.Example(i)
		n.Body = append([]byte(`{"a":"`), append(bytes.Repeat([]byte("x"), size-8), `"}`...)...)
		if err := lane.Notify(b, n).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	most := 1 // before the size of messages is known
	for left := count; left > 0; {
		got, err := first.Pull(t.Context(), count, 3*size+size/2, func(d *lane.Delivery) {
			if d.NumDelivered != 1 {
				t.Errorf("delivery %d of a message that was not handed out", d.NumDelivered)
			}
			d.Ack()
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := min(most, left); got != want {
			t.Fatalf("a pull brought %d, want %d", got, want)
		}
		left, most = left-got, 3
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := bus.NewPlaces(100, 1000, 300)
		if n, room := p.Take(t.Context()); n != 100 || room != 1000 {
			t.Fatalf("took %d places and %d bytes", n, room)
		}
		p.Give(98, 400) // two messages of 300 bytes each are in hand
		if n, room := p.Try(10); n != 10 || room != 300 {
			t.Errorf("tried and got %d places and %d bytes", n, room)
		}
		if n, room := p.Try(10); n != 0 || room != 0 {
			t.Errorf("with room for a small one only: %d places and %d bytes", n, room)
		}
		type taken struct{ n, room int }
		got := make(chan taken)
		go func() { n, room := p.Take(t.Context()); got <- taken{n, room} }()
		synctest.Wait()
		select {
		case x := <-got:
			t.Fatalf("took %+v without room for the largest message", x)
		default:
		}
		p.Give(1, 300)
		if x := <-got; x != (taken{89, 400}) {
			t.Errorf("took %+v", x)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { n, room := p.Take(ctx); got <- taken{n, room} }()
		cancel()
		if x := <-got; x != (taken{}) {
			t.Errorf("after the end: %+v", x)
		}
		small := bus.NewPlaces(4, 10, 300)
		if n, room := small.Take(t.Context()); n != 4 || room != 300 {
			t.Errorf("with less room than one message takes: %d places and %d bytes", n, room)
		}
	})
}
