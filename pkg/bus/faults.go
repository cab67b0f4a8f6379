//go:build rehearsal

package bus

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fault is a bug that the rehearsed version has on purpose, so that the checker of the chaos test can be shown
// to catch it. REHEARSAL_FAULT=KIND:STREAM:N has each process hit the N-th message of the stream, and every N-th
// after it. The kinds:
//
//	drop       the message is not stored, though its publisher gets an answer
//	repeat     the message is stored twice
//	corrupt    one bit of its body is flipped
//	drop_ack   its acknowledgement is dropped
//	early_ack  it is acknowledged when it is handed out, before anything came of it
type fault struct {
	kind, stream string
	every        int64
	met          atomic.Int64
}

// seeded is the fault of this process, nil when it has none.
var seeded = sync.OnceValue(func() *fault {
	setting := os.Getenv("REHEARSAL_FAULT")
	if setting == "" {
		return nil
	}
	parts := strings.Split(setting, ":")
	if len(parts) == 3 {
		if every, err := strconv.ParseInt(parts[2], 10, 64); err == nil && every > 0 {
			return &fault{kind: parts[0], stream: parts[1], every: every}
		}
	}
	panic(fmt.Sprintf("REHEARSAL_FAULT=%q is not KIND:STREAM:N", setting))
})

// hits reports whether it is this message's turn.
func (f *fault) hits(kind, stream string) bool {
	return f != nil && f.kind == kind && f.stream == stream && f.met.Add(1)%f.every == 0
}

// intercepted reports whether p was dropped, with an answer that the broker did not give.
func intercepted(p *Started) bool {
	f := seeded()
	switch stream := p.w.stream; {
	case f.hits("drop", stream):
		p.ack, p.sent = &jetstream.PubAck{Stream: stream}, make(chan struct{})
		close(p.sent)
		return true
	case f.hits("repeat", stream):
		again := &nats.Msg{Subject: p.msg.Subject, Data: p.msg.Data, Header: maps.Clone(p.msg.Header)}
		again.Header[nats.MsgIdHdr] = []string{uuid.NewString()} // with the same id the broker would drop it
		q := &Started{w: p.w, msg: again, began: p.began}
		p.w.add(q)
		go func() { _, _ = q.Receipt(context.Background()) }()
	case f.hits("corrupt", stream):
		p.msg.Data = bytes.Clone(p.msg.Data)
		p.msg.Data[len(p.msg.Data)/2] ^= 1
	}
	return false
}

// handedOut returns the message as a consumer of the stream gets it: acknowledged already, or with an acknowledgement
// that does nothing.
func handedOut(stream string, m jetstream.Msg) jetstream.Msg {
	f := seeded()
	switch {
	case f.hits("early_ack", stream):
		_ = m.Ack()
	case f.hits("drop_ack", stream):
		return unacknowledged{m}
	}
	return m
}

// unacknowledged is a message whose acknowledgement is dropped.
type unacknowledged struct{ jetstream.Msg }

// Ack does nothing.
func (unacknowledged) Ack() error { return nil }
