package lane

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// Arrival is a notification on NOTIFICATIONS, without its body.
type Arrival struct {
	notification.Notification

	StoredAt time.Time
	Size     int // bytes of its body
}

// ArrivalBatch is arrivals in order, to be acknowledged together.
type ArrivalBatch struct {
	Arrivals []Arrival
	msgs     []jetstream.Msg
}

// Ack settles the whole batch. After a lost ack its arrivals come again.
func (a *ArrivalBatch) Ack() { bus.Ack(a.msgs) }

// ArrivalConsumer reads the headers of NOTIFICATIONS. One goroutine pulls.
type ArrivalConsumer struct{ consumer *bus.Consumer }

// Arrivals returns a consumer that all processes share which use its name.
func Arrivals(ctx context.Context, b *bus.Bus, durable string) (*ArrivalConsumer, error) {
	c, err := b.Consumer(ctx, topology.Notifications, jetstream.ConsumerConfig{
		Durable: durable, AckWait: 30 * time.Second, MaxAckPending: 20_000, MaxDeliver: -1, HeadersOnly: true,
	})
	return &ArrivalConsumer{c}, err
}

// Pull returns at most n arrivals: the first after a pause, for which it waits about a second, or those of the last
// linger.
func (c *ArrivalConsumer) Pull(ctx context.Context, n int, linger time.Duration) (*ArrivalBatch, error) {
	var batch ArrivalBatch
	add := func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		n, err := notification.Decode(m.Headers(), nil)
		if err != nil && !errors.Is(err, wireversion.ErrNewer) {
			_ = m.Ack() // the dispatcher sets it aside
			return
		}
		batch.Arrivals = append(batch.Arrivals, Arrival{n, meta.Timestamp, bus.BodySize(m)})
		batch.msgs = append(batch.msgs, m)
	}
	return &batch, c.consumer.Gather(ctx, n, linger, add)
}

// Reader reads arrivals from a position that its user keeps; see bus.Reader.
type Reader struct{ *bus.Reader }

// NewReader returns a reader of NOTIFICATIONS from a position, from the beginning with a zero one. name is that of its
// consumer.
func NewReader(b *bus.Bus, name string, at bus.Position) *Reader {
	return &Reader{b.NewReader(topology.Notifications, name, at)}
}

// Read hands the arrivals that are there now to handle, with their sequences. It leaves out messages that are not
// notifications: the dispatcher sets them aside.
func (r *Reader) Read(ctx context.Context, began func(bus.Progress), handle func(a Arrival, sequence uint64)) error {
	last, met, err := r.Tail(ctx)
	if err != nil {
		return err
	}
	began(met)
	return r.ReadTo(ctx, last, func(msg jetstream.Msg, m *jetstream.MsgMetadata) {
		// counting is not handling
		if n, err := notification.Decode(msg.Headers(), nil); err == nil || errors.Is(err, wireversion.ErrNewer) {
			handle(Arrival{n, m.Timestamp, bus.BodySize(msg)}, m.Sequence.Stream)
		}
	})
}
