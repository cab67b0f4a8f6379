package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/topology"
)

// StreamState is how full a stream is.
type StreamState struct {
	Messages, Bytes uint64
	MaxBytes        int64     // 0: no limit of its own
	First, Last     uint64    // sequences of the oldest and the newest message
	Subjects        uint64    // how many it has
	Oldest          time.Time // when the oldest message was stored; zero when it is empty
	// Of a cluster: the server that leads the stream, "" while none does, and those with a replica of it that are not
	// there, or do not have all of it.
	Leader       string
	Away, Behind []string
}

// awayAfter is how long a server of a cluster may be silent. The broker, too, gives it up then.
const awayAfter = 10 * time.Second

// StreamState returns the stream's, ErrNotFound when it does not exist.
func (b *Bus) StreamState(ctx context.Context, stream string) (StreamState, error) {
	s, err := b.js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return StreamState{}, ErrNotFound
	}
	if err != nil {
		return StreamState{}, fmt.Errorf("look at %s: %w", stream, err)
	}
	info := s.CachedInfo()
	out := StreamState{
		Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: max(info.Config.MaxBytes, 0),
		First: info.State.FirstSeq, Last: info.State.LastSeq, Subjects: info.State.NumSubjects,
	}
	if out.Messages > 0 {
		out.Oldest = info.State.FirstTime
	}
	if info.Cluster != nil {
		out.Leader = info.Cluster.Leader
		for _, replica := range info.Cluster.Replicas {
			switch {
			case replica.Offline || replica.Active > awayAfter:
				out.Away = append(out.Away, replica.Name)
			case !replica.Current:
				out.Behind = append(out.Behind, replica.Name)
			}
		}
	}
	return out, nil
}

// ConsumerState is how far behind a consumer is.
type ConsumerState struct {
	Pending     uint64 // messages it has not delivered
	AckPending  int    // delivered and not settled, waiting retries included
	Redelivered int    // of those, delivered more than once
	Settled     uint64 // every message up to this stream sequence is settled
}

// ConsumerState returns the consumer's, ErrNotFound when it does not exist.
func (b *Bus) ConsumerState(ctx context.Context, d topology.Durable) (ConsumerState, error) {
	c, err := b.js.Consumer(ctx, d.Stream, d.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return ConsumerState{}, ErrNotFound
	}
	if err != nil {
		return ConsumerState{}, fmt.Errorf("consumer %s: %w", d.Name, err)
	}
	info := c.CachedInfo()
	return ConsumerState{info.NumPending, info.NumAckPending, info.NumRedelivered, info.AckFloor.Stream}, nil
}

// Storage returns how much disk the account's streams use and may use; limit is 0 when the broker names none.
func (b *Bus) Storage(ctx context.Context) (used uint64, limit int64, err error) {
	info, err := b.js.AccountInfo(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("look at the account: %w", err)
	}
	return info.Store, max(info.Limits.MaxStore, 0), nil
}
