package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// ErrNotFound says that a message, record or key does not exist, or no more.
var ErrNotFound = errors.New("not found")

// Stored is a message as a stream holds it.
type Stored = jetstream.RawStreamMsg

// Get returns the message with that sequence or, with a subject, which may have wildcards, the first message of the
// subject with that sequence or a later one. It returns ErrNotFound when there is none and repeats the read while the
// broker is unreachable, until ctx ends.
func (b *Bus) Get(ctx context.Context, stream, subject string, sequence uint64) (*jetstream.RawStreamMsg, error) {
	var opts []jetstream.GetMsgOpt
	if subject != "" {
		opts = append(opts, jetstream.WithGetMsgSubject(subject))
	}
	return b.read(ctx, stream, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetMsg(ctx, sequence, opts...)
	})
}

// Last returns the newest message of a subject. It returns ErrNotFound when there is none and repeats the read while
// the broker is unreachable, until ctx ends.
func (b *Bus) Last(ctx context.Context, stream, subject string) (*jetstream.RawStreamMsg, error) {
	return b.read(ctx, stream, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetLastMsgForSubject(ctx, subject)
	})
}

// Has reports whether the stream holds a message of the subject. A stream that does not exist holds none.
func (b *Bus) Has(ctx context.Context, stream, subject string) (bool, error) {
	s, err := b.known(ctx, stream)
	if err == nil {
		_, err = s.GetLastMsgForSubject(ctx, subject)
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, jetstream.ErrMsgNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		return false, nil
	}
	return false, fmt.Errorf("look for a message on %s: %w", stream, err)
}

// Subjects returns the subjects of a stream that match the filter, and how many messages each has.
func (b *Bus) Subjects(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", stream, err)
	}
	return info.State.Subjects, nil
}

// Purge removes the messages of a stream up to a sequence. The broker recognises the ids of removed messages until it
// restarts.
func (b *Bus) Purge(ctx context.Context, stream string, upTo uint64) error {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return err
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(upTo+1)); err != nil {
		return fmt.Errorf("purge %s: %w", stream, err)
	}
	return nil
}

// Delete removes a message. One that is gone is no error.
func (b *Bus) Delete(ctx context.Context, stream string, sequence uint64) error {
	return b.delete(ctx, stream, sequence, jetstream.Stream.DeleteMsg)
}

// Erase is Delete, and has the broker overwrite the message's bytes on disk. A broker that encrypts its disk, and the
// logs by which the servers of a cluster agree, keep them until they are written again.
func (b *Bus) Erase(ctx context.Context, stream string, sequence uint64) error {
	return b.delete(ctx, stream, sequence, jetstream.Stream.SecureDeleteMsg)
}

func (b *Bus) delete(ctx context.Context, stream string, sequence uint64, remove func(jetstream.Stream, context.Context, uint64) error) error {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return err
	}
	err = remove(s, ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
		if _, lookErr := b.Get(ctx, stream, "", sequence); errors.Is(lookErr, ErrNotFound) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("delete from %s: %w", stream, err)
	}
	return nil
}

// Discard drops the files of a stream that holds no message: they still have the bytes of messages that were removed.
// It reports false, and does nothing, while the stream holds one. A message that arrives meanwhile stays.
func (b *Bus) Discard(ctx context.Context, stream string) (bool, error) {
	state, err := b.StreamState(ctx, stream)
	if err != nil || state.Messages > 0 {
		return false, err
	}
	if state.Last == 0 {
		return true, nil
	}
	return true, b.Purge(ctx, stream, state.Last)
}

// PurgeOldest removes the oldest messages of the subjects that match the filter, so that keep of them remain; keep is
// at least 1. Doing it again removes nothing.
func (b *Bus) PurgeOldest(ctx context.Context, stream, filter string, keep uint64) error {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return err
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject(filter), jetstream.WithPurgeKeep(max(keep, 1))); err != nil {
		return fmt.Errorf("purge %s of %s: %w", stream, filter, err)
	}
	return nil
}

// PurgeBefore removes the messages of the subjects that match the filter with sequences below one.
func (b *Bus) PurgeBefore(ctx context.Context, stream, filter string, sequence uint64) error {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return err
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject(filter), jetstream.WithPurgeSequence(sequence)); err != nil {
		return fmt.Errorf("purge %s of %s: %w", stream, filter, err)
	}
	return nil
}

// ServerID identifies one run of the broker's server that this process is connected to, "" without a connection.
func (b *Bus) ServerID() string { return b.nc.ConnectedServerId() }

// read reads one message. It turns "not there" into ErrNotFound and repeats while the broker is unreachable.
func (b *Bus) read(ctx context.Context, stream string, read func(context.Context, jetstream.Stream) (*jetstream.RawStreamMsg, error)) (*jetstream.RawStreamMsg, error) {
	pause := newBackoff(50*time.Millisecond, time.Second)
	for {
		s, err := b.Stream(ctx, stream)
		if err != nil {
			return nil, err
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		raw, err := read(attempt, s)
		cancel()
		switch {
		case err == nil:
			return raw, nil
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return nil, ErrNotFound
		case ctx.Err() != nil:
			return nil, fmt.Errorf("read from %s: %w", stream, ctx.Err())
		}
		b.forget(stream)
		b.log.Debug("read repeated", zap.String("stream", stream), zap.Error(err))
		if err := pause.wait(ctx); err != nil {
			return nil, fmt.Errorf("read from %s: %w", stream, err)
		}
	}
}

// headerBodySize is the broker's header for the size of a body that it left out.
const headerBodySize = "Nats-Msg-Size"

// StoredSize returns how many bytes a message takes in its stream that was read without its body.
func StoredSize(m jetstream.Msg) int64 {
	const frame, headers = 8 + 8 + 4 + 2 + 4 + 8, len("NATS/1.0\r\n\r\n")
	size := frame + headers + len(m.Subject()) + BodySize(m)
	for k, values := range m.Headers() {
		if k == headerBodySize {
			continue
		}
		for _, v := range values {
			size += len(k) + len(": \r\n") + len(v)
		}
	}
	return int64(size)
}

// BodySize returns how many bytes the body of a message has that was read without it.
func BodySize(m jetstream.Msg) int {
	n, _ := strconv.Atoi(m.Headers().Get(headerBodySize))
	return n
}
