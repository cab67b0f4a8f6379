package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TestHeldComesAgain: a message that comes again to the process that holds it is not taken twice. It is the process's
// again when no other one had it in between.
func TestHeldComesAgain(t *testing.T) {
	t.Parallel()
	b := new(Bus)
	b.holder.held = map[place]*Held{}
	b.holder.begin.Do(func() {}) // nothing is kept
	hold := func(delivered uint64) *Held {
		sequence := jetstream.SequencePair{Stream: 7}
		return b.Hold(nil, &jetstream.MsgMetadata{Stream: "NOTIFICATIONS", Sequence: sequence, NumDelivered: delivered}, time.Hour)
	}
	h := hold(1)
	if !h.Ours() {
		t.Fatal("a message that has just come is not ours")
	}
	freeze := func() {
		h.since = h.since.Add(-2 * time.Hour)
		if h.Ours() {
			t.Fatal("a message whose ack wait has ended is ours")
		}
		h.since = time.Now()
		if h.Ours() {
			t.Fatal("a message that was lost is ours because it was kept later")
		}
	}
	freeze()
	if hold(2) != nil {
		t.Fatal("a message is held twice")
	}
	if !h.Ours() {
		t.Error("a message that came to no other process is not ours")
	}
	freeze()
	if hold(4) != nil {
		t.Fatal("a message is held twice")
	}
	if h.Ours() {
		t.Error("a message that another process had is ours")
	}
	h.Release()
	if h = hold(5); h == nil || !h.Ours() {
		t.Error("a message that was released cannot be held again")
	}
}
