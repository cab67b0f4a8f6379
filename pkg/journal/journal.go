// Package journal reads and writes the stream ATTEMPTS: one record for each step of each notification. The newest
// record of a notification decides its state.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// Write stores r on top of the notification's record with the sequence r.Previous (0: none) and returns its own
// sequence. bus.ErrConflict means that another record came first: read Last and follow it.
func Write(ctx context.Context, b *bus.Bus, r *notification.Record) (uint64, error) {
	return Start(b, r).Wait(ctx)
}

// Started is a record on its way to the journal.
type Started struct {
	bus  *bus.Bus
	r    *notification.Record
	sent *bus.Started
	err  error
}

// Start starts writing r as Write does. r must not change before Wait returns.
func Start(b *bus.Bus, r *notification.Record) *Started {
	m, err := message(r)
	if err != nil {
		return &Started{err: err}
	}
	return &Started{bus: b, r: r, sent: b.Start(topology.Attempts, m)}
}

// message returns r as a message that the broker stores only on top of r.Previous.
func message(r *notification.Record) (*nats.Msg, error) {
	r.Schema = wireversion.Newest
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode journal record: %w", err)
	}
	m := bus.NewMessage(topology.SubjectAttempts(r.Account, r.NotificationID), "", body)
	m.Header[notification.HeaderSummary] = []string{r.Summary()}
	m.Header[notification.HeaderSchema] = []string{strconv.Itoa(r.Schema)}
	bus.ExpectLast(m, r.Previous)
	return m, nil
}

// Wait returns what Write returns.
func (s *Started) Wait(ctx context.Context) (uint64, error) {
	if s.err != nil {
		return 0, s.err
	}
	ack, err := s.sent.Receipt(ctx)
	if errors.Is(err, bus.ErrConflict) {
		// A record whose answer was lost conflicts with its own repetition.
		if last, lookErr := Last(ctx, s.bus, s.r.Account, s.r.NotificationID); lookErr == nil && same(last, s.r) {
			return last.Sequence, nil
		}
	}
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

func same(a, b *notification.Record) bool {
	return a.Previous == b.Previous && a.Kind == b.Kind && a.Send == b.Send && a.AttemptsDone == b.AttemptsDone && a.At.Equal(b.At)
}

// Last returns the notification's newest record, bus.ErrNotFound when it has none. A record of a newer version comes
// with wireversion.ErrNewer and the fields this version knows.
func Last(ctx context.Context, b *bus.Bus, account, id string) (*notification.Record, error) {
	raw, err := b.Last(ctx, topology.Attempts, topology.SubjectAttempts(account, id))
	if err != nil {
		return nil, err
	}
	return decode(raw.Data, raw.Sequence)
}

// Oldest returns when the oldest record that is kept of the account was stored, bus.ErrNotFound when none is. Records
// of an account are removed oldest first, so all that were stored later are there.
func Oldest(ctx context.Context, b *bus.Bus, account string) (time.Time, error) {
	raw, err := b.Get(ctx, topology.Attempts, topology.SubjectAttempts(account, "*"), 1)
	if err != nil {
		return time.Time{}, err
	}
	return raw.Time, nil
}

func decode(body []byte, sequence uint64) (*notification.Record, error) {
	var r notification.Record
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("decode journal record %d: %w", sequence, err)
	}
	r.Sequence = sequence
	return &r, wireversion.Check(r.Schema)
}

// History yields last, which was read from the journal, and the records before it, newest first. It ends with
// bus.ErrNotFound when older ones have aged out. A record of a newer version comes with wireversion.ErrNewer.
func History(ctx context.Context, b *bus.Bus, last *notification.Record) iter.Seq2[*notification.Record, error] {
	return func(yield func(*notification.Record, error) bool) {
		for oldest := last; yield(oldest, wireversion.Check(oldest.Schema)); {
			carried, err := oldest.Carried()
			if err != nil && b.ShouldLog("carried records") {
				b.Logger().Warn("the records that a record carries cannot be read; they are read from the journal", zap.Uint64("stream_seq", oldest.Sequence), zap.Error(err))
			}
			for _, r := range carried {
				if !yield(r, wireversion.Check(r.Schema)) {
					return
				}
				oldest = r
			}
			if oldest.Previous == 0 || oldest.Erased() {
				return
			}
			raw, err := b.Get(ctx, topology.Attempts, "", oldest.Previous)
			if err != nil {
				yield(nil, err)
				return
			}
			older, err := decode(raw.Data, raw.Sequence)
			if err != nil && !errors.Is(err, wireversion.ErrNewer) {
				yield(nil, err)
				return
			}
			oldest = older
		}
	}
}

// Ends returns the sequences of the oldest and the newest record; both are 0 when there never was one.
func Ends(ctx context.Context, b *bus.Bus) (first, last uint64, err error) {
	if err := b.Await(ctx, topology.Attempts); err != nil {
		return 0, 0, err
	}
	s, err := b.StreamState(ctx, topology.Attempts)
	return s.First, s.Last, err
}

// Summaries hands the summaries of the records with sequences from first to last, both included, to handle in order.
func Summaries(ctx context.Context, b *bus.Bus, first, last uint64, handle func(*notification.Summary)) error {
	cfg := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(first, 1), HeadersOnly: true}
	return b.Read(ctx, topology.Attempts, cfg, func(m jetstream.Msg, sequence, pending uint64) (bool, error) {
		if sequence > last {
			return false, nil
		}
		if s, err := notification.ParseSummary(m.Headers().Get(notification.HeaderSummary), sequence); err != nil {
			b.Logger().Error("an unreadable journal record is skipped", zap.Error(err))
		} else {
			handle(&s)
		}
		return sequence < last && pending > 0, nil
	})
}
