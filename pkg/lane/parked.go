package lane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// A lane of PARKED has two parts: notifications that were attempted before, and those that were not. A notification is
// attempted for the first time before it can wait for a retry, so those in the first part are older, although they are
// parked later: when they fall due. A drain takes them out first.
const retried = "-retried" // behind the lane's name in the subject of the first part

// parts returns the subjects of a lane, in the order in which they are taken out.
func parts(account, lane, webhook string) []string {
	return []string{
		topology.SubjectParked(account, lane+retried, webhook), topology.SubjectParked(account, lane, webhook),
	}
}

// subjectOf returns where n is parked in a lane.
func subjectOf(n *notification.Notification, lane string) string {
	if n.AttemptsDone > 0 {
		lane += retried
	}
	return topology.SubjectParked(n.Account, lane, n.WebhookID)
}

// Backlog is the messages on PARKED of one webhook in one lane.
type Backlog struct {
	Account, Lane, WebhookID string
	Messages                 uint64
}

// Backlogs lists the backlogs of an account, of all accounts with "" (10,000 webhooks: 17 ms measured).
func Backlogs(ctx context.Context, b *bus.Bus, account string) ([]Backlog, error) {
	filter := topology.SubjectsParked
	if account != "" {
		filter = topology.SubjectParked(account, "*", "*")
	}
	subjects, err := b.Subjects(ctx, topology.Parked, filter)
	if err != nil {
		return nil, err
	}
	out := make([]Backlog, 0, len(subjects))
	for subject, n := range subjects {
		t := strings.Split(subject, ".")
		if len(t) != 5 {
			continue
		}
		lane, isRetried := strings.CutSuffix(t[3], retried)
		if main := topology.SubjectParked(t[2], lane, t[4]); isRetried && subjects[main] > 0 {
			continue // counted with it
		} else if !isRetried {
			n += subjects[topology.SubjectParked(t[2], lane+retried, t[4])]
		}
		out = append(out, Backlog{t[2], lane, t[4], n})
	}
	return out, nil
}

// OldestParked returns when the oldest message of the lane was parked, of one webhook or of all with "*";
// bus.ErrNotFound when there is none.
func OldestParked(ctx context.Context, b *bus.Bus, account, lane, webhook string) (time.Time, error) {
	var oldest time.Time
	for _, subject := range parts(account, lane, webhook) {
		raw, err := b.Get(ctx, topology.Parked, subject, 1)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return time.Time{}, err
		}
		if oldest.IsZero() || raw.Time.Before(oldest) {
			oldest = raw.Time
		}
	}
	if oldest.IsZero() {
		return time.Time{}, bus.ErrNotFound
	}
	return oldest, nil
}

// Drain is a pair of consumers that exist while the backlog of one lane is taken out, oldest first. Two drains of the
// same messages cannot exist at once.
type Drain struct {
	consumers []*bus.Consumer // of the lane's parts, in their order
	bus       *bus.Bus
	skipped   int // parts that are left alone
}

// ErrBusy reports that another drain covers the same messages.
var ErrBusy = errors.New("another drain covers these messages")

// OpenDrain opens the drain of a lane, for one webhook or for all with "*". All dispatchers together hold at most
// atMost deliveries of each part of the lane.
func OpenDrain(
	ctx context.Context, b *bus.Bus, account, lane, webhook string, atMost int, ackWait time.Duration,
) (*Drain, error) {
	d := &Drain{bus: b}
	for i, subject := range parts(account, lane, webhook) {
		name := "drain-" + account + "-" + lane
		if i == 0 {
			if _, err := b.Get(ctx, topology.Parked, subject, 1); errors.Is(err, bus.ErrNotFound) {
				continue // most often nothing was attempted before
			}
			name += retried
		}
		if webhook != "*" {
			name += "-" + webhook
		}
		c, err := b.OpenConsumer(ctx, topology.Parked, jetstream.ConsumerConfig{
			Durable: name, AckWait: ackWait, MaxAckPending: atMost, MaxDeliver: -1,
			FilterSubject: subject, InactiveThreshold: 5 * time.Minute,
		})
		if err == nil {
			d.consumers = append(d.consumers, c)
			continue
		}
		_ = d.Close(ctx) // one that stays is removed by the broker when it has been idle
		var api *jetstream.APIError
		// filters overlap on a work queue
		if errors.As(err, &api) && (api.ErrorCode == 10100 || api.ErrorCode == 10099) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("open the drain of a lane: %w", err)
	}
	return d, nil
}

// Skip leaves the rest of the part that Take is at to stay parked. It reports whether there is another part.
func (d *Drain) Skip() bool {
	d.skipped = min(d.skipped+1, len(d.consumers))
	return d.skipped < len(d.consumers)
}

// Take hands at most n messages of one part that are there now to handle, without waiting for more.
func (d *Drain) Take(ctx context.Context, n int, handle func(*Delivery)) (int, error) {
	for _, c := range d.consumers[d.skipped:] {
		taken := 0
		_, err := c.Take(n, func(m jetstream.Msg) {
			// A drain's consumer comes and goes, and a message leaves the lane when it is handled.
			again := func(meta *jetstream.MsgMetadata) bool { return meta.NumDelivered != 1 }
			if x := delivery(ctx, d.bus, notification.LaneParked, m, again); x != nil {
				taken++
				handle(x)
			}
		})
		switch {
		case taken > 0:
			return taken, nil
		case err != nil:
			return 0, fmt.Errorf("take from a lane: %w", err)
		}
	}
	return 0, nil
}

// Empty reports whether nothing is left, neither waiting nor in flight.
func (d *Drain) Empty(ctx context.Context) (bool, error) {
	for _, c := range d.consumers {
		info, err := c.Info(ctx)
		if err != nil {
			return false, fmt.Errorf("look at the drain of a lane: %w", err)
		}
		if info.NumPending > 0 || info.NumAckPending > 0 {
			return false, nil
		}
	}
	return true, nil
}

// Close removes the consumers once nothing of them is in flight; the rest stays parked.
func (d *Drain) Close(ctx context.Context) error {
	var errs []error
	for _, c := range d.consumers {
		if err := c.Delete(ctx); err != nil {
			errs = append(errs, fmt.Errorf("close the drain of a lane: %w", err))
		}
	}
	return errors.Join(errs...)
}
