package journal

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// SummariesOf hands the summaries of one account's records with sequences from first to last, both included, to handle
// in order.
func SummariesOf(
	ctx context.Context, b *bus.Bus, account string, first, last uint64, handle func(*notification.Summary),
) error {
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{topology.SubjectAttempts(account, "*")}, HeadersOnly: true,
	}
	return b.ReadBetween(ctx, topology.Attempts, cfg, first, last, func(m jetstream.Msg, sequence uint64) bool {
		s, err := notification.ParseSummary(m.Headers().Get(notification.HeaderSummary), sequence)
		if err != nil {
			b.Logger().Error("an unreadable journal record is skipped", zap.Error(err))
			return true
		}
		handle(&s)
		return true
	})
}
