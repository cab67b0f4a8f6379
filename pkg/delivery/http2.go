package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
)

// HTTP/2 connections are those of net/http. All attempts to an origin share one, until it has no stream left or ends.

type handOver struct{}

// newHTTP2Transport returns a Transport that makes an HTTP/2 client of the connection in the context.
func newHTTP2Transport(timeout time.Duration) *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(handOver{}).(*tls.Conn), nil //nolint:errcheck // upgrade put it there
		},
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		IdleConnTimeout:        idleTime,
		HTTP2: &http.HTTP2Config{
			// Attempts share the connection: notice when it is dead, and keep small the bodies that wait to be read
			// (default 4 MiB per stream).
			SendPingTimeout:               10 * time.Second,
			PingTimeout:                   5 * time.Second,
			WriteByteTimeout:              timeout,
			MaxReceiveBufferPerStream:     maxBodyBytes,
			MaxReceiveBufferPerConnection: 1 << 20,
		},
	}
}

// upgrade makes an HTTP/2 client of c.
func (s *Sender) upgrade(ctx context.Context, c *conn) error {
	var err error
	c.h2, err = s.h2.NewClientConn(context.WithValue(ctx, handOver{}, c.tls), "https", "receiver:443")
	return err
}

// http2 sends m over c, on which a stream is reserved, and reads the head of the answer.
func (s *Sender) http2(ctx context.Context, a *attempt, c *conn, m *message) (*reply, error) {
	c.expect()
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(time.Until(a.deadline), func() { cancel(errDeadline) })
	resp, err := c.h2.RoundTrip(m.request(ctx)) //nolint:bodyclose // the reply owns it and closes it
	if err != nil {
		timer.Stop()
		cancel(nil)
		s.pool.done(c)
		if a.asked && a.fresh {
			if alert := c.alert(); alert != nil {
				err = alert
			}
		}
		return nil, err
	}
	return &reply{status: resp.StatusCode, header: resp.Header, body: resp.Body, resp: resp, timer: timer, cancel: cancel}, nil
}

// streamError has the fields of net/http's, which errors.As copies.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return "stream error" }

// Error codes of HTTP/2 (RFC 9113, section 7).
const (
	codeProtocol   = 0x1
	codeRefused    = 0x7
	codeHTTP1      = 0xd
	fromPeer       = "received from peer"
	gracefulGoAway = "http2: Transport received Server's graceful shutdown GOAWAY"
	connNotUsable  = "http2: client conn not usable"
	goAwayFirst    = "http2: Transport received GOAWAY from server ErrCode:"
	goAwayClosed   = "http2: server sent GOAWAY and closed the connection; LastStreamID="
	http1Required  = "HTTP_1_1_REQUIRED"
	headerList     = "header list"                                                    // too large
	requestTooBig  = "http2: request header list larger than peer's advertised limit" // nothing was sent
	speaksHTTP1    = "looked like an HTTP/1.1 header"
)

// unprocessed reports that an HTTP/2 receiver said it will not process the request (RFC 9113, section 8.7), or that
// nothing was sent. Some of the types are private to net/http; should its texts change, such attempts fail instead of
// being sent again.
func unprocessed(err error) bool {
	if errors.Is(err, errNothingSent) {
		return true
	}
	if stream, ok := errors.AsType[streamError](err); ok {
		return stream.Code == codeRefused && stream.Cause != nil && stream.Cause.Error() == fromPeer
	}
	text := err.Error()
	return text == gracefulGoAway || text == connNotUsable
}

// wantsHTTP1 reports that the receiver refused the request because it came over HTTP/2, or takes smaller headers there.
func wantsHTTP1(err error) bool {
	if stream, ok := errors.AsType[streamError](err); ok {
		return stream.Code == codeHTTP1 && stream.Cause != nil && stream.Cause.Error() == fromPeer
	}
	text := err.Error()
	if text == requestTooBig {
		return true
	}
	if code, ok := strings.CutPrefix(text, goAwayFirst); ok {
		return code == http1Required
	}
	// The receiver's own words come last, after debug=.
	rest, ok := strings.CutPrefix(text, goAwayClosed)
	before, _, _ := strings.Cut(rest, ", debug=")
	return ok && strings.HasSuffix(before, "ErrCode="+http1Required)
}

// malformed reports that we refused the answer's headers, or that it is no HTTP/2.
func malformed(err error) (cause string, ok bool) {
	if strings.HasSuffix(err.Error(), speaksHTTP1) {
		return "they are those of HTTP/1.1, although the receiver chose HTTP/2", true
	}
	var stream streamError
	if !errors.As(err, &stream) || stream.Code != codeProtocol || stream.Cause == nil {
		return "", false
	}
	cause = stream.Cause.Error()
	return cause, cause != fromPeer && !strings.Contains(cause, headerList)
}
