package delivery

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// The numbers in names are those of the table of bad receivers this package was built against: statuses
// (97 to 99), protocols (100, 101), time (102 to 105), connections (106, 117), size (107, 108), framing
// (109), headers (110, 111), TLS (112 to 114), HTTP/2 (115), text (116).

func TestStatus(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	h2 := ca.server(t)
	h2.NextProtos = []string{"h2"}
	handler := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.Header().Set("Location", "http://169.254.169.254/")
		if status == 401 {
			w.Header().Set("WWW-Authenticate", "NTLM")
		}
		w.WriteHeader(status)
	}
	s := newSender(t, ca, 10*time.Second)
	for proto, url := range map[string]string{"HTTP1": receiver(t, nil, handler), "HTTP2": receiver(t, h2, handler)} {
		for _, tc := range []struct {
			row    string
			status int
			want   string
		}{
			{"97", 200, "delivered"},
			{"97", 201, "delivered"},
			{"97", 202, "delivered"},
			{"97", 204, "delivered"},
			{"97", 299, "delivered"},
			{"98", 300, "redirect"},
			{"98", 301, "redirect"},
			{"98", 302, "redirect"},
			{"98", 304, "redirect"},
			{"98", 307, "redirect"},
			{"98", 308, "redirect"},
			{"98", 399, "redirect"},
			{"99", 400, "status_4xx"},
			{"99", 401, "status_4xx"},
			{"99", 404, "status_4xx"},
			{"99", 407, "status_4xx"},
			{"99", 408, "status_4xx"},
			{"99", 409, "status_4xx"},
			{"99", 410, "status_4xx"},
			{"99", 425, "status_4xx"},
			{"99", 429, "rate_limited"},
			{"99", 499, "status_4xx"},
			{"99", 500, "status_5xx"},
			{"99", 503, "status_5xx"},
			{"99", 599, "status_5xx"},
			{"101", 600, "bad_response"},
			{"101", 999, "bad_response"},
		} {
			t.Run(fmt.Sprintf("%s %s %d", proto, tc.row, tc.status), func(t *testing.T) {
				o := s.Send(t.Context(), request(fmt.Sprintf("%s/%d", url, tc.status)))
				expect(t, o, tc.want)
				if o.Status != tc.status {
					t.Errorf("status %d, want %d", o.Status, tc.status)
				}
			})
		}
	}
}

// TestAnswers sends bytes as answers, each on its own connection, which is then closed.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		row, answer, want string
	}{
		{"98 informational and end", "HTTP/1.1 199 X\r\nContent-Length: 0\r\n\r\n", "bad_response"},
		{"98 informational, then final", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "delivered"},
		{"100 switching protocols", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nwhatever", "status_1xx"},
		{"101 status 000", "HTTP/1.1 000 X\r\n\r\n", "bad_response"},
		{"101 status 099", "HTTP/1.1 099 X\r\n\r\n", "bad_response"},
		{"101 status 99", "HTTP/1.1 99 X\r\n\r\n", "bad_response"},
		{"101 status 1000", "HTTP/1.1 1000 X\r\n\r\n", "bad_response"},
		{"101 status abc", "HTTP/1.1 abc X\r\n\r\n", "bad_response"},
		{"101 status -20", "HTTP/1.1 -20 X\r\n\r\n", "bad_response"},
		{"101 ICY", "ICY 200 OK\r\n\r\n", "bad_response"},
		{"101 HTTP/0.9", "<html>hello</html>\r\n", "bad_response"},
		{"101 another protocol", "SSH-2.0-OpenSSH_9.9\r\n", "bad_response"},
		{"101 NUL", "\x00\x00\x00\x00\r\n\r\n", "bad_response"},
		{"105 closed without bytes", "", "connect"},
		{"105 closed inside the status line", "HTTP/1.", "bad_response"},
		{"105 closed inside the status", "HTTP/1.1 200 OK", "bad_response"},
		{"105 closed after the status line", "HTTP/1.1 200 OK\r\n", "delivered"},
		{"105 closed inside the headers", "HTTP/1.1 503 X\r\nServer: x\r\n", "status_5xx"},
		{"105 closed inside a header", "HTTP/1.1 200 OK\r\nServer: x", "delivered"},
		{"105 closed after an informational answer", "HTTP/1.1 103 X\r\n\r\n", "bad_response"},
		{"101 no reason", "HTTP/1.1 200\r\n\r\n", "delivered"},
		{"101 tabs around the status", "HTTP/1.1\t200\tOK\r\n\r\n", "delivered"},
		{"101 no space after the status", "HTTP/1.1 404Not Found\r\n\r\n", "status_4xx"},
		{"101 status with a fraction", "HTTP/1.1 500.19 X\r\n\r\n", "status_5xx"},
		{"101 lower case", "http/1.1 200 ok\r\n\r\n", "delivered"},
		{"101 another version", "HTTP/2.0 200 OK\r\n\r\n", "delivered"},
		{"101 half a version", "HTTP/2 200 OK\r\n\r\n", "delivered"},
		{"101 no version", "HTTP/ 200 OK\r\n\r\n", "bad_response"},
		{"101 a version of three parts", "HTTP/1.1.1 200 OK\r\n\r\n", "bad_response"},
		{"101 status 0200", "HTTP/1.1 0200 OK\r\n\r\n", "bad_response"},
		{"101 an empty line first", "\r\nHTTP/1.1 200 OK\r\n\r\n", "bad_response"},
		{"107 closed inside the body", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "delivered"},
		{"107 chunk size overflow", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nabc", "delivered"},
		{"107 chunk size nonsense", "HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", "status_5xx"},
		{"109 two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "delivered"},
		{"109 negative length", "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabcd", "delivered"},
		{"109 the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "delivered"},
		{"109 length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "delivered"},
		{"109 unknown transfer coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "delivered"},
		{"109 header without colon", "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "delivered"},
		{"113 TLS alert on plain HTTP", "\x15\x03\x00\x00\x02\x02\x28", "bad_response"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			rec := newRaw(t, nil, answering(tc.answer))
			o := newSender(t, nil, 10*time.Second).Send(t.Context(), request(rec.url))
			expect(t, o, tc.want)
			if n := rec.accepted(); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}

// TestNoHandshakeWithLogins: row 99. A receiver that asks for NTLM, Negotiate or a password gets one request, with
// the owner's header and nothing of ours.
func TestNoHandshakeWithLogins(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{
		"401 Unauthorized\r\nWWW-Authenticate: NTLM", "401 Unauthorized\r\nWWW-Authenticate: NTLM TlRMTVNTUAACAAAAAAAAADgAAAA=",
		"401 Unauthorized\r\nWWW-Authenticate: Negotiate", `401 Unauthorized` + "\r\n" + `WWW-Authenticate: Basic realm="x"`,
		"407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM",
	} {
		for _, auth := range []string{"", "Bearer of-the-owner"} {
			t.Run(strings.ReplaceAll(challenge, "\r\n", " ")+" "+auth, func(t *testing.T) {
				t.Parallel()
				headers := make(chan http.Header, 10)
				rec := newRaw(t, nil, func(c net.Conn) {
					br := bufio.NewReader(c)
					for { // on one connection, as such logins go on
						req, _, err := readRequest(br)
						if err != nil {
							return
						}
						headers <- req.Header
						_, _ = io.WriteString(c, "HTTP/1.1 "+challenge+"\r\nContent-Length: 0\r\n\r\n")
					}
				})
				r := request(rec.url)
				if r.AuthKey = auth; auth != "" {
					r.AuthHeader = "Authorization"
				}
				s := newSender(t, nil, 10*time.Second)
				expect(t, s.Send(t.Context(), r), "status_4xx")
				if got := <-headers; got.Get("Authorization") != auth || got.Get("Proxy-Authorization") != "" {
					t.Errorf("headers %v", got)
				}
				if len(headers) > 0 || rec.accepted() != 1 {
					t.Errorf("%d more requests, %d connections", len(headers), rec.accepted())
				}
			})
		}
	}
}

// TestVerdictTime: row 102 at the default timeout, on a clock of its own: an answer counts up to 5 s, and the
// verdict of a later one falls at 5 s, not when it comes.
func TestVerdictTime(t *testing.T) {
	t.Parallel()
	for after, want := range map[time.Duration]string{
		0: "delivered", 4900 * time.Millisecond: "delivered", 4999 * time.Millisecond: "delivered", 5001 * time.Millisecond: "timeout", 5100 * time.Millisecond: "timeout",
	} {
		t.Run(after.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSender(t, nil, 5*time.Second)
				s.connect = func(context.Context, string, string) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go func() {
						defer theirs.Close()
						if _, _, err := readRequest(bufio.NewReader(theirs)); err == nil {
							time.Sleep(after)
							_, _ = io.WriteString(theirs, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
						}
					}()
					return ours, nil
				}
				o := s.Send(t.Context(), request("http://127.0.0.1"))
				expect(t, o, want)
				defer time.Sleep(time.Second) // the receiver ends too
				if took := min(after, 5*time.Second); o.Duration != took || time.Since(o.Started) != took {
					t.Errorf("the verdict came after %v, Send returned after %v, want %v", o.Duration, time.Since(o.Started), took)
				}
			})
		})
	}
}

// TestSwitchingProtocols: row 100, the connection is closed.
func TestSwitchingProtocols(t *testing.T) {
	t.Parallel()
	closed := make(chan error, 1)
	rec := newRaw(t, nil, func(c net.Conn) {
		br := bufio.NewReader(c)
		if _, _, err := readRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		_, err := io.Copy(io.Discard, br)
		closed <- err
	})
	expect(t, newSender(t, nil, 10*time.Second).Send(t.Context(), request(rec.url)), "status_1xx")
	<-closed //nolint:errcheck // only that it ended matters
}

func TestTime(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	hold := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) } // until the sender gives up
	drip := func(head, each string) func(net.Conn) {
		return func(c net.Conn) {
			if _, _, err := readRequest(bufio.NewReader(c)); err != nil {
				return
			}
			_, err := io.WriteString(c, head)
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for err == nil {
				<-tick.C
				_, err = io.WriteString(c, each)
			}
		}
	}
	for _, tc := range []struct {
		row     string
		timeout time.Duration
		serve   func(net.Conn)
		want    string
		detail  string
	}{
		{"102 headers after the timeout", 200 * time.Millisecond, func(c net.Conn) {
			br := bufio.NewReader(c)
			_, _, _ = readRequest(br)
			_, _ = br.ReadByte() // fails when the sender has given up
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		}, "timeout", "the answer took longer than 200ms"},
		{"103 body drips for ever", time.Minute, drip("HTTP/1.1 200 OK\r\n\r\n", "x"), "delivered", ""},
		{"103 failure whose body drips", time.Minute, drip("HTTP/1.1 503 X\r\n\r\n", "x"), "status_5xx", ""},
		{"103 body drips, short timeout", 200 * time.Millisecond, drip("HTTP/1.1 200 OK\r\n\r\n", "x"), "delivered", ""},
		{"104 head drips", 300 * time.Millisecond, drip("HTTP/1.1 200 OK\r\n", "X: y\r\n"), "timeout", "the answer"},
		{"105 silence", 200 * time.Millisecond, hold, "timeout", "the answer"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			rec := newRaw(t, ca.server(t), tc.serve)
			s := newSender(t, ca, tc.timeout)
			start := time.Now()
			o := s.Send(t.Context(), request(rec.url))
			expect(t, o, tc.want)
			if !strings.Contains(o.Detail, tc.detail) {
				t.Errorf("detail %q, want %q in it", o.Detail, tc.detail)
			}
			if took, most := time.Since(start), min(tc.timeout, 5*time.Second)+bound; took > most {
				t.Errorf("took %v, want at most %v", took, most)
			}
			if strings.Contains(tc.row, "body") && !strings.HasPrefix(string(o.ResponseBody), "x") {
				t.Errorf("body %q, want its beginning", o.ResponseBody)
			}
		})
	}
	t.Run("105 nobody answers the connection", func(t *testing.T) {
		t.Parallel()
		s := newSender(t, nil, 300*time.Millisecond)
		o := s.Send(t.Context(), request("http://"+blackhole(t)))
		expect(t, o, "timeout")
		if !strings.Contains(o.Detail, "connecting") {
			t.Errorf("detail %q", o.Detail)
		}
	})
	t.Run("114 handshake stalls", func(t *testing.T) {
		t.Parallel()
		rec := newRaw(t, nil, hold)
		o := newSender(t, ca, 300*time.Millisecond).Send(t.Context(), request("https"+strings.TrimPrefix(rec.url, "http")))
		expect(t, o, "timeout")
		if !strings.Contains(o.Detail, "the TLS handshake") {
			t.Errorf("detail %q", o.Detail)
		}
	})
}

// blackhole returns an address that drops connection attempts: a listener whose queue is full.
func blackhole(tb testing.TB) string {
	tb.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		tb.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		tb.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port) //nolint:errcheck // it was bound to IPv4
	for {
		c, err := net.DialTimeout("tcp4", addr, 100*time.Millisecond)
		if err != nil {
			return addr
		}
		tb.Cleanup(func() { _ = c.Close() })
	}
}

func TestConnections(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	s := newSender(t, ca, 10*time.Second)
	refused := s.Send(t.Context(), request("http://"+ln.Addr().String()))
	expect(t, refused, "connect")

	for _, cfg := range []*tls.Config{nil, ca.server(t)} {
		for _, tc := range []struct {
			row   string
			serve func(net.Conn)
		}{
			{"105 reset at once", reset},
			{"105 closed at once", func(net.Conn) {}},
			{"106 reset after the request", func(c net.Conn) {
				_, _, _ = readRequest(bufio.NewReader(c))
				reset(c)
			}},
		} {
			for _, method := range []string{"POST", "GET"} {
				t.Run(fmt.Sprintf("%s %s TLS=%v", tc.row, method, cfg != nil), func(t *testing.T) {
					t.Parallel()
					rec := newRaw(t, cfg, tc.serve)
					r := request(rec.url)
					r.Method = method
					o := newSender(t, ca, 10*time.Second).Send(t.Context(), r)
					expect(t, o, "connect")
					if n := rec.accepted(); n != 1 {
						t.Errorf("%d connections, want 1: the request was sent again", n)
					}
				})
			}
		}
	}
}

// TestNoResend: on a kept connection that breaks after the request was read, Go's client would send GET again.
func TestNoResend(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		for _, end := range []struct {
			name  string
			close func(net.Conn)
		}{{"closed", func(net.Conn) {}}, {"reset", reset}} {
			for _, cfg := range []*tls.Config{nil, ca.server(t)} {
				t.Run(fmt.Sprintf("%s %s TLS=%v", method, end.name, cfg != nil), func(t *testing.T) {
					t.Parallel()
					var requests atomic.Int32
					rec := newRaw(t, cfg, func(c net.Conn) {
						br := bufio.NewReader(c)
						for {
							if _, _, err := readRequest(br); err != nil {
								return
							}
							if requests.Add(1) > 1 {
								end.close(c)
								return
							}
							_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
						}
					})
					s := newSender(t, ca, 10*time.Second)
					r := request(rec.url)
					r.Method = method
					expect(t, s.Send(t.Context(), r), "delivered")
					expect(t, s.Send(t.Context(), r), "connect")
					if n := requests.Load(); n != 2 {
						t.Errorf("the receiver read %d requests in 2 attempts", n)
					}
				})
			}
		}
	}
}

// TestStaleConnection: row 117, a receiver that closes each kept connection after its reply costs no attempt.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for _, cfg := range []*tls.Config{nil, ca.server(t)} {
		for _, method := range []string{"POST", "GET"} {
			t.Run(fmt.Sprintf("117 %s TLS=%v", method, cfg != nil), func(t *testing.T) {
				t.Parallel()
				gone := make(chan struct{}, 1)
				var requests atomic.Int32
				rec := newRaw(t, cfg, func(c net.Conn) {
					br := bufio.NewReader(c)
					if _, _, err := readRequest(br); err != nil {
						return
					}
					requests.Add(1)
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					_ = c.(interface{ CloseWrite() error }).CloseWrite() //nolint:errcheck // both kinds of connection have it
					gone <- struct{}{}
					_, _ = io.Copy(io.Discard, br) // until the sender has noticed
				})
				s := newSender(t, ca, 10*time.Second)
				for range 50 {
					r := request(rec.url)
					r.Method = method
					expect(t, s.Send(t.Context(), r), "delivered")
					<-gone
				}
				if n := requests.Load(); n != 50 {
					t.Errorf("the receiver read %d requests in 50 attempts", n)
				}
			})
		}
	}
}

// heapGrowth runs f and returns by how much the live heap was larger at any time in it.
func heapGrowth(f func()) uint64 {
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most.Store(max(most.Load(), now.HeapAlloc))
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	f()
	close(stop)
	<-done
	return most.Load() - min(most.Load(), before.HeapAlloc)
}

// TestFloods: rows 107 and 108. Not parallel, as it measures the heap.
func TestFloods(t *testing.T) {
	ca := newAuthority(t)
	block := bytes.Repeat([]byte("x"), 32<<10)
	// flood writes each over and over until the sender closes the connection.
	flood := func(head, each string) func(net.Conn) {
		many := []byte(strings.Repeat(each, 1+len(block)/len(each)))
		return func(c net.Conn) {
			if _, _, err := readRequest(bufio.NewReader(c)); err != nil {
				return
			}
			_, err := io.WriteString(c, head)
			for err == nil {
				_, err = c.Write(many)
			}
		}
	}
	var bomb bytes.Buffer
	zip := gzip.NewWriter(&bomb)
	for range 10 << 20 / len(block) {
		_, _ = zip.Write(make([]byte, len(block)))
	}
	_ = zip.Close()

	for _, tc := range []struct {
		row   string
		serve func(net.Conn)
		want  string
	}{
		{"107 10 GB body", flood("HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n", "x"), "delivered"},
		{"107 endless body", flood("HTTP/1.1 200 OK\r\n\r\n", "x"), "delivered"},
		{"107 endless body of a failure", flood("HTTP/1.1 500 X\r\n\r\n", "x"), "status_5xx"},
		{"107 endless chunks", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"), "delivered"},
		{"107 endless chunk extension", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", "x"), "delivered"},
		{"107 endless trailers", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: y\r\n"), "delivered"},
		{"107 gzip bomb", answering(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", bomb.Len(), bomb.String())), "delivered"},
		{"108 endless headers", flood("HTTP/1.1 200 OK\r\n", "X-Filler: y\r\n"), "header_limit"},
		{"108 11 MiB of headers", answering("HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Filler: y\r\n", 11<<20/13) + "\r\n"), "header_limit"},
		{"108 one header of 1 MiB", answering("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 1<<20) + "\r\n\r\n"), "header_limit"},
		{"108 endless status line", flood("HTTP/1.1 200 ", "x"), "header_limit"},
		{"108 endless informational answers", flood("", "HTTP/1.1 103 Early Hints\r\n\r\n"), "header_limit"},
		{"108 100,000 informational answers", answering(strings.Repeat("HTTP/1.1 103 E\r\n\r\n", 100_000) + "HTTP/1.1 200 OK\r\n\r\n"), "header_limit"},
		{"108 just under the limit", answering("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 60<<10) + "\r\n\r\n"), "delivered"},
	} {
		for name, cfg := range map[string]*tls.Config{"plain": nil, "TLS": ca.server(t)} {
			t.Run(tc.row+" "+name, func(t *testing.T) {
				rec := newRaw(t, cfg, tc.serve)
				s := newSender(t, ca, 10*time.Second)
				var o Outcome
				start := time.Now()
				growth := heapGrowth(func() { o = s.Send(t.Context(), request(rec.url)) })
				expect(t, o, tc.want)
				if len(o.ResponseBody) > keptBodyBytes {
					t.Errorf("%d bytes of body kept", len(o.ResponseBody))
				}
				if strings.Contains(tc.row, "gzip") && !bytes.Equal(o.ResponseBody, make([]byte, keptBodyBytes)) {
					t.Errorf("of the body, %d bytes are shown: %x", len(o.ResponseBody), o.ResponseBody[:10])
				}
				if growth > 2<<20 {
					t.Errorf("the heap grew by %d KiB", growth>>10)
				}
				if took := time.Since(start); took > 10*time.Second+bound {
					t.Errorf("took %v", took)
				}
			})
		}
	}
}

func TestBodyText(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ row, body, want string }{
		{"116 as it is", "</script>\x1b[31m\x00\xff", "</script>\x1b[31m\x00\xff"},
		{"116 empty", "", ""},
		{"116 4096 bytes", strings.Repeat("a", 4096), strings.Repeat("a", 4096)},
		{"116 4097 bytes", strings.Repeat("a", 4097), strings.Repeat("a", 4096)},
		{"116 emoji before the cut", strings.Repeat("a", 4092) + "\U0001F600b", strings.Repeat("a", 4092) + "\U0001F600"},
		{"116 emoji cut after 1", strings.Repeat("a", 4095) + "\U0001F600", strings.Repeat("a", 4095)},
		{"116 emoji cut after 2", strings.Repeat("a", 4094) + "\U0001F600", strings.Repeat("a", 4094)},
		{"116 emoji cut after 3", strings.Repeat("a", 4093) + "\U0001F600", strings.Repeat("a", 4093)},
		{"116 binary at the cut", strings.Repeat("\x80", 5000), strings.Repeat("\x80", 4096)},
		{"116 70 KB", strings.Repeat("a", 70_000), strings.Repeat("a", 4096)},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			url := receiver(t, nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tc.body) })
			for _, auth := range []string{"", "a-key-that-is-not-echoed"} {
				r := request(url)
				if r.AuthKey = auth; auth != "" {
					r.AuthHeader = "X-Key"
				}
				o := newSender(t, nil, 10*time.Second).Send(t.Context(), r)
				expect(t, o, "delivered")
				if string(o.ResponseBody) != tc.want {
					t.Errorf("kept %d bytes, ending in %q; want %d", len(o.ResponseBody), tail(string(o.ResponseBody)), len(tc.want))
				}
				if utf8.ValidString(tc.body) != utf8.Valid(o.ResponseBody) {
					t.Error("a character was cut in two")
				}
			}
		})
	}
}

// TestBodyLimit: rows 107, no more than 64 KiB are read however much there is.
func TestBodyLimit(t *testing.T) {
	t.Parallel()
	s := newSender(t, nil, time.Second)
	for _, secrets := range []echo{nil, echoes("a-key-of-an-owner"), echoes(strings.Repeat("k", 8192))} {
		r := &endless{}
		if kept, whole := s.read(r, nil, secrets); whole || len(kept) != keptBodyBytes {
			t.Errorf("kept %d bytes, want %d", len(kept), keptBodyBytes)
		}
		if r.n != maxBodyBytes {
			t.Errorf("read %d bytes, want %d", r.n, maxBodyBytes)
		}
	}
}

type endless struct{ n int }

func (r *endless) Read(b []byte) (int, error) {
	r.n += len(b)
	return copy(b, bytes.Repeat([]byte("x"), len(b))), nil
}

func tail(s string) string { return s[max(0, len(s)-8):] }

// TestStateless: row 110, nothing a receiver sends changes the next attempt.
func TestStateless(t *testing.T) {
	t.Parallel()
	ch := make(chan seen, 1)
	var paths sync.Map
	url := receiver(t, nil, func(w http.ResponseWriter, r *http.Request) {
		paths.Store(r.URL.Path, true)
		h := w.Header()
		h.Set("Set-Cookie", "a=b; Path=/")
		h.Set("Location", "/elsewhere")
		h.Set("Refresh", "0; url=/elsewhere")
		h.Set("Strict-Transport-Security", "max-age=1000")
		h.Set("Alt-Svc", `h3=":443"`)
		h.Set("Link", "</elsewhere>; rel=preload")
		recording(ch, 200)(w, r)
	})
	s := newSender(t, nil, 10*time.Second)
	o := s.Send(t.Context(), request(url+"/hook"))
	expect(t, o, "delivered")
	first := <-ch
	if o.ResponseHeaders.Get("Location") != "/elsewhere" {
		t.Errorf("ResponseHeaders: %v", o.ResponseHeaders)
	}
	expect(t, s.Send(t.Context(), request(url+"/hook")), "delivered")
	second := <-ch
	for _, x := range []*seen{&first, &second} {
		x.Header.Del("Webhook-Timestamp")
		x.Header.Del("Webhook-Signature")
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("the second request differs (-first +second):\n%s", diff)
	}
	if _, ok := paths.Load("/elsewhere"); ok {
		t.Error("a hint was followed")
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		value string
		want  time.Duration
	}{
		{"", 0},
		{"0", 0},
		{"120", 2 * time.Minute},
		{" 120 ", 2 * time.Minute},
		{"86400", 24 * time.Hour},
		{"86401", 24 * time.Hour},
		{"-1", 0},
		{"999999999999", 24 * time.Hour},
		{"99999999999999999999999999", 24 * time.Hour},
		{"x", 0},
		{"1.5", 0},
		{"Thu, 01 Jan 1970 00:00:00 GMT", 0},
		{"Mon, 23 Nov 2026 12:01:30 GMT", 90 * time.Second},
		{"Monday, 23-Nov-26 12:01:30 GMT", 90 * time.Second},
		{"Mon Nov 23 12:01:30 2026", 90 * time.Second},
		{"Fri, 31 Dec 9999 23:59:59 GMT", 24 * time.Hour},
	} {
		if got := parseRetryAfter(tc.value, now); got != tc.want {
			t.Errorf("row 111: Retry-After %q: %v, want %v", tc.value, got, tc.want)
		}
	}
	url := receiver(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.WriteHeader(status)
	})
	s := newSender(t, nil, 10*time.Second)
	for status, want := range map[int]time.Duration{200: 0, 302: 7 * time.Second, 404: 7 * time.Second, 429: 7 * time.Second, 503: 7 * time.Second} {
		if o := s.Send(t.Context(), request(fmt.Sprintf("%s/%d", url, status))); o.RetryAfter != want {
			t.Errorf("status %d: %v, want %v", status, o.RetryAfter, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Mon, 23 Nov 2026 12:01:30 GMT")
	f.Fuzz(func(t *testing.T, value string) {
		if got := parseRetryAfter(value, time.Now()); got < 0 || got > 24*time.Hour {
			t.Errorf("%q: %v", value, got)
		}
	})
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	self := func() tls.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := *ca.cert
		template.PublicKey = nil
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	with := func(cert tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}} }
	changed := func(change func(*x509.Certificate)) *tls.Config { return with(ca.leaf(t, change)) }
	for _, tc := range []struct {
		row  string
		cfg  *tls.Config
		want string
	}{
		{"112 good", ca.server(t), "delivered"},
		{"112 expired", changed(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "tls"},
		{"112 not yet valid", changed(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}), "tls"},
		{"112 self-signed", with(self()), "tls"},
		{"112 unknown authority", with(other.leaf(t, nil)), "tls"},
		{"112 another name", changed(func(c *x509.Certificate) { c.IPAddresses = nil }), "tls"},
		{"112 SHA-1", changed(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }), "tls"},
		{"112 not for servers", changed(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "tls"},
		{"113 TLS 1.0 only", &tls.Config{Certificates: ca.server(t).Certificates, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, "tls"},
		{"113 TLS 1.1 only", &tls.Config{Certificates: ca.server(t).Certificates, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "tls"},
		{"113 TLS 1.2 only", &tls.Config{Certificates: ca.server(t).Certificates, MaxVersion: tls.VersionTLS12}, "delivered"},
		{"114 may show a client certificate", &tls.Config{Certificates: ca.server(t).Certificates, ClientAuth: tls.RequestClientCert}, "delivered"},
		// With TLS 1.3 the receiver refuses after our side of the handshake is over: its alert races with the
		// end of the connection.
		{"114 must show a client certificate", &tls.Config{Certificates: ca.server(t).Certificates, ClientAuth: tls.RequireAnyClientCert}, "tls or connect"},
		{"114 must show one, TLS 1.2", &tls.Config{Certificates: ca.server(t).Certificates, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}, "tls"},
	} {
		for _, proto := range []string{"http/1.1", "h2"} {
			t.Run(tc.row+" "+proto, func(t *testing.T) {
				t.Parallel()
				var requests, certs atomic.Int32
				cfg := tc.cfg.Clone()
				if proto == "h2" && cfg.MaxVersion != tls.VersionTLS10 && cfg.MaxVersion != tls.VersionTLS11 {
					cfg.NextProtos = []string{"h2"}
				}
				url := receiver(t, cfg, func(_ http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					certs.Add(int32(len(r.TLS.PeerCertificates)))
				})
				o := newSender(t, ca, 10*time.Second).Send(t.Context(), request(url))
				if !strings.Contains(tc.want, verdict(o)) {
					t.Errorf("verdict %s, want %s (%s)", verdict(o), tc.want, o.Detail)
				}
				if want := tc.want == "delivered"; (requests.Load() == 1) != want || certs.Load() != 0 {
					t.Errorf("%d requests, %d client certificates arrived", requests.Load(), certs.Load())
				}
			})
		}
	}
	t.Run("112 revocation is not looked up", func(t *testing.T) {
		t.Parallel()
		list := newRaw(t, nil, func(net.Conn) {})
		url := receiver(t, changed(func(c *x509.Certificate) {
			c.CRLDistributionPoints, c.OCSPServer = []string{list.url}, []string{list.url}
		}), func(http.ResponseWriter, *http.Request) {})
		expect(t, newSender(t, ca, 10*time.Second).Send(t.Context(), request(url)), "delivered")
		if n := list.accepted(); n != 0 {
			t.Errorf("a certificate made us connect %d times elsewhere", n)
		}
	})
	t.Run("114 renegotiation", func(t *testing.T) {
		t.Parallel()
		alert := make(chan byte, 1)
		ln := newRaw(t, nil, func(c net.Conn) {
			if kind := renegotiate(c, ca.server(t).Certificates); kind != 0 {
				alert <- kind
			}
		})
		o := newSender(t, ca, 10*time.Second).Send(t.Context(), request("https"+strings.TrimPrefix(ln.url, "http")))
		expect(t, o, "tls")
		if kind := <-alert; kind != recordAlert {
			t.Errorf("the sender answered with a record of type %d, want an alert", kind)
		}
		if n := ln.accepted(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	})
	for _, tc := range []struct{ row, answer string }{
		{"113 SSL 3 alert", "\x15\x03\x00\x00\x02\x02\x28"},
		{"113 plain HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n"},
		{"113 nothing", ""},
		{"113 garbage", "\x16\x03\x01\xff\xff garbage"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			rec := newRaw(t, nil, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 1024))
				_, _ = io.WriteString(c, tc.answer)
			})
			o := newSender(t, ca, 10*time.Second).Send(t.Context(), request("https"+strings.TrimPrefix(rec.url, "http")))
			expect(t, o, "tls")
		})
	}
	t.Run("the system's roots alone", func(t *testing.T) {
		t.Parallel()
		url := receiver(t, ca.server(t), func(http.ResponseWriter, *http.Request) {})
		expect(t, newSender(t, nil, 10*time.Second).Send(t.Context(), request(url)), "tls")
	})
}

// TestSecretsStaySecret: a canary in every secret place appears nowhere in an outcome, even when the
// receiver repeats the request.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	const canary = "CANARY-7f3a"
	echoing := func(status string, malformed bool) func(net.Conn) {
		return func(c net.Conn) {
			req, _, err := readRequest(bufio.NewReader(c))
			if err != nil {
				return
			}
			auth := req.Header.Get("Authorization")
			token := strings.TrimPrefix(auth, "Bearer ")
			if malformed {
				_, _ = io.WriteString(c, "HTTP/1.1 "+token+" "+auth+"\r\n\r\n")
				return
			}
			body := strings.Repeat("x", keptBodyBytes-10) + token + auth
			_, _ = fmt.Fprintf(c, "HTTP/1.1 %s\r\nX-Echo: %s\r\nX-Echo: a %s b\r\n%s: x\r\nContent-Length: %d\r\n\r\n%s", status, auth, token, token, len(body), body)
		}
	}
	for _, tc := range []struct {
		name  string
		serve func(net.Conn)
		plain bool // no TLS where the URL says https
		want  string
	}{
		{"echo of a success", echoing("200 OK", false), false, "delivered"},
		{"echo of a failure", echoing("500 X", false), false, "status_5xx"},
		{"echo as status line", echoing("", true), false, "bad_response"},
		{"closed", func(net.Conn) {}, false, "connect"},
		{"not TLS", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n") }, true, "tls"},
		{"timeout", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, false, "timeout"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cfg := ca.server(t)
			if tc.plain {
				cfg = nil
			}
			rec := newRaw(t, cfg, tc.serve)
			r := request("https" + strings.TrimPrefix(strings.TrimPrefix(rec.url, "https"), "http") + "/" + canary + "?token=" + canary)
			r.AuthHeader, r.AuthKey = "Authorization", "Bearer "+canary
			r.Secrets = [][]byte{[]byte(strings.Repeat(canary, 3))}
			o := newSender(t, ca, time.Second).Send(t.Context(), r)
			expect(t, o, tc.want)
			text := fmt.Sprintf("%+v %s", o, o.ResponseBody)
			if strings.Contains(text, "CANARY") {
				t.Errorf("the outcome holds a secret:\n%s", text)
			}
			if strings.Contains(text, Sign(r.NotificationID, o.Started, r.Body, r.Secrets)) {
				t.Error("the outcome holds the signature")
			}
		})
	}
}
