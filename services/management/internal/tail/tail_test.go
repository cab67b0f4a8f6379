package tail

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/waittest"
	"gancho/services/management/internal/problem"
)

func record(t *testing.T, b *bus.Bus, account string) {
	t.Helper()
	_, err := journal.Write(t.Context(), b, &notification.Record{
		Kind: notification.KindAttempt, At: time.Now(), Account: account, NotificationID: uuid.NewString(), Send: 1, State: notification.Delivered,
		Attempt: &notification.Attempt{Number: 1, Outcome: notification.OutcomeDelivered},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSlowReader is cut off when it is too far behind, while a fast one gets everything.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	s := New(b)
	slow, err := s.Open(t.Context(), "acme", Filter{})
	if err != nil {
		t.Fatal(err)
	}
	fast, err := s.Open(t.Context(), "acme", Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(slow.Await(nil), fast.Await(nil)); err != nil {
		t.Fatal(err)
	}
	const all = buffer + 100
	got := make(chan int)
	go func() {
		n := 0
		for range fast.Attempts {
			if n++; n == all {
				break
			}
		}
		got <- n
	}()
	for range all {
		record(t, b, "acme")
	}
	if n := <-got; n != all {
		t.Errorf("the fast reader got %d, want %d (%q)", n, all, fast.End())
	}
	n := 0
	for range slow.Attempts {
		n++
	}
	if n != buffer || slow.End() != EndTooSlow {
		t.Errorf("the slow reader got %d and ended %q, want %d and %q", n, slow.End(), buffer, EndTooSlow)
	}
}

func TestTailsAreBounded(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	s := New(b)
	ctx, stop := context.WithCancel(t.Context())
	var last *Tail
	for i := range maxTails {
		var err error
		if last, err = s.Open(ctx, fmt.Sprint("account", i/maxOfAccount), Filter{}); err != nil {
			t.Fatalf("tail %d: %v", i+1, err)
		}
		if i == maxOfAccount-1 {
			if _, err := s.Open(ctx, "account0", Filter{}); problem.Of(err).Kind != problem.Limited {
				t.Errorf("one more than an account may have: %v", err)
			}
		}
	}
	if _, err := s.Open(ctx, "another", Filter{}); problem.Of(err).Kind != problem.Unavailable {
		t.Errorf("one more than there may be: %v", err)
	}
	stop()
	for range last.Attempts {
		t.Error("an attempt from nowhere")
	}
	if end := last.End(); end != "" {
		t.Errorf("end = %q, want none: the reader left by itself", end)
	}
	waittest.Until(t, "no tail and no account is counted", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.open+len(s.accounts) == 0
	})
}
