package delivery

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// An exchange of HTTP/1.1 is one write and a few reads in the goroutine of Send.
//
// The reader is strict about the status line, for the status decides, and about nothing else: headers after it that
// no server should send are noted in reply.odd. A connection is used again only when nothing was odd and every byte
// of the answer is accounted for, so bytes can never pass for the answer to another request.

// bytesInOneWrite is the size up to which a request is written before its answer is read. A larger one is written at
// the same time, as a receiver may answer, and stop reading, before it has read all.
const bytesInOneWrite = 16 << 10

// errNothingSent says that a kept connection was over before a byte of the request was written to it.
var errNothingSent = errors.New("the kept connection was closed")

// errHeaderLimit and badAnswer are answers that do not count.
var errHeaderLimit = errors.New("the answer's headers are larger than 64 KiB")

type badAnswer string

func (e badAnswer) Error() string { return string(e) }

// lostError is the end of a connection before the first byte of an answer.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// reply is an answer: its head, and its body yet to be read.
type reply struct {
	status int
	header http.Header
	odd    string // the first thing that is wrong with the headers
	body   io.Reader

	// HTTP/1
	in      *input
	minor   byte // of HTTP/1.x
	length  int64
	chunked bool
	broken  bool       // the request was not written whole
	written chan error // nil when that is known already
	// HTTP/2
	resp   *http.Response
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

const (
	lengthUnknown = -1 // until the connection ends
	inputBytes    = 4 << 10
)

// input reads from a connection and keeps bytes that came with others.
type input struct {
	c    *conn
	buf  []byte
	r, w int           // the bytes in buf[r:w] are not consumed
	br   *bufio.Reader // of a chunked body; nil before the first one
}

var inputs = sync.Pool{New: func() any { return &input{buf: make([]byte, inputBytes)} }}

func (in *input) release() {
	if len(in.buf) > inputBytes {
		return // left to the collector: few answers are as large
	}
	in.c, in.r, in.w = nil, 0, 0
	inputs.Put(in)
}

// Read reads the rest of buf, then the connection.
func (in *input) Read(b []byte) (int, error) {
	if in.r < in.w {
		n := copy(b, in.buf[in.r:in.w])
		in.r += n
		return n, nil
	}
	return in.c.stream.Read(b)
}

// http1 sends m over c and reads the head of the answer. The connection's deadline is set.
func (s *Sender) http1(c *conn, m *message) (*reply, error) {
	kept := c.used
	c.used = true
	c.expect()
	out := heads.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	defer heads.Put(out)
	head := (*out)[:0]
	if s.policy.Proxy != nil && m.origin.scheme == "http" {
		u := *m.url
		u.Fragment = ""
		head = m.appendHead(head, u.String(), s.proxyFields...)
	} else {
		head = m.appendHead(head, m.url.RequestURI())
	}
	rep := &reply{}
	if len(head)+len(m.body) <= bytesInOneWrite {
		head = append(head, m.body...)
		*out = head
		n, err := c.stream.Write(head)
		if err != nil && n == 0 && kept && !isTimeout(err) {
			return nil, errNothingSent
		}
		// A receiver that answers before it has read all may end the connection at once: its answer counts.
		if err := rep.read(c); err != nil {
			return nil, err
		}
		rep.broken = err != nil
		return rep, nil
	}
	*out = head
	rep.written = make(chan error, 1)
	mine := slices.Clone(head) // head goes back to the pool while a write may be under way
	go func() { rep.written <- writeLarge(c, mine, m.body) }()
	if err := rep.read(c); err != nil {
		c.close()
		if sent := <-rep.written; errors.Is(sent, errNothingSent) && kept {
			return nil, errNothingSent
		}
		return nil, err
	}
	return rep, nil
}

var heads = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

func writeLarge(c *conn, head, body []byte) error {
	var n int64
	var err error
	if c.tls == nil && c.stream == io.ReadWriter(c) {
		bufs := net.Buffers{head, body}
		n, err = bufs.WriteTo(c.Conn)
	} else {
		var first int
		if first, err = c.stream.Write(head); err == nil {
			_, err = c.stream.Write(body)
		}
		n = int64(first)
	}
	if err != nil && n == 0 && !isTimeout(err) {
		return errNothingSent
	}
	return err
}

func isTimeout(err error) bool {
	slow, ok := errors.AsType[net.Error](err)
	return ok && slow.Timeout()
}

// read reads heads until one is not informational.
func (rep *reply) read(c *conn) error {
	in := inputs.Get().(*input) //nolint:errcheck // the pool holds nothing else
	in.c = c
	for left := maxHeaderBytes; ; {
		head, err := in.head(left)
		if err != nil {
			in.release()
			return err
		}
		left -= len(head)
		if err := rep.parse(head); err != nil {
			in.release()
			return err
		}
		if rep.status >= 200 || rep.status == http.StatusSwitchingProtocols {
			break
		}
	}
	rep.in = in
	rep.frame()
	return nil
}

// head returns the next head, with its end, or without it when the connection ended after the status line. It is
// valid until the next call.
func (in *input) head(most int) ([]byte, error) {
	for seen := 0; ; {
		if n := endOfHead(in.buf[in.r:in.w], seen); n > 0 {
			if n > most {
				return nil, errHeaderLimit
			}
			head := in.buf[in.r : in.r+n]
			in.r += n
			return head, nil
		}
		seen = in.w - in.r
		if seen > most {
			return nil, errHeaderLimit
		}
		if in.r > 0 {
			in.w = copy(in.buf, in.buf[in.r:in.w])
			in.r = 0
		}
		if in.w == len(in.buf) {
			in.buf = append(in.buf, make([]byte, len(in.buf))...)
		}
		n, err := in.c.stream.Read(in.buf[in.w:])
		in.w += n
		switch {
		case n > 0:
			continue
		case err == nil:
			return nil, io.ErrNoProgress
		case isTimeout(err), errors.Is(err, errFlood):
			return nil, err
		case in.w == 0 && most == maxHeaderBytes:
			return nil, &lostError{err}
		}
		if rest := in.buf[in.r:in.w]; bytes.IndexByte(rest, '\n') >= 0 { // the status came whole
			in.r = in.w
			return rest, nil
		}
		return nil, badAnswer("the connection was closed before the answer's status")
	}
}

// endOfHead returns the size of the head in b with the empty line after it, 0 when that is not there yet. The first
// seen bytes were searched before.
func endOfHead(b []byte, seen int) int {
	// The line end before the empty line is the last one that was seen, or a new one.
	for i := max(0, bytes.LastIndexByte(b[:seen], '\n')); ; i++ {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return 0
		}
		i += j
		rest := bytes.TrimLeft(b[i+1:], "\r") // some programs write CR CR LF
		if len(rest) > 0 && rest[0] == '\n' {
			return len(b) - len(rest) + 1
		}
	}
}

// parse takes over the status and the headers in head.
func (rep *reply) parse(head []byte) error {
	text := string(head) // the headers are parts of it
	line, text, _ := strings.Cut(text, "\n")
	rep.odd = ""
	if err := rep.statusLine(strings.TrimRight(line, "\r")); err != nil {
		return err
	}
	n := strings.Count(text, "\n")
	rep.header = make(http.Header, min(n, 32))
	values := make([]string, 0, n)
	last := "" // the header that a folded line continues
	for {
		var ended bool
		if line, text, ended = strings.Cut(text, "\n"); !ended {
			rep.note("the connection was closed inside them")
			break
		}
		line = strings.TrimRight(line, "\r")
		if line == "" {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			more := strings.Trim(line, " \t")
			if list := rep.header[last]; len(list) > 0 {
				if more != "" {
					list[len(list)-1] += " " + more
				}
			} else {
				rep.note("a line before the first header begins with a space")
			}
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		switch trimmed := strings.TrimRight(name, " \t"); {
		case !ok:
			rep.note("a line has no colon: " + quote(line))
			continue
		case !httpguts.ValidHeaderFieldName(trimmed):
			rep.note("a header's name has characters that are not allowed: " + quote(name))
			name = strings.ToValidUTF8(trimmed, "\uFFFD")
		case trimmed != name:
			rep.note("a header's name ends with a space: " + quote(name))
			name = textproto.CanonicalMIMEHeaderKey(trimmed)
		default:
			name = textproto.CanonicalMIMEHeaderKey(name)
		}
		last = name
		value = strings.Trim(value, " \t")
		if list, ok := rep.header[name]; ok {
			rep.header[name] = append(list, value)
			continue
		}
		values = append(values, value)
		rep.header[name] = values[len(values)-1 : len(values) : len(values)]
	}
	return nil
}

// statusLine reads HTTP/1.x NNN and an optional reason. Another version, and anything after the three digits, is noted.
func (rep *reply) statusLine(line string) error {
	end := strings.IndexAny(line, " \t")
	if end < 0 || !isVersion(line[:end]) {
		return badAnswer("the answer is not HTTP: it begins with " + quote(line))
	}
	version, rest := line[:end], strings.TrimLeft(line[end:], " \t")
	digits := 0
	for digits < len(rest) && '0' <= rest[digits] && rest[digits] <= '9' {
		digits++
	}
	if digits != len("200") {
		return badAnswer("the answer has no status: its first line is " + quote(line))
	}
	rep.status, _ = strconv.Atoi(rest[:digits])
	if rep.status < 100 {
		return badAnswer("the receiver answered with status " + rest[:digits] + ", which does not exist")
	}
	rep.minor = version[len(version)-1] - '0'
	switch after := rest[digits:]; {
	case len(version) != len("HTTP/1.1") || !strings.HasPrefix(version, "HTTP/1."):
		rep.note("the answer's version is " + quote(version))
	case after != "" && after[0] != ' ' && after[0] != '\t':
		rep.note("the answer's first line is " + quote(line))
	}
	return nil
}

// isVersion accepts HTTP/1.1 and what old or careless programs write for it: in lower case, of another version, or
// without its second part.
func isVersion(text string) bool {
	const prefix = "HTTP/"
	if len(text) <= len(prefix) || !strings.EqualFold(text[:len(prefix)], prefix) {
		return false
	}
	digit := func(c byte) bool { return '0' <= c && c <= '9' }
	number := text[len(prefix):]
	return digit(number[0]) && (len(number) == 1 || len(number) == 3 && number[1] == '.' && digit(number[2]))
}

func (rep *reply) note(odd string) {
	if rep.odd == "" {
		rep.odd = odd
	}
}

// quote shows text from outside, cut.
func quote(text string) string {
	const most = 60
	if len(text) > most {
		return strconv.Quote(strings.ToValidUTF8(text[:most], "")) + "..."
	}
	return strconv.Quote(text)
}

// frame finds out how the body ends (RFC 9112, section 6.3). Anything doubtful makes it last until the connection
// ends, and the connection is not used again.
func (rep *reply) frame() {
	codings := tokens(rep.header["Transfer-Encoding"])
	lengths := rep.header["Content-Length"]
	rep.length = lengthUnknown
	switch {
	case rep.status == http.StatusNoContent || rep.status == http.StatusNotModified || rep.status == http.StatusSwitchingProtocols:
		rep.length = 0
	case len(codings) > 0:
		if last := codings[len(codings)-1]; last == "chunked" {
			rep.chunked = true
		}
		if len(codings) > 1 || !rep.chunked {
			rep.note("Transfer-Encoding is " + quote(strings.Join(codings, ", ")) + " and not chunked")
		}
		if len(lengths) > 0 {
			rep.note("both Transfer-Encoding and Content-Length are there")
		}
	case len(lengths) > 0:
		n, err := strconv.ParseUint(lengths[0], 10, 63)
		switch {
		case slices.ContainsFunc(lengths, func(other string) bool { return other != lengths[0] }):
			rep.note("two values of Content-Length differ")
		case err != nil || lengths[0][0] == '+':
			rep.note("Content-Length is " + quote(lengths[0]))
		default:
			rep.length = int64(n)
		}
	}
	switch {
	case rep.chunked:
		if rep.in.br == nil {
			rep.in.br = bufio.NewReaderSize(rep.in, inputBytes)
		}
		rep.in.br.Reset(rep.in)
		rep.body = httputil.NewChunkedReader(rep.in.br)
	case rep.length >= 0:
		rep.body = &io.LimitedReader{R: rep.in, N: rep.length}
	default:
		rep.body = rep.in
	}
}

// tokens are the elements of a list header, in lower case.
func tokens(values []string) []string {
	var out []string
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			out = append(out, strings.ToLower(strings.Trim(t, " \t")))
		}
	}
	return out
}

// finish ends the exchange and reports whether, and until when, the connection can be used again. whole means that
// the body was read to its end.
func (rep *reply) finish(whole bool, now time.Time) (until time.Time, reusable bool) {
	in := rep.in
	defer in.release()
	if rep.written != nil {
		end := time.NewTimer(writeEnds)
		defer end.Stop()
		select {
		case err := <-rep.written:
			rep.broken = err != nil
		case <-end.C: // the receiver does not want the rest
			rep.broken = true
		}
	}
	if !whole || rep.broken || rep.odd != "" || rep.chunked && !in.trailers() || !rep.chunked && rep.length < 0 || in.r < in.w || rep.status < 200 {
		return time.Time{}, false
	}
	connection := tokens(rep.header["Connection"])
	if slices.Contains(connection, "close") || rep.minor == 0 && !slices.Contains(connection, "keep-alive") {
		return time.Time{}, false
	}
	keep := announced(rep.header["Keep-Alive"])
	return now.Add(keep), keep > 0
}

// announced is how long a connection may be idle: idleTime, or less when the receiver says so (Keep-Alive: timeout=5,
// max=99). A second, and of short times half, is left for the request's way.
func announced(values []string) time.Duration {
	keep := vary(idleTime)
	for _, t := range tokens(values) {
		name, value, _ := strings.Cut(t, "=")
		n, err := strconv.ParseUint(strings.Trim(value, ` "`), 10, 32)
		switch name = strings.TrimSpace(name); {
		case err != nil:
		case name == "timeout":
			d := time.Duration(n) * time.Second
			keep = min(keep, max(d-time.Second, d/2))
		case name == "max" && n == 0:
			keep = 0
		}
	}
	return keep
}

const (
	maxTrailerBytes = 4 << 10
	// writeEnds is how long the end of a write may be noticed after the end of the answer.
	writeEnds = 20 * time.Millisecond
)

// trailers consumes the lines after the last chunk, up to an empty one.
func (in *input) trailers() bool {
	for left := maxTrailerBytes; left > 0; {
		line, err := in.br.ReadSlice('\n')
		if err != nil {
			return false
		}
		left -= len(line)
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return in.br.Buffered() == 0
		}
	}
	return false
}
