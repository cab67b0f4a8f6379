package bus_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// leaderOf returns the name of the server that leads a stream.
func leaderOf(t *testing.T, js jetstream.JetStream, stream string) string {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Cluster.Leader
}

// TestClusterReadsWhatWasAcknowledged writes at the leader of a bucket and asks at once at servers that may
// lag behind: acknowledged messages are there for all.
func TestClusterReadsWhatWasAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	servers := bustest.StartCluster(t, 30<<30)
	l := bustest.Limits()
	l.Replicas = 3
	writer := servers[0].Topology(l) // also: shares of the disk count for every replica
	leader := leaderOf(t, servers[0].JetStream(), "KV_"+topology.BucketWebhooks)
	written, err := writer.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	var followers []*bus.Bucket
	for i, s := range servers {
		if fmt.Sprint("server-", i+1) == leader {
			continue
		}
		b, err := s.Connect("reader").Bucket(t.Context(), topology.BucketWebhooks)
		if err != nil {
			t.Fatal(err)
		}
		followers = append(followers, b)
	}
	var writers sync.WaitGroup
	for w := range 8 { // together they keep the followers busy
		writers.Go(func() {
			for i := range 75 {
				key := fmt.Sprintf("acme.%d-%d", w, i)
				if _, err := written.Create(t.Context(), key, []byte("x")); err != nil {
					t.Error(err)
					return
				}
				for _, f := range followers {
					if _, err := f.Get(t.Context(), key); err != nil {
						t.Errorf("%s, right after it was stored: %v", key, err)
						return
					}
				}
			}
		})
	}
	writers.Wait()
}

// TestGrowToCluster takes a topology of one replica to three while a service uses it.
func TestGrowToCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	servers := bustest.StartCluster(t, 30<<30)
	l := bustest.Limits()
	l.StoreMaxBytes = 10 << 30
	b := servers[0].Topology(l)
	bucket, err := b.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Create(t.Context(), "acme.webhook", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := lane.Notify(b, bustest.Example(1)).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.Pending(t.Context(), b, bustest.Example(1).Account, bustest.Example(1).ID); err != nil {
		t.Fatal(err)
	}

	l.Replicas = 3
	done, err := b.Apply(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"stream NOTIFICATIONS: replicas 1 -> 3", "bucket WEBHOOKS: replicas 1 -> 3", "bucket WEBHOOKS: allow_direct true -> false"} {
		if !slices.Contains(done, want) {
			t.Errorf("done lacks %q: %q", want, done)
		}
	}
	if e, err := bucket.Get(t.Context(), "acme.webhook"); err != nil || string(e.Value) != "x" {
		t.Errorf("the bucket after it grew: %q, %v", e.Value, err)
	}
	if _, err := lane.Pending(t.Context(), b, bustest.Example(1).Account, bustest.Example(1).ID); err != nil {
		t.Errorf("the stream after it grew: %v", err)
	}

	// The copies fill; then any one server may die.
	js := servers[0].JetStream()
	for _, stream := range []string{topology.Notifications, "KV_" + topology.BucketWebhooks} {
		waittest.Until(t, stream+" has three copies", func() bool {
			s, err := js.Stream(t.Context(), stream)
			if err != nil {
				return false
			}
			c := s.CachedInfo().Cluster
			return c != nil && c.Leader != "" && len(c.Replicas) == 2 && !slices.ContainsFunc(c.Replicas, func(p *jetstream.PeerInfo) bool { return !p.Current })
		})
	}
	for i, s := range servers {
		if fmt.Sprint("server-", i+1) != leaderOf(t, js, "KV_"+topology.BucketWebhooks) {
			continue
		}
		other := servers[(i+1)%3].Connect("other")
		bucket, err := other.Bucket(t.Context(), topology.BucketWebhooks)
		if err != nil {
			t.Fatal(err)
		}
		s.Stop()
		waittest.Until(t, "another server leads the bucket", func() bool {
			_, err := bucket.Get(t.Context(), "acme.webhook")
			if errors.Is(err, bus.ErrNotFound) {
				t.Fatal("the webhook is lost")
			}
			return err == nil
		})
		if _, err := lane.Pending(t.Context(), other, bustest.Example(1).Account, bustest.Example(1).ID); err != nil {
			t.Errorf("the notification after a server died: %v", err)
		}
		return
	}
	t.Error("no server leads the bucket")
}

// TestRestoreIntoCluster moves a broker's streams into a cluster.
func TestRestoreIntoCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	for i := range 20 {
		if err := lane.Notify(b, bustest.Example(i+1)).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	to := bustest.StartCluster(t, 30<<30)[0].Connect("operator")
	for _, stream := range topology.Backup() {
		var copied bytes.Buffer
		snapshot, err := b.Backup(t.Context(), stream, &copied)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Restore(t.Context(), stream, snapshot, &copied); err != nil {
			t.Fatal(err)
		}
	}
	l := bustest.Limits()
	l.Replicas = 3
	if _, err := to.Apply(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.Pending(t.Context(), to, bustest.Example(20).Account, bustest.Example(20).ID); err != nil {
		t.Errorf("after the move: %v", err)
	}
}
