package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"gancho/pkg/sleep"
)

// The times of a tail.
const (
	// silentFor is how long a stream may bring nothing, not even a comment that keeps it alive, before it
	// counts as dead.
	silentFor = time.Minute
	// firstPause and longestPause bound the wait before a new connection; it doubles, and starts again once
	// something came.
	firstPause, longestPause = time.Second, 30 * time.Second
	// maxEvent limits one message of a stream of attempts, and maxBody one of a stream of events, in bytes.
	maxEvent, maxBody = 1 << 20, 96 << 20
)

// Watch selects attempts for a tail. Empty members select all.
type Watch struct {
	WebhookID string
	Outcome   string // delivered or failed
}

// Tail hands each attempt to show as it is made, until ctx ends (it then returns nil) or the API refuses
// (its *Error). A lost connection is made again, and lost gets the reason; attempts made in between are
// not shown unless the server knows where the stream ended.
func (c *Client) Tail(ctx context.Context, w Watch, show func(Result[Attempt]) error, lost func(error)) error {
	query := url.Values{}
	if w.WebhookID != "" {
		query.Set("webhook_id", w.WebhookID)
	}
	if w.Outcome != "" {
		query.Set("outcome", w.Outcome)
	}
	s := &stream{client: c, call: call{method: http.MethodGet, path: "/tail", query: query}, most: maxEvent}
	s.show = func(kind string, raw []byte) error {
		r := Result[Attempt]{Raw: raw}
		if kind != "" && kind != "message" && kind != "attempt" || json.Unmarshal(raw, &r.Value) != nil ||
			r.Value.Outcome == "" {
			return nil
		}
		return show(r)
	}
	return s.run(ctx, lost)
}

// StoredEvent is an event as it was stored.
type StoredEvent struct {
	ID        string    `json:"id"`
	EventName string    `json:"event_name"`
	StoredAt  time.Time `json:"stored_at"`
	Body      []byte    `json:"body"` // byte for byte
}

// TailEvents hands each event that pattern matches to show as it is stored, in order, until ctx ends (it then returns
// nil), show returns an error, or the API refuses (its *Error). A connection that is lost is made again, and lost is
// called with the reason; it goes on behind the last event that was shown.
func (c *Client) TailEvents(ctx context.Context, pattern string, show func(StoredEvent) error, lost func(error)) error {
	query := url.Values{}
	if pattern != "" {
		query.Set("event_name", pattern)
	}
	s := &stream{client: c, call: call{method: http.MethodGet, path: "/tail/events", query: query}, most: maxBody}
	s.show = func(kind string, raw []byte) error {
		var e StoredEvent
		if kind != "event" || json.Unmarshal(raw, &e) != nil {
			return nil
		}
		return show(e)
	}
	return s.run(ctx, lost)
}

// run reads one connection after the other.
func (s *stream) run(ctx context.Context, lost func(error)) error {
	s.first, s.pause = firstPause, firstPause
	for {
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		pause := s.pause
		if refused, ok := errors.AsType[*Error](err); ok {
			switch {
			case refused.Status == http.StatusTooManyRequests || refused.Status >= http.StatusInternalServerError:
				pause = max(pause, min(refused.RetryAfter, maxWait))
			default:
				return err
			}
		}
		if stop, ok := errors.AsType[*stopped](err); ok {
			return stop.error
		}
		lost(err)
		if !sleep.For(ctx, pause) {
			return nil
		}
		s.pause = min(2*s.pause, longestPause)
	}
}

// stopped is an error that show returned.
type stopped struct{ error }

// stream is a server-sent stream of events (WHATWG HTML, section 9.2) over its connections.
type stream struct {
	client *Client
	call   call
	show   func(kind string, data []byte) error
	most   int // bytes of one message
	lastID string
	first  time.Duration // the server's wish, if it has one
	pause  time.Duration // before the next connection
}

// follow reads one connection until it ends.
func (s *stream) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(silentFor, func() { cancel(errSilent) })
	defer silence.Stop()
	header := http.Header{"Accept": {"text/event-stream"}}
	if s.lastID != "" {
		header.Set("Last-Event-ID", s.lastID)
	}
	resp, err := s.client.roundTrip(ctx, s.call, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return &NoAnswer{Call: s.client.name(s.call), URL: s.client.URL(), Cause: err}
		}
		if err := s.client.judge(s.call, resp, body); err != nil {
			return err
		}
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "text/event-stream" {
		return &Error{
			Call: s.client.name(s.call), Status: resp.StatusCode,
			Problems: []Problem{{Detail: "something else than a stream answered"}},
		}
	}
	err = s.read(resp.Body, func() { silence.Reset(silentFor) })
	if _, ok := errors.AsType[*stopped](err); ok {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return &NoAnswer{Call: s.client.name(s.call), URL: s.client.URL(), Cause: err}
}

var errSilent = errors.New("nothing came for a minute")

var errTooLong = errors.New("a message of the stream is longer than any should be")

// read reads events until the body ends. alive is called for every line.
func (s *stream) read(body io.Reader, alive func()) error {
	lines := bufio.NewReaderSize(body, 64<<10)
	var data []byte
	var kind string
	id := s.lastID
	for {
		line, err := readLine(lines, s.most)
		if err != nil {
			return err
		}
		alive()
		if len(line) == 0 {
			s.lastID = id
			if len(data) > 0 {
				if err := s.dispatch(kind, data); err != nil {
					return err
				}
				s.pause = s.first
			}
			data, kind = nil, ""
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "data":
			if data != nil {
				data = append(data, '\n')
			}
			if data = append(data, value...); len(data) > s.most {
				return errTooLong
			}
		case "event":
			kind = string(value)
		case "id":
			id = string(value)
		case "retry":
			if ms, err := strconv.Atoi(string(value)); err == nil && ms > 0 {
				s.first = min(time.Duration(ms)*time.Millisecond, longestPause)
				s.pause = s.first
			}
		}
	}
}

// dispatch shows one event. Events of other kinds are passed over: a newer server may send them.
func (s *stream) dispatch(kind string, data []byte) error {
	if kind == "end" { // the server says why it ends the stream
		var end struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(data, &end) // without a reason it ends as well
		return fmt.Errorf("the server ended the stream: %s", end.Reason)
	}
	if err := s.show(kind, bytes.Clone(data)); err != nil {
		return &stopped{err}
	}
	return nil
}

func readLine(r *bufio.Reader, most int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > most:
			return nil, errTooLong
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		return bytes.TrimRight(line, "\r\n"), nil
	}
}
