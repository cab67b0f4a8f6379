package delivery

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is one HTTP/2 connection of a receiver that decides about every frame.
type frames struct {
	*http2.Framer
	c net.Conn
}

// newHTTP2 is a receiver whose serve is called for each connection, after the preface and SETTINGS.
func newHTTP2(tb testing.TB, ca *authority, serve func(f frames)) *raw {
	cfg := ca.server(tb)
	cfg.NextProtos = []string{"h2"}
	return newRaw(tb, cfg, func(c net.Conn) {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
			return
		}
		f := frames{http2.NewFramer(c, c), c}
		f.AllowIllegalWrites = true
		if f.WriteSettings() == nil {
			serve(f)
		}
	})
}

// stream reads until a request has arrived whole and returns its stream; 0 when the connection is over.
func (f frames) stream() uint32 {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return 0
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = f.WritePing(true, frame.Data)
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				return frame.StreamID
			}
		}
	}
}

// drain reads until the sender closes the connection.
func (f frames) drain() { _, _ = io.Copy(io.Discard, f.c) }

func (f frames) answer(stream uint32, status string, end bool) error {
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block(":status", status), EndHeaders: true, EndStream: end})
}

func block(pairs ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

// TestHTTP2 is row 115 and what rows 97 to 108 mean in HTTP/2. Not parallel, as it measures the heap.
func TestHTTP2(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	ca := newAuthority(t)
	large := block(":status", "200", "x", strings.Repeat("y", 1<<20))
	filler := block(":status", "103", "x-filler", strings.Repeat("y", 200))
	for _, tc := range []struct {
		row   string
		serve func(f frames, stream uint32)
		want  string
	}{
		{"97 success", func(f frames, id uint32) { _ = f.answer(id, "200", true) }, "delivered"},
		{"98 informational, then final", func(f frames, id uint32) {
			_ = f.answer(id, "103", false)
			_ = f.answer(id, "204", true)
		}, "delivered"},
		{"101 status 1000", func(f frames, id uint32) { _ = f.answer(id, "1000", true) }, "bad_response"},
		{"101 status 099", func(f frames, id uint32) { _ = f.answer(id, "099", true) }, "bad_response"},
		{"101 status abc", func(f frames, id uint32) { _ = f.answer(id, "abc", true) }, "bad_response"},
		{"101 no status", func(f frames, id uint32) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block("x", "y"), EndHeaders: true, EndStream: true})
		}, "bad_response"},
		{"100 switching protocols", func(f frames, id uint32) { _ = f.answer(id, "101", true) }, "bad_response"},
		{"103 endless body", func(f frames, id uint32) {
			err := f.answer(id, "200", false)
			for err == nil {
				err = f.WriteData(id, false, make([]byte, 16384)) // window or not
			}
		}, "delivered"},
		{"103 body never ends", func(f frames, id uint32) { _ = f.answer(id, "200", false) }, "delivered"},
		{"108 endless informational answers", func(f frames, id uint32) {
			var err error
			for err == nil {
				err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: filler, EndHeaders: true})
			}
		}, "header_limit"},
		{"108 one header of 1 MiB", func(f frames, id uint32) {
			rest := large
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: rest[:16384]})
			for rest = rest[16384:]; err == nil && len(rest) > 0; {
				n := min(16384, len(rest))
				err = f.WriteContinuation(id, n == len(rest), rest[:n])
				rest = rest[n:]
			}
		}, "bad_response"}, // its decoder stops at the length of the text
		{"115 stream reset, INTERNAL_ERROR", func(f frames, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeInternal) }, "bad_response"},
		{"115 stream reset, CANCEL", func(f frames, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeCancel) }, "bad_response"},
		{"115 stream reset, PROTOCOL_ERROR", func(f frames, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeProtocol) }, "bad_response"},
		{"115 GOAWAY, then closed", func(f frames, id uint32) {
			_ = f.WriteGoAway(id, http2.ErrCodeNo, []byte("CANARY\r\n"))
			_ = f.c.Close()
		}, "connect"},
		{"115 GOAWAY with error on the first stream", func(f frames, _ uint32) { _ = f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil) }, "bad_response"},
		{"115 closed", func(f frames, _ uint32) { _ = f.c.Close() }, "connect"},
		{"115 reset", func(f frames, _ uint32) { reset(f.c) }, "connect"},
		{"115 frame that does not exist", func(f frames, id uint32) {
			_ = f.WriteRawFrame(0xee, 0, 0, []byte("x"))
			_ = f.answer(id, "200", true)
		}, "delivered"},
		{"115 frame too large", func(f frames, id uint32) { _ = f.WriteRawFrame(http2.FrameData, 0, id, make([]byte, 1<<20+1)) }, "bad_response or connect"},
		{"115 data before headers", func(f frames, id uint32) { _ = f.WriteData(id, true, []byte("x")) }, "bad_response or connect"},
		{"115 push", func(f frames, id uint32) {
			_ = f.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2, BlockFragment: block(":method", "GET"), EndHeaders: true})
		}, "bad_response or connect"},
		{"115 garbage", func(f frames, _ uint32) { _, _ = f.c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) }, "bad_response or connect"},
		// The sender answers these two; as this receiver never reads that, its writes may come to a halt first.
		{"115 SETTINGS flood", func(f frames, _ uint32) {
			var err error
			for err == nil {
				err = f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
			}
		}, "bad_response or timeout"},
		{"115 ping flood", func(f frames, _ uint32) {
			var err error
			for err == nil {
				err = f.WritePing(false, [8]byte{})
			}
		}, "bad_response or timeout"},
		{"115 CONTINUATION flood", func(f frames, id uint32) {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: filler})
			more := block("x-filler", strings.Repeat("y", 200))
			for err == nil {
				err = f.WriteContinuation(id, false, more)
			}
		}, "header_limit or bad_response"},
		{"115 empty CONTINUATION flood", func(f frames, id uint32) {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: filler})
			for err == nil {
				err = f.WriteContinuation(id, false, nil)
			}
		}, "bad_response"},
		{"115 silence", func(frames, uint32) {}, "timeout"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			timeout := 10 * time.Second
			if strings.Contains(tc.want, "timeout") {
				timeout = 700 * time.Millisecond
			}
			var requests atomic.Int32
			rec := newHTTP2(t, ca, func(f frames) {
				for {
					id := f.stream()
					if id == 0 {
						return
					}
					requests.Add(1)
					tc.serve(f, id)
				}
			})
			s := newSender(t, ca, timeout)
			var o Outcome
			start := time.Now()
			growth := heapGrowth(func() { o = s.Send(t.Context(), request(rec.url)) })
			if !strings.Contains(tc.want, verdict(o)) {
				t.Errorf("verdict %s, want %s (%s)", verdict(o), tc.want, o.Detail)
			}
			if n := requests.Load(); n != 1 {
				t.Errorf("the receiver got %d requests in one attempt", n)
			}
			if took := time.Since(start); took > timeout+bound {
				t.Errorf("took %v", took)
			}
			if growth > 6<<20 {
				t.Errorf("the heap grew by %d KiB", growth>>10)
			}
			if strings.ContainsAny(o.Detail, "\r\n") {
				t.Errorf("detail is not one line: %q", o.Detail)
			}
			s.Close()
		})
	}
}

// TestHTTP2InName: a receiver that chooses HTTP/2 and speaks HTTP/1.1 is sent HTTP/1.1 at the next attempt, one that
// takes only small headers over HTTP/2 in the same attempt.
func TestHTTP2InName(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for name, tc := range map[string]struct {
		serve func(f frames)
		first string
	}{
		"speaks HTTP/1.1": {func(f frames) {
			if f.stream() != 0 {
				_, _ = io.WriteString(f.c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
			f.drain()
		}, "bad_response"},
		"takes small headers": {func(f frames) {
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 100})
			if id := f.stream(); id != 0 { // sent before the sender had read that
				_ = f.answer(id, "200", true)
			}
			f.drain()
		}, "delivered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := ca.server(t)
			cfg.NextProtos = []string{"h2", "http/1.1"}
			rec := newRaw(t, cfg, func(c net.Conn) {
				if c.(*tls.Conn).ConnectionState().NegotiatedProtocol != "h2" { //nolint:errcheck // it speaks TLS
					answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")(c)
					return
				}
				_, _ = io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
				tc.serve(frames{http2.NewFramer(c, c), c})
			})
			s := newSender(t, ca, 10*time.Second)
			o := s.Send(t.Context(), request(rec.url))
			if verdict(o) != tc.first || tc.first != "delivered" && !strings.Contains(o.Detail, "those of HTTP/1.1") {
				t.Errorf("verdict %s (%s), want %s", verdict(o), o.Detail, tc.first)
			}
			expect(t, s.Send(t.Context(), request(rec.url)), "delivered")
		})
	}
}

// TestHTTP2Resend: a request is sent again only when the receiver says that it did not process it.
func TestHTTP2Resend(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	refuse := func(f frames, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream) }
	goAway := func(f frames, id uint32) {
		_ = f.WriteGoAway(id-2, http2.ErrCodeNo, nil)
		_ = f.c.Close()
	}
	protocol := func(f frames, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeProtocol) }
	for _, tc := range []struct {
		name     string
		times    int32 // how often the receiver does it, after a first good answer
		bad      func(f frames, stream uint32)
		want     string
		requests int32 // on the wire, the first good one included
	}{
		{"refused once", 1, refuse, "delivered", 3},
		{"refused always", 100, refuse, "bad_response", 4},
		{"going away", 1, goAway, "delivered", 3},
		{"protocol error", 100, protocol, "bad_response", 2},
		{"closed", 1, func(f frames, _ uint32) { _ = f.c.Close() }, "connect", 2},
	} {
		for _, method := range []string{"POST", "GET"} {
			t.Run(tc.name+" "+method, func(t *testing.T) {
				t.Parallel()
				var requests, bad atomic.Int32
				rec := newHTTP2(t, ca, func(f frames) {
					defer f.drain()
					for {
						id := f.stream()
						if id == 0 {
							return
						}
						if requests.Add(1) > 1 && bad.Add(1) <= tc.times {
							tc.bad(f, id)
							continue
						}
						_ = f.answer(id, "200", true)
					}
				})
				s := newSender(t, ca, 10*time.Second)
				r := request(rec.url)
				r.Method = method
				expect(t, s.Send(t.Context(), r), "delivered")
				expect(t, s.Send(t.Context(), r), tc.want)
				if n := requests.Load(); n != tc.requests {
					t.Errorf("the receiver got %d requests, want %d", n, tc.requests)
				}
			})
		}
	}
}

// TestUnprocessed: a receiver's own words cannot pass for the client's.
func TestUnprocessed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"http2: Transport received Server's graceful shutdown GOAWAY": true,
		"http2: client conn not usable":                               true,
		`http2: server sent GOAWAY and closed the connection; LastStreamID=1, ErrCode=NO_ERROR, debug="http2: client conn not usable"`: false,
	} {
		if got := unprocessed(errors.New(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	for text, want := range map[string]bool{
		"http2: Transport received GOAWAY from server ErrCode:HTTP_1_1_REQUIRED":                                                     true,
		`http2: server sent GOAWAY and closed the connection; LastStreamID=0, ErrCode=HTTP_1_1_REQUIRED, debug=""`:                   true,
		`http2: server sent GOAWAY and closed the connection; LastStreamID=0, ErrCode=NO_ERROR, debug="HTTP_1_1_REQUIRED"`:           false,
		`http2: server sent GOAWAY and closed the connection; LastStreamID=0, ErrCode=NO_ERROR, debug=", ErrCode=HTTP_1_1_REQUIRED"`: false,
	} {
		if got := wantsHTTP1(errors.New(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// TestHTTP2Shares: attempts to one host share a connection, and one that times out does not end the others.
func TestHTTP2Shares(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	arrived := make(chan uint32, 2)
	rec := newHTTP2(t, ca, func(f frames) {
		for {
			id := f.stream()
			if id == 0 {
				return
			}
			if id != 3 { // the second attempt gets no answer
				_ = f.answer(id, "200", true)
				continue
			}
			arrived <- id
		}
	})
	s := newSender(t, ca, time.Second)
	expect(t, s.Send(t.Context(), request(rec.url)), "delivered")
	done := make(chan Outcome)
	go func() { done <- s.Send(t.Context(), request(rec.url)) }()
	<-arrived
	for range 10 {
		expect(t, s.Send(t.Context(), request(rec.url)), "delivered")
	}
	expect(t, <-done, "timeout")
	expect(t, s.Send(t.Context(), request(rec.url)), "delivered")
	if n := rec.accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}
