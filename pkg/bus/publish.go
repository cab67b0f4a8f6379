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
)

// publishTimeout is how long one publish waits for the broker's acknowledgement before it is repeated.
const publishTimeout = 5 * time.Second

// ErrConflict says that a record was not written because another one came first.
var ErrConflict = errors.New("another record came first")

// ErrTooLarge says that the broker refuses the message for its size; repeating it is no use.
var ErrTooLarge = errors.New("the message is larger than the broker accepts")

// message starts a message for one of our streams.
func message(subject, msgID string, body []byte) *nats.Msg {
	m := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{}}
	if msgID != "" {
		m.Header[nats.MsgIdHdr] = []string{msgID}
	}
	return m
}

// expectLast makes the broker store m only on top of the subject's record with that sequence (0: none).
func expectLast(m *nats.Msg, sequence uint64) {
	m.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(sequence, 10)}
}

// pending is a publish under way.
type pending struct {
	b      *Bus
	stream string
	msg    *nats.Msg
	future jetstream.PubAckFuture
	err    error
	began  time.Time
}

// start sends m and returns without waiting; publishes started one after another are stored in that order.
func (b *Bus) start(stream string, m *nats.Msg) *pending {
	p := &pending{b: b, stream: stream, msg: m, began: time.Now()}
	p.send()
	return p
}

func (p *pending) send() {
	p.msg.Reply = ""
	p.future, p.err = p.b.js.PublishMsgAsync(p.msg)
}

// wait returns the broker's answer. What is not answered is sent again until ctx ends; the message id or
// the expected sequence keeps the repetition from being stored twice.
func (p *pending) wait(ctx context.Context) (*jetstream.PubAck, error) {
	defer p.b.answered(p.stream)
	pause := newBackoff(50*time.Millisecond, 2*time.Second)
	for {
		err := p.err
		if err == nil {
			select {
			case ack := <-p.future.Ok():
				p.b.metrics.publish.WithLabelValues(p.stream).Observe(time.Since(p.began).Seconds())
				return ack, nil
			case err = <-p.future.Err():
			case <-ctx.Done():
				return nil, fmt.Errorf("publish to %s: %w", p.stream, ctx.Err())
			}
		}
		if final := p.final(err); final != nil {
			return nil, fmt.Errorf("publish to %s: %w", p.stream, final)
		}
		p.b.metrics.retried.WithLabelValues(p.stream).Inc()
		p.b.silent(p.stream, err)
		p.b.log.Debug("publish repeated", zap.String("stream", p.stream), zap.Error(err))
		if err := pause.wait(ctx); err != nil {
			return nil, fmt.Errorf("publish to %s: %w", p.stream, err)
		}
		p.send()
	}
}

// silent says that a stream does not take messages: the service is not ready until one is taken. A broker
// that is away is told by the connection.
func (b *Bus) silent(stream string, err error) {
	if !b.nc.IsConnected() || errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrReconnectBufExceeded) {
		return
	}
	what := "publish to " + stream
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems[what] = what + ": " + err.Error()
}

// answered says that a stream takes messages, or that nobody waits for it any more.
func (b *Bus) answered(stream string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.problems, "publish to "+stream)
}

// final returns the error that repeating cannot mend, nil if it can.
func (p *pending) final(err error) error {
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api):
		switch api.ErrorCode {
		case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
			return ErrConflict
		case 10054: // the message exceeds the stream's limit
			return ErrTooLarge
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

// publish stores m and returns the broker's answer.
func (b *Bus) publish(ctx context.Context, stream string, m *nats.Msg) (*jetstream.PubAck, error) {
	return b.start(stream, m).wait(ctx)
}
