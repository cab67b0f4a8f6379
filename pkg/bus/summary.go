package bus

import (
	"context"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// SummaryBatch is summaries in the order of the journal, to be acknowledged together.
type SummaryBatch struct {
	Summaries []notification.Summary
	msgs      []jetstream.Msg
}

// Ack settles all of the batch. A lost ack means that summaries come again.
func (b *SummaryBatch) Ack() { settle(b.msgs) }

// SummaryConsumer reads the journal's summaries.
type SummaryConsumer struct {
	*Consumer

	decides bool // what a newer version wrote is left to one; whoever only shows it reads what it knows
}

// Summaries returns a durable reader of the whole journal from its beginning, shared by all that use its
// name. The broker sends headers only.
func (b *Bus) Summaries(ctx context.Context, durable string) (*SummaryConsumer, error) {
	c, err := b.Consumer(ctx, topology.Attempts, jetstream.ConsumerConfig{
		Durable: durable, AckWait: 30 * time.Second, MaxAckPending: 20_000, MaxDeliver: -1, HeadersOnly: true,
	})
	return &SummaryConsumer{c, durable == topology.ConsumerMonitor}, err
}

// Pull returns at most n summaries; it waits for the first about a second, and for more at most linger.
func (c *SummaryConsumer) Pull(ctx context.Context, n int, linger time.Duration) (*SummaryBatch, error) {
	var batch SummaryBatch
	add := func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		if version, _ := strconv.Atoi(m.Headers().Get(notification.HeaderSchema)); c.decides && schema.Check(version) != nil {
			c.b.Newer(topology.Attempts)
			_ = m.NakWithDelay(schema.Wait(int(meta.NumDelivered))) //nolint:gosec // a count
			return
		}
		s, err := notification.ParseSummary(m.Headers().Get(notification.HeaderSummary), meta.Sequence.Stream)
		if err != nil {
			c.b.log.Error("an unreadable journal record is skipped", zap.Error(err))
			_ = m.Ack()
			return
		}
		batch.Summaries = append(batch.Summaries, s)
		batch.msgs = append(batch.msgs, m)
	}
	return &batch, c.Gather(ctx, n, linger, add)
}
