package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/registry"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// raw is a connection past the bus.
func raw(t *testing.T, s *bustest.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// TestDeletedBucket: row 72 of the bad inputs, for buckets. The owner creates it anew and writes back what it
// knows; who watches is not ready meanwhile, keeps its copy, and follows the new one.
func TestDeletedBucket(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits()).Close() // else that one would create it anew
	owner, other := s.Connect("management"), s.Connect("publisher")
	if err := owner.Own(t.Context(), topology.Management, bustest.Limits()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var runs sync.WaitGroup
	defer runs.Wait()
	defer stop()
	follow := func(b *bus.Bus, restores bool) *registry.Registry {
		t.Helper()
		r, err := registry.Open(ctx, b, bustest.Logger(t))
		if err != nil {
			t.Fatal(err)
		}
		if restores {
			r.Restores()
		}
		loaded := make(chan struct{})
		runs.Go(func() { _ = r.Run(ctx, func() { close(loaded) }, nil) })
		select {
		case <-loaded:
		case <-time.After(30 * time.Second):
			t.Fatal("an empty bucket is not loaded")
		}
		return r
	}
	mine, theirs := follow(owner, true), follow(other, false)
	await := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(40 * time.Second); !done(); <-time.After(10 * time.Millisecond) {
			if theirs.Len() < min(mine.Len(), 20) {
				t.Fatalf("webhooks are forgotten while waiting: %s", what)
			}
			if time.Now().After(deadline) {
				t.Fatalf("not within 40 s: %s (owner has %d, the other %d)", what, mine.Len(), theirs.Len())
			}
		}
	}
	const count = 20
	var last uint64
	hooks := make([]*webhook.Webhook, count)
	for i := range count {
		hooks[i] = &webhook.Webhook{ID: uuid.NewString(), Account: "acme", URL: fmt.Sprintf("https://ok.example/%d", i), EventName: "*", Status: webhook.Active}
		value, err := hooks[i].Encode()
		if err != nil {
			t.Fatal(err)
		}
		if last, err = mine.Bucket().Create(ctx, hooks[i].Key(), value); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); mine.Len() < count || theirs.Len() < count; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d and %d webhooks known, want %d", mine.Len(), theirs.Len(), count)
		}
	}
	js := raw(t, s)
	if err := js.DeleteStream(ctx, "KV_"+topology.BucketWebhooks); err != nil {
		t.Fatal(err)
	}
	await("who watches says so", func() bool {
		return strings.Contains(other.State(), "bucket WEBHOOKS: deleted") || revision(ctx, mine, hooks[0]) > last
	})
	await("they are written back", func() bool { return revision(ctx, theirs, hooks[count-1]) > last })
	await("both are ready", func() bool { return owner.State() == "" && other.State() == "" })
	if mine.Len() != count || theirs.Len() != count {
		t.Errorf("%d and %d webhooks known, want %d", mine.Len(), theirs.Len(), count)
	}
	w := *hooks[0]
	w.Name = "changed"
	value, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mine.Bucket().Update(ctx, w.Key(), value, last); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("an old revision holds in the new bucket: %v", err)
	}
	if _, err := mine.Bucket().Put(ctx, w.Key(), value); err != nil {
		t.Fatal(err)
	}
	await("changes are followed", func() bool {
		return theirs.Get("acme", w.ID).Name == "changed" && mine.Get("acme", w.ID).Name == "changed"
	})
}

// revision is that of the webhook in the bucket, 0 when it is not there.
func revision(ctx context.Context, r *registry.Registry, w *webhook.Webhook) uint64 {
	e, err := r.Bucket().Get(ctx, w.Key())
	if err != nil {
		return 0
	}
	return e.Revision
}
