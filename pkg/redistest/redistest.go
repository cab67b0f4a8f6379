// Package redistest runs a real redis-server for a test: on a free port of
// 127.0.0.1, append-only, in the test's own directory, ended with the test;
// with the server's defaults (Start) or as it is deployed (StartShipped).
package redistest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gancho/pkg/proctest"
)

// startTimeout is generous: a busy machine loads slowly.
const startTimeout = 20 * time.Second

// A Server is a running redis-server. Its methods may be called from the
// test's goroutine only.
type Server struct {
	// Addr is host:port; it survives Kill and Restart.
	Addr string
	// Dir is the folder of its data.
	Dir string

	t testing.TB
	// program starts the server; command gives its arguments for a host and port, environ its environment, nil for
	// the test's own.
	program        []string
	command        func(host, port string) []string
	environ        func(self string) []string
	user, password string
	cmd            *exec.Cmd
	done           chan struct{} // closed when cmd has ended
	out            *output
}

// URL is the REDIS_URL of the server.
func (s *Server) URL() string {
	if s.user != "" {
		return "redis://" + s.user + ":" + s.password + "@" + s.Addr + "/0"
	}
	return "redis://" + s.Addr + "/0"
}

// Start runs a server and waits until it answers. args are further arguments,
// as in "--appendfsync", "always" (without them: everysec). Without
// redis-server on the machine the test fails; with -short it is skipped.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if testing.Short() {
			t.Skip("-short: redis-server is not installed")
		}
		t.Fatal("install redis-server (make test does it)")
	}
	dir := t.TempDir()
	s := &Server{t: t, Dir: dir, program: []string{"redis-server"}, command: func(host, port string) []string {
		return append([]string{"--bind", host, "--port", port, "--save", "", "--appendonly", "yes"}, args...)
	}}
	for i, a := range args {
		if a == "--requirepass" && i+1 < len(args) {
			s.password = args[i+1]
		}
	}
	s.startAnywhere()
	return s
}

// StartSentinel runs a Sentinel that watches a server under a name. password
// is the server's, empty for none. Its quorum is one, and it gives a server up
// after a second.
func StartSentinel(t testing.TB, server *Server, name, password string) *Server {
	t.Helper()
	host, port, err := net.SplitHostPort(server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("sentinel monitor %s %s %s 1\nsentinel down-after-milliseconds %s 1000\n", name, host, port,
		name)
	if password != "" {
		config += fmt.Sprintf("sentinel auth-pass %s %s\n", name, password)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "sentinel.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatalf("write the Sentinel's configuration: %v", err)
	}
	s := &Server{t: t, Dir: dir, program: []string{"redis-server"}, command: func(host, port string) []string {
		return []string{file, "--sentinel", "--bind", host, "--port", port}
	}}
	s.startAnywhere()
	return s
}

// startAnywhere starts the server on a free port. A port that was free a
// moment ago may be taken now; then it tries another.
func (s *Server) startAnywhere() {
	s.t.Helper()
	s.t.Cleanup(s.Kill)
	for range 5 {
		s.Addr = freeAddr(s.t)
		err := s.start()
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "Address already in use") {
			s.t.Fatal(err)
		}
	}
	s.t.Fatal("start redis-server: no free port in five attempts")
}

// Kill ends the server at once, as kill -9 does. Killing it again is harmless.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended by itself
	<-s.done
	s.cmd = nil
}

// Stop ends the server as a service manager does: by SIGTERM.
func (s *Server) Stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	<-s.done
	s.cmd = nil
}

// Restart kills the server if it runs and starts it again on its address. It
// loads its append-only file.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Pause makes the server hang: connections stay open and nothing answers.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Continue ends a Pause.
func (s *Server) Continue() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal redis-server: %v", err)
	}
}

// Client returns a client that is closed with the test.
func (s *Server) Client() *redis.Client {
	return s.client(&redis.Options{Addr: s.Addr, Username: s.user, Password: s.password})
}

func (s *Server) client(o *redis.Options) *redis.Client {
	c := redis.NewClient(o)
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *Server) start() error {
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	s.out = &output{}
	args := append(s.program[1:len(s.program):len(s.program)], s.command(host, port)...)
	s.cmd = exec.Command(s.program[0], args...) //nolint:gosec,noctx // Kill ends it, with the test at the latest
	s.cmd.Dir = s.Dir
	if s.environ != nil {
		s.cmd.Env = s.environ(s.Addr)
	}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = proctest.WithParent()
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return fmt.Errorf("start redis-server: %w", err)
	}
	cmd, done := s.cmd, make(chan struct{})
	s.done = done
	go func() {
		_ = cmd.Wait() // killed: always an error
		close(done)
	}()

	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c := redis.NewClient(&redis.Options{
		Addr: s.Addr, Username: s.user, Password: s.password, MaxRetries: -1, DialerRetries: 1,
	})
	defer func() { _ = c.Close() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		// The process id distinguishes our server from another that took the port.
		info, err := c.Info(ctx, "server").Result()
		if err == nil && strings.Contains(info, fmt.Sprintf("process_id:%d\r\n", cmd.Process.Pid)) {
			// PING is refused while the append-only file is being loaded.
			if err = c.Ping(ctx).Err(); err == nil {
				return nil
			}
		}
		select {
		case <-done:
			s.cmd = nil
			return fmt.Errorf("redis-server ended at once: %s", s.out)
		case <-ctx.Done():
			s.Kill()
			return errors.Join(fmt.Errorf("redis-server does not answer: %s", s.out), err)
		case <-tick.C:
		}
	}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a free port: %v", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// output keeps the server's output; the process writes while the test reads.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
