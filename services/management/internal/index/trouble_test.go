package index

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/redistest"
)

// TestRefusedWrites: a Redis without memory answers reads and refuses writes. The state stays, with the cause, and the
// log has it once a minute.
func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client()
	if err := rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	refused := rdb.Set(t.Context(), "key", "value", 0).Err()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		x := New(Config{}, nil, nil, zap.New(core))
		for range 110 {
			_ = x.check(refused)
			_ = x.check(nil)
			if !strings.HasPrefix(x.State(), "memory is full") {
				t.Fatalf("state %q", x.State())
			}
			time.Sleep(time.Second)
		}
		if logs.Len() != 2 {
			t.Errorf("%d lines in 110 s, want 2: %v", logs.Len(), logs.All())
		}
		time.Sleep(calmFor)
		_ = x.check(nil)
		if x.State() != "" {
			t.Errorf("state %q after it was calm", x.State())
		}
	})
}
