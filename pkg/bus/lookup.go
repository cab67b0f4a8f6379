package bus

import (
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

// GatherBytes hands messages of together about room bytes at most to add, at most mostGathered. It waits for the first
// like Fetch, and for more at most linger. Like Fetch it takes those that come to be as large as those that came
// lately; FetchBytes of nats.go allocates 16 MB each time.
func (c *Consumer) GatherBytes(ctx context.Context, room int, linger time.Duration, add func(jetstream.Msg)) error {
	got, err := c.Fetch(ctx, 1, Unbounded, add)
	if err != nil || got == 0 {
		return err
	}
	n := min(max(room/c.size, 1), mostGathered)
	rest, err := c.c.Fetch(n, jetstream.FetchMaxWait(max(linger, 10*time.Millisecond)))
	if err != nil {
		return nil //nolint:nilerr // the first message is worth handling; the next call meets the error again
	}
	for m := range rest.Messages() {
		c.size = max(len(m.Data()), c.size)
		add(m)
	}
	return nil
}
