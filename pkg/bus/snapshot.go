package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// snapshotChunk is how much of a snapshot one message carries.
	snapshotChunk = 128 << 10
	// snapshotPatience is how long the broker may be silent in the middle of one.
	snapshotPatience = 30 * time.Second
)

// Snapshot describes a stream that the broker copied out. Restore needs it unchanged.
type Snapshot struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`
}

// Messages returns how many messages the snapshot has.
func (s Snapshot) Messages() uint64 {
	var state struct{ Messages uint64 }
	_ = json.Unmarshal(s.State, &state) // 0 then
	return state.Messages
}

// apiError is how the broker's API refuses.
type apiError struct {
	Code        int    `json:"code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return e.Description }

// Backup copies a stream with its consumers to w; ErrNotFound when it does not exist.
func (b *Bus) Backup(ctx context.Context, stream string, w io.Writer) (Snapshot, error) {
	s, err := b.backup(ctx, stream, w)
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("copy %s: %w", stream, err)
	}
	return s, err
}

func (b *Bus) backup(ctx context.Context, stream string, w io.Writer) (Snapshot, error) {
	chunks := make(chan *nats.Msg, 1024)
	inbox := b.nc.NewInbox()
	sub, err := b.nc.ChanSubscribe(inbox, chunks)
	if err != nil {
		return Snapshot{}, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // nothing follows
	ask, err := json.Marshal(map[string]any{"deliver_subject": inbox, "chunk_size": snapshotChunk, "jsck": true})
	if err != nil {
		return Snapshot{}, err
	}
	var answer struct {
		Snapshot

		Error *apiError `json:"error"`
	}
	if err := b.ask(ctx, "$JS.API.STREAM.SNAPSHOT."+stream, ask, &answer); err != nil {
		return Snapshot{}, err
	}
	if answer.Error != nil {
		if answer.Error.Code == 404 {
			return Snapshot{}, ErrNotFound
		}
		return Snapshot{}, answer.Error
	}
	silence := time.NewTimer(snapshotPatience)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return Snapshot{}, ctx.Err()
		case <-silence.C:
			return Snapshot{}, fmt.Errorf("the broker was silent for %v", snapshotPatience)
		case m := <-chunks:
			silence.Reset(snapshotPatience)
			if len(m.Data) == 0 { // the end, good or bad
				if status := m.Header.Get("Status"); status != "" && status != "204" {
					return Snapshot{}, fmt.Errorf("the broker stopped: %s %s", status, m.Header.Get("Description"))
				}
				return answer.Snapshot, nil
			}
			if _, err := w.Write(m.Data); err != nil {
				return Snapshot{}, err
			}
			if m.Reply != "" {
				if err := m.Respond(nil); err != nil {
					return Snapshot{}, err
				}
			}
		}
	}
}

// Empty reports whether the stream holds no message; one that does not exist is empty.
func (b *Bus) Empty(ctx context.Context, stream string) (bool, error) {
	s, err := b.StreamState(ctx, stream)
	if errors.Is(err, ErrNotFound) {
		return true, nil
	}
	return s.Messages == 0, err
}

// Restore makes a stream from a copy. One with that name must be empty, and is replaced.
func (b *Bus) Restore(ctx context.Context, stream string, s Snapshot, r io.Reader) error {
	if err := b.restore(ctx, stream, s, r); err != nil {
		return fmt.Errorf("restore %s: %w", stream, err)
	}
	return nil
}

func (b *Bus) restore(ctx context.Context, stream string, s Snapshot, r io.Reader) error {
	empty, err := b.Empty(ctx, stream)
	if err != nil {
		return err
	}
	if !empty {
		return errors.New("the stream is not empty")
	}
	if err := b.js.DeleteStream(ctx, stream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	ask, err := json.Marshal(s)
	if err != nil {
		return err
	}
	var answer struct {
		Error   *apiError `json:"error"`
		Deliver string    `json:"deliver_subject"`
	}
	if err := b.ask(ctx, "$JS.API.STREAM.RESTORE."+stream, ask, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	chunk := make([]byte, snapshotChunk)
	for {
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			var refused struct {
				Error *apiError `json:"error"`
			}
			if err := b.deliver(ctx, answer.Deliver, chunk[:n], &refused); err != nil {
				return err
			}
			if refused.Error != nil {
				return refused.Error
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	var end struct {
		Error *apiError `json:"error"`
	}
	if err := b.deliver(ctx, answer.Deliver, nil, &end); err != nil { // an empty chunk is the end
		return err
	}
	if end.Error != nil {
		return end.Error
	}
	return nil
}

// deliver is ask for the subject that the broker has just named: in a cluster it takes a moment until every
// server knows who listens there.
func (b *Bus) deliver(ctx context.Context, subject string, body []byte, out any) error {
	pause := newBackoff(10*time.Millisecond, time.Second)
	for began := time.Now(); ; {
		err := b.ask(ctx, subject, body, out)
		if !errors.Is(err, nats.ErrNoResponders) || time.Since(began) > snapshotPatience {
			return err
		}
		if pause.wait(ctx) != nil {
			return err
		}
	}
}

// ask makes one request of the broker's API. An empty answer does not change out.
func (b *Bus) ask(ctx context.Context, subject string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return err
	}
	if len(m.Data) == 0 {
		return nil
	}
	return json.Unmarshal(m.Data, out)
}
