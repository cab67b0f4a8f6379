package numbers

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// readerTally is the name of a Tally's consumers: the broker's rights name them.
const readerTally = "numbers"

// mostBehind is how many messages of a stream a Tally reads itself, because their slice is missing and they came before
// it began. More are left to a Keeper.
const mostBehind = 20_000

// Tally counts the notifications and records that another reader reads anyway, so that they are read once. It writes
// slices as a Keeper does, which counts these streams when there is no Tally, or none that keeps up. One goroutine uses
// it; the nil Tally does nothing.
type Tally struct {
	keeper *Keeper
	counts cells
	from   map[string]uint64 // counted are the messages behind these, by stream; nil: none are
	next   time.Time         // when a slice is due
}

// NewTally returns a tally.
func NewTally(b *bus.Bus, log *zap.Logger) *Tally {
	return &Tally{keeper: New(b, log), counts: cells{}}
}

// Arrived counts a message of NOTIFICATIONS.
func (t *Tally) Arrived(a *lane.Arrival, sequence uint64) {
	if t.counted(topology.Notifications, sequence) {
		t.counts.arrived(a.Account, a.WebhookID, a.StoredAt)
	}
}

// Recorded counts a record of the journal that was stored at a time.
func (t *Tally) Recorded(r *notification.Summary, at time.Time) {
	if t.counted(topology.Attempts, r.Sequence) {
		t.counts.recorded(r, at)
	}
}

// counted reports whether a message belongs to the counts. Too many are given up, and left to a Keeper.
func (t *Tally) counted(stream string, sequence uint64) bool {
	if t == nil || t.from == nil || sequence <= t.from[stream] {
		return false
	}
	if len(t.counts) >= mostCells {
		t.giveUp()
		return false
	}
	return true
}

func (t *Tally) giveUp() { t.from, t.counts = nil, cells{} }

// Write writes a slice if one is due. The streams have been read up to the positions, which were their ends at a time
// not before began.
func (t *Tally) Write(ctx context.Context, notifications, records bus.Position, began time.Time) error {
	if t == nil || len(t.counts) < mostCells/2 && time.Now().Before(t.next) {
		return nil
	}
	last, sequence, err := t.keeper.last(ctx)
	if err != nil {
		return err
	}
	t.next = time.Now().Add(t.keeper.every)
	to := map[string]bus.Position{topology.Notifications: notifications, topology.Attempts: records}
	if t.from == nil || t.from[topology.Notifications] != last.At[topology.Notifications] ||
		t.from[topology.Attempts] != last.At[topology.Attempts] {
		if err := t.follow(ctx, &last, to); err != nil || t.from == nil {
			return err
		}
	}
	next := last.after()
	for stream, read := range to {
		if read.Sequence >= last.At[stream] {
			next.At[stream], next.By[stream] = read.Sequence, began.UTC().Add(-skew)
		}
	}
	written, err := t.keeper.write(ctx, &last, &next, t.counts, sequence)
	if errors.Is(err, bus.ErrConflict) { // a Keeper counted other streams, or these: the next one is due at once
		t.next = time.Time{}
		return nil
	}
	if written {
		t.from, t.counts = maps.Clone(next.At), cells{}
	}
	return err
}

// follow has the counts begin behind the last slice, which another process wrote. It reads the messages
// between that slice and to. If they are too many, nothing is counted.
func (t *Tally) follow(ctx context.Context, last *slice, to map[string]bus.Position) error {
	t.giveUp()
	counts := cells{}
	for _, s := range sources() {
		if !s.tallied {
			continue
		}
		end, at := to[s.stream], last.At[s.stream]
		if end.Sequence > at+mostBehind {
			return nil
		}
		if end.Sequence <= at {
			continue
		}
		r := t.keeper.bus.NewReader(s.stream, readerTally, bus.Position{Sequence: at, Created: end.Created})
		err := r.ReadTo(ctx, end.Sequence, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
			if meta.Sequence.Stream <= end.Sequence {
				s.count(counts, m, meta)
			}
		})
		r.Close(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
	}
	if len(counts) < mostCells {
		t.from, t.counts = maps.Clone(last.At), counts
		if t.from == nil {
			t.from = map[string]uint64{}
		}
	}
	return nil
}
