package delivery

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestOddHeaders: a status that came counts whatever is wrong with the headers after it; the connection is closed.
func TestOddHeaders(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ head, detail string }{
		"Transfer-Encoding: identity":        {"Transfer-Encoding: identity\r\n", `Transfer-Encoding is "identity"`},
		"Transfer-Encoding: gzip":            {"Transfer-Encoding: gzip\r\n", `"gzip"`},
		"Transfer-Encoding: gzip, chunked":   {"Transfer-Encoding: gzip, chunked\r\n", `"gzip, chunked"`},
		"Transfer-Encoding twice":            {"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding"},
		"Transfer-Encoding, empty":           {"Transfer-Encoding:\r\n", `Transfer-Encoding is ""`},
		"name with a letter outside ASCII":   {"Pre\xc3\xa7o: 1\r\nContent-Length: 0\r\n", "name has characters"},
		"name in ISO-8859-1":                 {"Pre\xe7o: 1\r\nContent-Length: 0\r\n", "name has characters"},
		"name with a space":                  {"X Y: 1\r\nContent-Length: 0\r\n", "name has characters"},
		"name that ends with a space":        {"X-Y : 1\r\nContent-Length: 0\r\n", "ends with a space"},
		"no name":                            {": 1\r\nContent-Length: 0\r\n", "name has characters"},
		"line without colon":                 {"nonsense\r\nContent-Length: 0\r\n", `no colon: "nonsense"`},
		"line of NUL":                        {"\x00\x00\r\nContent-Length: 0\r\n", "no colon"},
		"second status line":                 {"HTTP/1.1 500 X\r\nContent-Length: 0\r\n", "no colon"},
		"first line begins with a space":     {" X: 1\r\nContent-Length: 0\r\n", "begins with a space"},
		"two lengths":                        {"Content-Length: 1\r\nContent-Length: 2\r\n", "differ"},
		"length and the same with zeros":     {"Content-Length: 2\r\nContent-Length: 02\r\n", "differ"},
		"empty length":                       {"Content-Length: \r\n", `Content-Length is ""`},
		"length as text":                     {"Content-Length: two\r\n", `"two"`},
		"length with a sign":                 {"Content-Length: +2\r\n", `"+2"`},
		"negative length":                    {"Content-Length: -2\r\n", `"-2"`},
		"length in hexadecimal":              {"Content-Length: 0x2\r\n", `"0x2"`},
		"list of lengths":                    {"Content-Length: 2, 2\r\n", `"2, 2"`},
		"length that is too large":           {"Content-Length: 99999999999999999999\r\n", "Content-Length"},
		"length and chunks":                  {"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "both"},
		"name with a colon in the middle":    {"X-Y: a: b\r\nContent-Length: 0\r\n", ""},
		"folded line":                        {"X-Y: a\r\n b\r\nContent-Length: 0\r\n", ""},
		"control characters in a value":      {"X-Y: a\x01\x7f\r\nContent-Length: 0\r\n", ""},
		"value in ISO-8859-1":                {"X-Y: pre\xe7o\r\nContent-Length: 0\r\n", ""},
		"lines that end with LF alone":       {"X-Y: 1\nContent-Length: 0\n", ""},
		"lines that end with CR CR LF":       {"X-Y: 1\r\r\nContent-Length: 0\r\r\n\r", ""},
		"NUL in a value":                     {"X-Y: a\x00b\r\nContent-Length: 0\r\n", ""},
		"CR in a value":                      {"X-Y: a\rb\r\nContent-Length: 0\r\n", ""},
		"two Locations":                      {"Location: /a\r\nLocation: /b\r\nContent-Length: 0\r\n", ""},
		"line of spaces":                     {"Content-Length: 0\r\n \r\n", ""},
		"no headers":                         {"", ""},
		"1,000 headers":                      {strings.Repeat("X-Y: 1\r\n", 1000) + "Content-Length: 0\r\n", ""},
		"a cookie that no browser would eat": {"Set-Cookie: \"a;b\r\nContent-Length: 0\r\n", ""},
	} {
		for status, want := range map[string]string{"200 OK": "delivered", "503 Service Unavailable": "status_5xx"} {
			t.Run(name+" "+status, func(t *testing.T) {
				t.Parallel()
				var requests atomic.Int32
				rec := newRaw(t, nil, func(c net.Conn) {
					br := bufio.NewReader(c)
					for {
						if _, _, err := readRequest(br); err != nil {
							return
						}
						requests.Add(1)
						_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\n"+tc.head+"\r\n")
					}
				})
				s := newSender(t, nil, 10*time.Second)
				for i := range 2 {
					o := s.Send(t.Context(), request(rec.url))
					expect(t, o, want)
					if odd := strings.Contains(o.Detail, "malformed"); odd != (tc.detail != "") || !strings.Contains(o.Detail, tc.detail) {
						t.Errorf("detail %q, want %q in it", o.Detail, tc.detail)
					}
					if n := rec.accepted(); tc.detail != "" && n != i+1 {
						t.Errorf("%d connections after %d attempts: one was used again", n, i+1)
					}
				}
				if n := requests.Load(); n != 2 {
					t.Errorf("%d requests for 2 attempts", n)
				}
			})
		}
	}
}

// TestEarlyAnswer: an answer before the request was read counts, also where the receiver then resets the connection.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for name, end := range map[string]func(net.Conn){
		"reset":      reset,
		"closed":     func(net.Conn) {},
		"held open":  func(c net.Conn) { _, _ = io.Copy(io.Discard, onlyClose{c}) },
		"kept alive": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
	} {
		for size, body := range map[string][]byte{"small": []byte(event), "1 MiB": bytes.Repeat([]byte(" "), 1<<20), "8 MiB": bytes.Repeat([]byte(" "), 8<<20)} {
			for _, secure := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s TLS=%t", name, size, secure), func(t *testing.T) {
					t.Parallel()
					cfg := ca.server(t)
					if !secure {
						cfg = nil
					}
					rec := newRaw(t, cfg, func(c net.Conn) {
						_, _ = c.Read(make([]byte, 100)) // a part of the head
						_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
						end(c)
					})
					r := request(rec.url)
					r.Body = body
					o := newSender(t, ca, 5*time.Second).Send(t.Context(), r)
					expect(t, o, "status_4xx")
					if o.Status != http.StatusRequestEntityTooLarge {
						t.Errorf("status %d", o.Status)
					}
				})
			}
		}
	}
}

// onlyClose reads nothing until the other side has ended the connection.
type onlyClose struct{ net.Conn }

func (c onlyClose) Read([]byte) (int, error) {
	for {
		if _, err := c.Write([]byte(" ")); err != nil {
			return 0, err
		}
		<-time.After(10 * time.Millisecond) // without a read only a write that fails shows the end
	}
}

// TestKeptConnection: what a receiver announces about its connection is obeyed.
func TestKeptConnection(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer string
		kept   bool
	}{
		"plain":                     {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true},
		"chunked":                   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", true},
		"chunked with a trailer":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n", true},
		"chunked with an extension": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\na\r\n0\r\n\r\n", true},
		"no content":                {"HTTP/1.1 204 No Content\r\n\r\n", true},
		"not modified":              {"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", true},
		"informational before":      {"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true},
		"Connection: close":         {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false},
		"Connection: Close, X":      {"HTTP/1.1 200 OK\r\nConnection: X, Close\r\nContent-Length: 0\r\n\r\n", false},
		"HTTP/1.0":                  {"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		"HTTP/1.0 keep-alive":       {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", true},
		"Keep-Alive: timeout=0":     {"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0\r\nContent-Length: 0\r\n\r\n", false},
		"Keep-Alive: max=0":         {"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=0\r\nContent-Length: 0\r\n\r\n", false},
		"Keep-Alive: timeout=5":     {"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=9\r\nContent-Length: 0\r\n\r\n", true},
		"more than was announced":   {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", false},
		"more after the chunks":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", false},
		"switching protocols":       {"HTTP/1.1 101 X\r\n\r\n", false},
		"body of 100 KB":            {"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000), false},
		"body of 60 KB":             {"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + strings.Repeat("x", 60_000), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := newRaw(t, nil, func(c net.Conn) {
				br := bufio.NewReader(c)
				for {
					if _, _, err := readRequest(br); err != nil {
						return
					}
					_, _ = io.WriteString(c, tc.answer)
				}
			})
			s := newSender(t, nil, 10*time.Second)
			first := s.Send(t.Context(), request(rec.url))
			second := s.Send(t.Context(), request(rec.url))
			if verdict(first) != verdict(second) {
				t.Errorf("first %s, second %s (%s)", verdict(first), verdict(second), second.Detail)
			}
			if n := rec.accepted(); (n == 1) != tc.kept {
				t.Errorf("%d connections, kept %t", n, !tc.kept)
			}
		})
	}
}

// TestAnnounced: a connection is not used when the receiver is about to close it.
func TestAnnounced(t *testing.T) {
	t.Parallel()
	for value, most := range map[string]time.Duration{
		"":                     idleTime * 6 / 5,
		"timeout=5":            4 * time.Second,
		"timeout=1":            time.Second / 2,
		"timeout=5, max=100":   4 * time.Second,
		"max=100, timeout = 5": 4 * time.Second,
		`timeout="5"`:          4 * time.Second,
		"timeout=0":            0,
		"timeout=3600":         idleTime * 6 / 5,
		"timeout=x":            idleTime * 6 / 5,
		"max=0":                0,
	} {
		if got := announced([]string{value}); got > most || got < min(most, idleTime*4/5) {
			t.Errorf("%q: %v, want at most %v", value, got, most)
		}
	}
}

// FuzzReply: no bytes of a receiver make the reader fail, grow, or keep a connection that holds more bytes.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200\n\n", "HTTP/1.0 500 X\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\n a: b\r\n c\r\nTransfer-Encoding: identity\r\n\r\n", "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	s := newSender(f, nil, time.Second)
	f.Fuzz(func(t *testing.T, answer []byte) {
		in := bytes.NewReader(answer)
		c := newConn(nil, origin{})
		c.stream = struct {
			io.Reader
			io.Writer
		}{in, io.Discard}
		rep := &reply{}
		if rep.read(c) != nil {
			return
		}
		if rep.status < 100 || rep.status > 999 {
			t.Errorf("status %d", rep.status)
		}
		whole := rep.length == 0
		var kept []byte
		if !whole {
			kept, whole = s.read(rep.body, rep.header, nil)
		}
		buffered := rep.in.w - rep.in.r
		if _, again := rep.finish(whole, time.Now()); again && (rep.odd != "" || buffered > 0) {
			t.Errorf("a connection is kept: odd %q, %d bytes left", rep.odd, buffered)
		}
		if len(kept) > keptBodyBytes {
			t.Errorf("%d bytes of body kept", len(kept))
		}
	})
}
