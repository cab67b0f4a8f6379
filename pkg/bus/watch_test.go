package bus

import (
	"math"
	"testing"
	"time"
)

// TestStaleKeys: keys that went with a deleted bucket are believed until their owner had time to write them
// back, and then come as deleted, once.
func TestStaleKeys(t *testing.T) {
	t.Parallel()
	var got []Entry
	w := &watch{
		apply: func(e Entry) { got = append(got, e) },
		known: map[string]struct{}{"a": {}, "b": {}}, stale: map[string]struct{}{"a": {}}, until: time.Now().Add(time.Hour),
	}
	if w.giveUp(); len(got) > 0 {
		t.Fatalf("given up too soon: %v", got)
	}
	w.until = time.Now().Add(-time.Second)
	w.giveUp()
	w.giveUp()
	if len(got) != 1 || got[0].Key != "a" || got[0].Value != nil || got[0].Revision != math.MaxUint64 {
		t.Errorf("got %v, want the deletion of a", got)
	}
	if _, known := w.known["a"]; known || len(w.known) != 1 {
		t.Errorf("known: %v", w.known)
	}
}
