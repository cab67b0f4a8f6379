package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/topology"
)

// Position is how far a stream has been read. Created identifies one life of the stream: a stream that was deleted and
// created again counts its messages from 1.
type Position struct {
	Sequence uint64    `json:"sequence"` // everything up to here has been read
	Created  time.Time `json:"created"`
	// Unread is until when messages were stored of which some were removed before they could be read; zero: none were.
	Unread time.Time `json:"unread,omitzero"`
}

// Reader reads the headers of a stream in order, each message once, from a position that its user keeps.
// Its consumer has a name, so that the broker's rights can name it too: of two readers of a stream with one
// name each notices that the other came, and goes on from its position. It is used by one goroutine.
type Reader struct {
	b      *Bus
	stream string
	name   string
	at     Position
	c      jetstream.Consumer
	next   uint64 // sequence of the consumer's next delivery
}

// NewReader returns a reader of a stream from a position. The name is that of its consumer. One goroutine uses it.
func (b *Bus) NewReader(stream, name string, at Position) *Reader {
	return &Reader{b: b, stream: stream, name: name, at: at}
}

// At returns how far the reader has read.
func (r *Reader) At() Position { return r.at }

// Progress reports changes of the stream since the last read.
type Progress struct {
	Renewed bool   // the stream was created again and has none of the messages read before
	Missed  uint64 // messages that were removed before they were read
}

// Tail returns the stream's newest sequence.
func (r *Reader) Tail(ctx context.Context) (last uint64, met Progress, err error) {
	s, err := r.b.Stream(ctx, r.stream)
	if err != nil {
		return 0, met, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return 0, met, fmt.Errorf("look at %s: %w", r.stream, err)
	}
	switch {
	case r.at.Created.IsZero():
		r.at = Position{Created: info.Created, Sequence: max(info.State.FirstSeq, 1) - 1}
		if r.at.Sequence > 0 {
			r.at.Unread = oldestOf(info)
		}
	case !r.at.Created.Equal(info.Created):
		// One that was restored from a backup holds messages older than itself, and goes on where it was.
		restored := info.State.LastSeq >= r.at.Sequence && (info.State.Msgs == 0 || info.State.FirstTime.Before(info.Created))
		if r.c = nil; restored {
			r.at.Created = info.Created
		} else {
			r.at, met.Renewed = Position{Created: info.Created, Unread: info.Created}, true
		}
	}
	if first := info.State.FirstSeq; first > r.at.Sequence+1 {
		met.Missed = first - r.at.Sequence - 1
		r.at.Sequence, r.at.Unread = first-1, oldestOf(info)
	}
	return info.State.LastSeq, met, nil
}

// oldestOf is when the stream's oldest message was stored; now when it has none.
func oldestOf(info *jetstream.StreamInfo) time.Time {
	if info.State.Msgs == 0 {
		return info.TimeStamp
	}
	return info.State.FirstTime
}

// ReadTo hands every message up to the sequence to handle.
func (r *Reader) ReadTo(ctx context.Context, last uint64, handle func(m jetstream.Msg, meta *jetstream.MsgMetadata)) error {
	for r.at.Sequence < last {
		if err := r.open(ctx); err != nil {
			return err
		}
		left, err := r.fetch(ctx, handle)
		if err != nil {
			r.c = nil
			return fmt.Errorf("read %s: %w", r.stream, err)
		}
		if !left { // the rest up to last has been removed
			if last > r.at.Sequence {
				r.at.Sequence, r.at.Unread = last, time.Now()
			}
		}
	}
	return nil
}

func (r *Reader) open(ctx context.Context) (err error) {
	if r.c != nil {
		return nil
	}
	r.next = 1
	if err := r.b.js.DeleteConsumer(ctx, r.stream, r.name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("read %s: %w", r.stream, err)
	}
	cfg := jetstream.ConsumerConfig{
		Name: r.name, AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: r.at.Sequence + 1,
		HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: 5 * time.Minute,
	}
	c, err := r.b.js.CreateConsumer(ctx, r.stream, cfg)
	if err == nil {
		err = r.b.answer(ignored(cfg, c.CachedInfo().Config))
		r.c = c
	}
	if err != nil {
		r.c = nil
		return fmt.Errorf("read %s: %w", r.stream, err)
	}
	return nil
}

// errGap says that a delivery was lost on its way.
var errGap = errors.New("a delivery was lost")

// fetch hands on the messages that come at once and reports whether more are left.
func (r *Reader) fetch(ctx context.Context, handle func(jetstream.Msg, *jetstream.MsgMetadata)) (left bool, err error) {
	batch, err := r.c.FetchNoWait(5000) // a request that stays open would take messages that no one reads
	if err != nil {
		return false, err
	}
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return false, err
		}
		if meta.Sequence.Consumer != r.next {
			return false, errGap
		}
		r.next++
		if meta.Sequence.Stream > r.at.Sequence+1 {
			r.at.Unread = meta.Timestamp
		}
		r.at.Sequence = meta.Sequence.Stream
		handle(m, meta)
		left = meta.NumPending > 0
	}
	if err := batch.Error(); err != nil {
		return false, err
	}
	return left, ctx.Err()
}

// Close ends the reader.
func (r *Reader) Close(ctx context.Context) {
	if r.c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = r.b.js.DeleteConsumer(ctx, r.stream, r.name) // the broker removes it when it is idle
	r.c = nil
}

// Read hands the messages of a stream to handle in order, until handle returns false or an error, no message remains,
// or ctx ends. pending is how many the broker says follow.
func (b *Bus) Read(ctx context.Context, stream string, cfg jetstream.OrderedConsumerConfig, handle func(m jetstream.Msg, sequence, pending uint64) (bool, error)) error {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return err
	}
	cfg.InactiveThreshold = time.Minute
	c, err := s.OrderedConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	// The broker would keep it for a minute, and refuses more than a thousand of them on a stream.
	defer b.discard(ctx, s, c)
	info, err := c.Info(ctx)
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	if info.NumPending == 0 && info.Delivered.Consumer == 0 {
		return nil
	}
	prefetch := 500
	if stream == topology.Events && !cfg.HeadersOnly {
		prefetch = 32 // bodies may be large
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(prefetch))
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	defer messages.Stop()
	for {
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		m, err := messages.Next(jetstream.NextContext(wait))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			// Nothing came although something was there: it may have aged out since.
			if info, infoErr := c.Info(ctx); infoErr == nil && info.NumPending == 0 {
				return nil
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", stream, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read %s: %w", stream, err)
		}
		more, err := handle(m, meta.Sequence.Stream, meta.NumPending)
		if err != nil || !more {
			return err
		}
		if meta.NumPending == 0 {
			return nil
		}
	}
}

// discard deletes a consumer that has done its work. Without an answer the broker does it a minute later.
func (b *Bus) discard(ctx context.Context, s jetstream.Stream, c jetstream.Consumer) {
	info := c.CachedInfo()
	if info == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := s.DeleteConsumer(ctx, info.Name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		b.log.Debug("a consumer that has done its work was not deleted", zap.Error(err))
	}
}
