package delivery

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// origin is the scope of a kept connection: requests with one scheme, host (as in the URL, with its port if it has
// one) and client certificate.
type origin struct {
	scheme, host string
	identity     *Identity
}

// How much a connection may bring: the bytes of a TLS handshake, and for each request the headers and body that are
// read at most, with room for bytes on their way. HTTP/2 frames are read whether an attempt waits for them or not;
// without a limit a receiver could keep a core busy with empty ones.
const (
	bytesPerConn    = 1 << 20
	bytesPerRequest = maxHeaderBytes + 2*maxBodyBytes + 64<<10
	bytesAtOnce     = 64 * bytesPerRequest // the most that is saved up
)

var errFlood = errors.New("the receiver sent much more than was asked for")

// conn is a connection to a receiver. The goroutine that took it from the pool owns it; an HTTP/2 one is shared, and
// then only left and the fields that never change are used.
type conn struct {
	net.Conn // TCP, or TLS to a proxy

	origin origin
	stream io.ReadWriter // tls, or the conn itself
	tls    *tls.Conn     // to the receiver; nil for http
	leaf   Certificate   // zero for http
	full   bool          // the handshake was a full one
	h2     *http.ClientConn

	left     atomic.Int64 // bytes that may still come
	received atomic.Bool  // a byte has come

	used     bool      // it has had a request
	retire   time.Time // it takes no new request from then on
	replaced bool      // an HTTP/2 one whose successor is being made
	expires  time.Time // an idle HTTP/1 one is not used after that

	raw      syscall.RawConn // nil when it cannot be asked without waiting
	probing  bool
	probe    [1]byte
	probeBuf []byte // of the read under way
	probeN   int
	probeErr error
	tryRead  func(fd uintptr) bool

	newer, older *conn // in the pool's list of idle connections
}

// Lifetimes of connections. All are varied, so that connections made together do not end together.
const (
	// connAge is how long a connection takes requests under steady traffic. A changed address of a name is used
	// after it at the latest.
	connAge = 75 * time.Second
	// idleTime is how long an idle connection is kept. Receivers usually close theirs after 60 s or more.
	idleTime = 50 * time.Second
)

func newConn(raw net.Conn, o origin) *conn {
	c := &conn{Conn: raw, origin: o}
	c.stream = c
	c.left.Store(bytesPerConn)
	below := raw
	if t, ok := raw.(*tls.Conn); ok {
		below = t.NetConn()
	}
	if sc, ok := below.(syscall.Conn); ok && below == raw {
		if rc, err := sc.SyscallConn(); err == nil {
			c.raw = rc
			c.tryRead = func(fd uintptr) bool {
				c.probeN, c.probeErr = syscall.Read(int(fd), c.probeBuf)
				return true // without waiting
			}
		}
	}
	return c
}

// expect makes room for one more answer.
func (c *conn) expect() {
	for {
		left := c.left.Load()
		if c.left.CompareAndSwap(left, min(left+bytesPerRequest, bytesAtOnce)) {
			return
		}
	}
}

func (c *conn) Read(b []byte) (int, error) {
	if c.probing {
		return c.readNow(b)
	}
	n, err := c.Conn.Read(b)
	return c.count(n, err)
}

func (c *conn) count(n int, err error) (int, error) {
	if n > 0 && !c.received.Load() {
		c.received.Store(true)
	}
	if c.left.Add(-int64(n)) < 0 {
		_ = c.Conn.Close()
		return 0, errFlood
	}
	return n, err
}

// errNothing says that nothing has arrived. TLS connections stay usable after it, as it is temporary.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing has arrived" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// readNow reads without waiting.
func (c *conn) readNow(b []byte) (int, error) {
	c.probeBuf = b
	err := c.raw.Read(c.tryRead)
	c.probeBuf = nil
	switch {
	case err != nil:
		return 0, err
	case errors.Is(c.probeErr, syscall.EAGAIN), errors.Is(c.probeErr, syscall.EINTR):
		return 0, errNothing
	case c.probeErr != nil:
		return 0, c.probeErr
	case c.probeN == 0:
		return 0, io.EOF
	}
	return c.count(c.probeN, nil)
}

// stale reports whether an idle connection is over: closed by the receiver, or holding bytes that answer nothing. It
// also takes in session tickets that came after the last answer.
func (c *conn) stale() bool {
	if c.raw == nil {
		return false
	}
	c.probing = true
	_, err := c.stream.Read(c.probe[:])
	c.probing = false
	return !errors.Is(err, errNothing)
}

// alert returns the alert of TLS that ended an HTTP/2 connection, which net/http hides where a write failed first; nil
// when it was not that, or is not known.
func (c *conn) alert() error {
	if c.h2.Err() == nil {
		return nil
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	var b [1]byte
	if _, err := c.tls.Read(b[:]); isTLS(err) {
		return err
	}
	return nil
}

func (c *conn) close() {
	if c.tls != nil {
		_ = c.tls.Close()
		return
	}
	_ = c.Conn.Close()
}
