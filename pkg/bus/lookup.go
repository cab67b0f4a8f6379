package bus

import (
	"cmp"
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ReadBetween hands the messages of a stream with sequences from first to last, both included, to handle in order,
// until it returns false.
func (b *Bus) ReadBetween(
	ctx context.Context, stream string, cfg jetstream.OrderedConsumerConfig, first, last uint64,
	handle func(m jetstream.Msg, sequence uint64) bool,
) error {
	cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, max(first, 1)
	return b.Read(ctx, stream, cfg, func(m jetstream.Msg, sequence, pending uint64) (bool, error) {
		return sequence <= last && handle(m, sequence) && sequence < last && pending > 0, nil
	})
}

// mostGathered bounds a batch whose messages are larger than those that came lately.
const mostGathered = 128

// GatherBytes is Gather for messages of together about room bytes at most, at most mostGathered. Like Fetch it takes
// those that come to be as large as those that came lately; FetchBytes of nats.go allocates 16 MB each time.
func (c *Consumer) GatherBytes(ctx context.Context, room int, linger time.Duration, add func(jetstream.Msg)) error {
	return c.Gather(ctx, min(max(room/cmp.Or(c.size, firstSize), 1), mostGathered), linger, add)
}
