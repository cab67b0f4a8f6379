package redistest_test

import (
	"context"
	"testing"
	"time"

	"gancho/pkg/redistest"
)

func TestServerKeepsDataOverKillAndRestart(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, "--appendfsync", "always")
	c := s.Client()
	addr := s.Addr
	if err := c.Set(t.Context(), "answer", "42", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	s.Kill()
	if err := c.Ping(t.Context()).Err(); err == nil {
		t.Fatal("the server answers after Kill")
	}
	s.Restart()
	if got := c.Get(t.Context(), "answer").Val(); got != "42" || s.Addr != addr {
		t.Errorf("after Restart got %q at %s, want 42 at %s", got, s.Addr, addr)
	}
}

func TestPausedServerHangs(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := s.Client()
	s.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := c.WithTimeout(200 * time.Millisecond).Ping(ctx).Err(); err == nil {
		t.Error("a paused server answers")
	}
	s.Continue()
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Errorf("after Continue: %v", err)
	}
}
