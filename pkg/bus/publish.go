package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/topology"
)

// publishTimeout is how long one publish waits for the broker's acknowledgement before it is repeated.
const publishTimeout = 5 * time.Second

// ErrConflict says that a record was not written because another one came first.
var ErrConflict = errors.New("another record came first")

// ErrTooLarge says that the broker refuses the message for its size; repeating it is no use.
var ErrTooLarge = errors.New("the message is larger than the broker accepts")

// ErrFull says that a stream has no room for an offered message.
var ErrFull = errors.New("the stream is full")

// NewMessage starts a message for one of our streams.
func NewMessage(subject, msgID string, body []byte) *nats.Msg {
	m := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{}}
	if msgID != "" {
		m.Header[nats.MsgIdHdr] = []string{msgID}
	}
	return m
}

// ExpectLast has the broker store m only on top of the subject's message with that sequence (0: none); otherwise
// publishing m returns ErrConflict.
func ExpectLast(m *nats.Msg, sequence uint64) {
	m.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(sequence, 10)}
}

// Start puts m on its way and returns without waiting. Messages are stored in the order in which they are started. One
// goroutine must wait for the messages it started, in that order: waiting for one sends those queued behind it.
func (b *Bus) Start(stream string, m *nats.Msg) *Started { return b.begin(stream, m, false) }

// Offer is Start for a message that the stream may refuse: where it has no room, Wait and Receipt return ErrFull
// instead of sending the message again until there is room.
func (b *Bus) Offer(stream string, m *nats.Msg) *Started { return b.begin(stream, m, true) }

func (b *Bus) begin(stream string, m *nats.Msg, offered bool) *Started {
	w := b.writer(stream)
	p := &Started{w: w, msg: m, began: time.Now(), offered: offered}
	if !intercepted(p) {
		w.add(p)
	}
	return p
}

// writer returns the stream's writer.
func (b *Bus) writer(stream string) *writer {
	b.writersMu.RLock()
	w := b.writers[stream]
	b.writersMu.RUnlock()
	if w != nil {
		return w
	}
	b.writersMu.Lock()
	defer b.writersMu.Unlock()
	if w = b.writers[stream]; w == nil {
		w = &writer{b: b, stream: stream, synced: b.synced && topology.InBatches(stream)}
		b.writers[stream] = w
	}
	return w
}

// Wait returns once the broker has stored the message; see Receipt.
func (p *Started) Wait(ctx context.Context) error {
	_, err := p.Receipt(ctx)
	return err
}

// Receipt returns the broker's answer. It sends an unanswered message again until ctx ends; the message id or the
// expected sequence keeps the repetition from being stored twice.
func (p *Started) Receipt(ctx context.Context) (*jetstream.PubAck, error) {
	b, stream := p.w.b, p.w.stream
	defer b.answered(stream)
	pause := newBackoff(50*time.Millisecond, 2*time.Second)
	for {
		ack, err := p.answer(ctx)
		if err == nil {
			b.metrics.publish.WithLabelValues(stream).Observe(time.Since(p.began).Seconds())
			return ack, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("publish to %s: %w", stream, ctx.Err())
		}
		if final := p.final(err); final != nil {
			return nil, fmt.Errorf("publish to %s: %w", stream, final)
		}
		b.metrics.retried.WithLabelValues(stream).Inc()
		b.silent(stream, err)
		b.log.Debug("publish repeated", zap.String("stream", stream), zap.Error(err))
		if err := pause.wait(ctx); err != nil {
			return nil, fmt.Errorf("publish to %s: %w", stream, err)
		}
		p.send()
	}
}

// silent notes that a stream takes no messages: the service is not ready until it takes one. The connection reports its
// own loss.
func (b *Bus) silent(stream string, err error) {
	if !b.link.isUp() || errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrReconnectBufExceeded) {
		return
	}
	what := "publish to " + stream
	b.trouble(what, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems[what] = what + ": " + err.Error()
}

// answered notes that a stream takes messages, or that no one waits for it any more.
func (b *Bus) answered(stream string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.problems, "publish to "+stream)
}

// Codes of the broker's answers when a stream, a server or the account has no room.
const (
	codeAccountExceeded       = 10002
	codeInsufficientResources = 10023
	codeStorageExceeded       = 10047
	codeStoreFailed           = 10077
)

// final returns the error that repeating cannot mend, nil if it can.
func (p *Started) final(err error) error {
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api):
		switch api.ErrorCode {
		case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
			return ErrConflict
		case 10054: // the message exceeds the stream's limit
			return ErrTooLarge
		case codeStoreFailed, codeInsufficientResources, codeStorageExceeded, codeAccountExceeded:
			if p.offered {
				return ErrFull
			}
			return nil
		}
		if api.Code == 400 { // the message itself is refused
			return err
		}
	case errors.Is(err, nats.ErrMaxPayload):
		return ErrTooLarge
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubject):
		return err
	}
	return nil
}

// MaxPayload returns the size of the largest message, in bytes, that the broker accepts; 0 before the first connection.
func (b *Bus) MaxPayload() int64 { return b.nc.MaxPayload() }

// PublishOnce stores m without repeating it: after an error other than ErrConflict and ErrTooLarge the message may be
// stored or not.
func (b *Bus) PublishOnce(ctx context.Context, stream string, m *nats.Msg) (*jetstream.PubAck, error) {
	p := b.Start(stream, m)
	ack, err := p.answer(ctx)
	if err != nil {
		if final := p.final(err); final != nil {
			err = final
		}
		return nil, err
	}
	return ack, nil
}

// Publish stores m and returns the broker's answer.
func (b *Bus) Publish(ctx context.Context, stream string, m *nats.Msg) (*jetstream.PubAck, error) {
	return b.Start(stream, m).Receipt(ctx)
}
