package bustest

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Fault is the fate of one message of a client.
type Fault int

// The faults. After each the connection is cut.
const (
	Lost       Fault = iota // the server never gets the message
	Unanswered              // the server has acted on the message; its answer is lost
)

// Proxy stands between clients and a server and can break one message. It is safe for concurrent use.
type Proxy struct {
	server string // its address, which a restart keeps
	l      net.Listener

	mu     sync.Mutex
	at     *Break
	match  func(subject string, payload []byte) bool
	silent func(subject string) bool
	frozen bool
	conns  map[net.Conn]bool
}

// Break is a fault to come.
type Break struct {
	Fault  Fault
	Freeze bool          // clients are kept away after the fault until Thaw
	Before func()        // called before the fault; nil: nothing
	Done   chan struct{} // closed after the fault; made by Proxy.Break
}

// Proxy starts a proxy on a free port that ends with the test. The server may be restarted.
func (s *Server) Proxy() *Proxy {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	p := &Proxy{server: strings.TrimPrefix(s.URL(), "nats://"), l: l, conns: map[net.Conn]bool{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.serve(c) })
		}
	})
	s.t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.frozen = true
		p.mu.Unlock()
		running.Wait()
	})
	return p
}

// URL is where clients connect.
func (p *Proxy) URL() string { return "nats://" + p.l.Addr().String() }

// Break breaks the next message that matches by its subject and payload, of which headers are the beginning.
func (p *Proxy) Break(b *Break, match func(subject string, payload []byte) bool) {
	b.Done = make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.match = b, match
}

// Silence keeps messages with matching subjects from the server, and leaves clients connected, until it is called with
// nil.
func (p *Proxy) Silence(match func(subject string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = match
}

// silences reports whether messages with the subject do not reach the server.
func (p *Proxy) silences(subject string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.silent != nil && p.silent(subject)
}

// Thaw lets clients connect again.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = false
}

// admit adds a connection unless the proxy is frozen.
func (p *Proxy) admit(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.frozen {
		p.conns[c] = true
	}
	return !p.frozen
}

func (p *Proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// take returns the break when the message is the one to break.
func (p *Proxy) take(subject string, payload []byte) *Break {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.at
	if b == nil || !p.match(subject, payload) {
		return nil
	}
	p.at = nil
	return b
}

// serve copies between a client and the server.
func (p *Proxy) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	if !p.admit(client) {
		return
	}
	defer p.forget(client)
	server, err := new(net.Dialer).DialContext(context.Background(), "tcp", p.server)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	back := &answers{to: client}
	var copying sync.WaitGroup
	defer copying.Wait()
	defer func() { _ = server.Close() }()
	copying.Go(func() {
		_, _ = io.Copy(back, server)
		_ = client.Close()
	})
	in := bufio.NewReaderSize(client, 64<<10)
	for {
		message, subject, payload, err := read(in)
		if err != nil {
			return
		}
		if b := p.take(subject, payload); b != nil {
			p.breakOff(b, server, back, message, subject)
			return
		}
		if p.silences(subject) {
			continue
		}
		if _, err := server.Write(message); err != nil {
			return
		}
	}
}

// breakOff makes a fault of the message.
func (p *Proxy) breakOff(b *Break, server net.Conn, back *answers, message []byte, subject string) {
	defer close(b.Done)
	if b.Freeze {
		p.mu.Lock()
		p.frozen = true
		p.mu.Unlock()
	}
	if b.Before != nil {
		b.Before()
	}
	if b.Fault == Lost {
		return
	}
	answer := `"stream":`
	switch {
	case strings.HasPrefix(subject, "$JS.ACK."):
		message, answer = append(message, "PING\r\n"...), "PONG\r\n"
	case strings.HasPrefix(subject, "$JS.API."):
		answer = `"type":`
	}
	answered := back.mute(answer)
	if _, err := server.Write(message); err == nil {
		<-answered
	}
}

// read reads one line of a client and the payload that follows it.
func read(in *bufio.Reader) (message []byte, subject string, payload []byte, err error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil, "", nil, err
	}
	fields := strings.Fields(string(line))
	if len(fields) < 3 || fields[0] != "PUB" && fields[0] != "HPUB" {
		return line, "", nil, nil
	}
	size, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		return nil, "", nil, err
	}
	message = append(line, make([]byte, size+2)...)
	payload = message[len(line):]
	if _, err := io.ReadFull(in, payload); err != nil {
		return nil, "", nil, err
	}
	return message, fields[1], payload[:size], nil
}

// answers passes a server's bytes on until it is mute.
type answers struct {
	to net.Conn

	mu       sync.Mutex
	until    string
	kept     []byte
	answered chan struct{}
}

// mute stops the passing on. The channel is closed when the server has sent the text.
func (a *answers) mute(until string) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.until, a.answered = until, make(chan struct{})
	return a.answered
}

func (a *answers) Write(part []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answered == nil {
		return a.to.Write(part)
	}
	a.kept = append(a.kept, part...)
	if a.until != "" && bytes.Contains(a.kept, []byte(a.until)) {
		a.until = ""
		close(a.answered)
	}
	return len(part), nil
}
