package publisher

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// TestTrim acknowledges the first of two notifications. It goes once the duplicate window has passed; the second stays.
func TestTrim(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	b := r.broker.Connect("trim")
	for _, id := range []string{"one", "two"} {
		if _, err := b.Publish(ctx, topology.Notifications, bus.NewMessage(topology.SubjectNotification("acme", id), id, nil)); err != nil {
			t.Fatal(err)
		}
	}
	first, err := r.js.CreateConsumer(ctx, topology.Notifications, jetstream.ConsumerConfig{Durable: topology.ConsumerFirst, AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	m, err := first.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(ctx); err != nil {
		t.Fatal(err)
	}
	acked := time.Now()
	trimming, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); trim(trimming, r.log, b, time.Second) }()
	r.until("the first is trimmed", func() bool {
		has, err := b.Has(ctx, topology.Notifications, topology.SubjectNotification("acme", "one"))
		return err == nil && !has
	})
	if kept := time.Since(acked); kept < time.Second {
		t.Errorf("the first was kept %v, less than the duplicate window", kept)
	}
	end()
	<-done
	if has, err := b.Has(ctx, topology.Notifications, topology.SubjectNotification("acme", "two")); err != nil || !has {
		t.Errorf("the second is there: %v, %v; want true", has, err)
	}
}
