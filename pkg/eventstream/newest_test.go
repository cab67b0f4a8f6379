package eventstream

import (
	"fmt"
	"testing"

	"gancho/pkg/bus/bustest"
)

// TestNewest reads the newest events of one account out of those of others, which came in bursts.
func TestNewest(t *testing.T) {
	t.Parallel()
	broker := bustest.Start(t)
	b := broker.Connect("test")
	if err := b.Create(t.Context(), bustest.Limits()); err != nil {
		t.Fatal(err)
	}
	publish := func(account string, n int) {
		t.Helper()
		for range n {
			if _, err := Publish(t.Context(), b, "crm.events."+account+".crm_deal_created", "", nil, []byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
	}
	newest := func(n uint64) (sequences []uint64) {
		t.Helper()
		err := Newest(t.Context(), b, []string{"crm.events.acme.crm_deal_created"}, n, func(e *Event) error {
			sequences = append(sequences, e.Sequence)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return sequences
	}
	if got := newest(5); got != nil {
		t.Errorf("an empty stream has %v", got)
	}
	publish("acme", 100) // 1 to 100
	publish("other", 300)
	publish("acme", 3) // 401 to 403
	publish("other", 50)
	for n, most := range map[uint64]int{1: 3, 3: 6, 20: 40, 200: 103} {
		got := newest(n)
		if len(got) < min(int(n), 103) || len(got) > most || got[len(got)-1] != 403 {
			t.Errorf("the newest %d: %s", n, fmt.Sprint(got))
		}
	}
	if got := newest(1000); len(got) != 103 || got[0] != 1 {
		t.Errorf("all: %v", got)
	}
}
