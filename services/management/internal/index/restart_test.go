package index

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/redistest"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// TestRestartTogetherWithRedis: a management that stops together with a Redis that loses its last writes finds the gap
// when it starts, and fills it.
func TestRestartTogetherWithRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	rdb := server.Client()
	b := bustest.Start(t).Topology(bustest.Limits())
	const webhook, records = "0c5a0c4e-8f3b-4a52-9d0a-3f3c9b6a3b11", 50
	for i := range records {
		r := &notification.Record{
			Kind: notification.KindAttempt, NotificationID: uuid.NewSHA1(uuid.NameSpaceURL, []byte{byte(i)}).String(), Account: "acme",
			WebhookID: webhook, EventID: uuid.NewString(), EventName: "crm_deal_created", State: notification.Delivered, Send: 1,
			AttemptsDone: 1, At: time.Now().UTC(),
		}
		if _, err := journal.Write(t.Context(), b, r); err != nil {
			t.Fatal(err)
		}
	}
	run := func(x *Index, until func() bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- x.Run(ctx) }()
		waittest.Until(t, "the index has caught up", until)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	open := func() *Index { return New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, rdb, b, zaptest.NewLogger(t)) }
	listed := func(x *Index) func() bool {
		return func() bool {
			entries, partial, err := x.Recent(t.Context(), webhook)
			return err == nil && !partial && len(entries) == records
		}
	}
	x := open()
	consumer := topology.Durable{Stream: topology.Attempts, Name: topology.ConsumerIndex}
	run(x, func() bool {
		state, err := b.ConsumerState(t.Context(), consumer)
		return err == nil && state.Settled >= records && listed(x)()
	})

	// Redis comes back without the last entries and marks.
	for _, key := range keysOf(webhook) {
		rdb.Del(t.Context(), key)
	}
	rdb.ZAdd(t.Context(), keySeen, redis.Z{Score: 10, Member: x.name})
	again := open()
	run(again, listed(again))
}
