// Package sse writes streams of server-sent events.
package sse

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// Heartbeat is how often a quiet stream gets a StillHere.
	Heartbeat = 15 * time.Second
	// writeWithin is how long one write to a reader may take.
	writeWithin = 10 * time.Second
)

// Stream is an open stream. One goroutine uses it.
type Stream struct {
	// Beat ticks when the reader should get a StillHere.
	Beat <-chan time.Time
	// Err is the first error of a write. It ends the stream: later writes do nothing.
	Err error

	w       http.ResponseWriter
	control *http.ResponseController
	beat    *time.Ticker
}

// Header sets the headers of a stream.
func Header(h http.Header) {
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // a proxy must pass events on as they come
}

// Open begins the response with the lines of first. The caller closes the stream.
func Open(w http.ResponseWriter, first string) *Stream {
	Header(w.Header())
	beat := time.NewTicker(Heartbeat)
	s := &Stream{Beat: beat.C, w: w, control: http.NewResponseController(w), beat: beat}
	s.send(first + "\n\n")
	return s
}

// Close stops the beat.
func (s *Stream) Close() { s.beat.Stop() }

// StillHere keeps a quiet connection open.
func (s *Stream) StillHere() { s.send(": still here\n\n") }

// Event sends one event at once. An id of 0 is left out.
func (s *Stream) Event(name string, id uint64, data string) {
	text := "event: " + name + "\n"
	if id > 0 {
		text += "id: " + strconv.FormatUint(id, 10) + "\n"
	}
	text += strings.TrimSuffix("data: "+strings.ReplaceAll(data, "\n", "\ndata: "), " ")
	s.send(text + "\n\n")
}

func (s *Stream) send(text string) {
	if s.Err != nil {
		return
	}
	if s.Err = s.control.SetWriteDeadline(time.Now().Add(writeWithin)); s.Err != nil {
		return
	}
	if _, s.Err = s.w.Write([]byte(text)); s.Err == nil {
		s.Err = s.control.Flush()
	}
}
