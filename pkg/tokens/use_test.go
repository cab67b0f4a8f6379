package tokens

import (
	"maps"
	"testing"
	"time"

	"gancho/pkg/redistest"
)

// TestUse: of what two replicas write the newer time stands, and it survives a restart of Redis as it is deployed.
func TestUse(t *testing.T) {
	t.Parallel()
	server := redistest.StartShipped(t)
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	for _, used := range []map[string]time.Time{
		{"tok_1": at, "tok_2": at.Add(time.Hour)},
		{"tok_1": at.Add(time.Minute), "tok_2": at},
		{},
	} {
		if err := WriteUse(t.Context(), server.As("management"), used); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]time.Time{"tok_1": at.Add(time.Minute), "tok_2": at.Add(time.Hour)}
	check := func(when string) {
		t.Helper()
		got, err := ReadUse(t.Context(), server.As("management"))
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: used %v, %v; want %v", when, got, err, want)
		}
	}
	check("at first")
	server.Stop()
	server.Restart()
	check("after a restart")
}
