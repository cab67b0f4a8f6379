package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// buffer is a log's end. The log writes it from another goroutine.
type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}
func (b *buffer) Sync() error { return nil }

func newShell(t *testing.T) (*Shell, *buffer) {
	t.Helper()
	var out buffer
	s, err := NewShell("debug", zapcore.AddSync(&out))
	if err != nil {
		t.Fatal(err)
	}
	return s, &out
}

// TestLogLinesCannotBeForged: whatever text comes from outside, a line of the log is one JSON object, and
// what libraries write with package log does not come out at all.
func TestLogLinesCannotBeForged(t *testing.T) {
	var std bytes.Buffer // where package log wrote before
	defer log.SetOutput(log.Writer())
	log.SetOutput(&std)
	s, out := newShell(t)
	evil := "x\n{\"level\":\"error\",\"msg\":\"fake\"}\r\n\x1b[2J\x00\u2028\u202e\xff"
	s.Log.Warn(evil, zap.String("reason", evil), zap.Error(errors.New(evil)), zap.Any("panic", evil))
	log.Print("Unsolicited response received on idle HTTP channel starting with \"" + evil)
	s.Close()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 1 {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	var entry map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &entry); err != nil || entry["level"] != "warn" {
		t.Errorf("got %v, %v", entry, err)
	}
	if strings.ContainsAny(lines[0], "\x00\x1b\r") {
		t.Errorf("control characters: %q", lines[0])
	}
	if std.Len() > 0 || log.Writer() != io.Discard {
		t.Errorf("package log wrote %q, and writes to %T", std.String(), log.Writer())
	}
}

func TestOpsServer(t *testing.T) {
	t.Parallel()
	s, _ := newShell(t)
	defer s.Close()
	ops, err := s.serveOps("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ops.Close()
	get := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+ops.Addr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	if code, body := get("GET", "/readyz", ""); code != 503 || !strings.Contains(body, `["starting"]`) {
		t.Errorf("/readyz before anything has started: %d %s", code, body)
	}
	p := s.Process("test")
	broken := "cache is away"
	s.Health.Want("cache", func() string { return broken })
	if code, body := get("GET", "/healthz", ""); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if code, body := get("GET", "/readyz", ""); code != 503 || !strings.Contains(body, `"test: starting"`) {
		t.Errorf("/readyz before Up: %d %s", code, body)
	}
	p.Up()
	if code, body := get("GET", "/readyz", ""); code != 200 || !strings.Contains(body, `"degraded":["cache: cache is away"]`) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if code, body := get("GET", "/metrics", ""); code != 200 || !strings.Contains(body, "gancho_build_info{") {
		t.Errorf("/metrics: %d", code)
	} else {
		for line := range strings.Lines(body) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "gancho_") {
				t.Errorf("a metric does not start with gancho_: %s", line)
				break
			}
		}
	}
	if code, _ := get("PUT", "/debug/loglevel", `{"level":"error"}`); code != 200 || s.Level.Level() != zapcore.ErrorLevel {
		t.Errorf("/debug/loglevel: %d, level %v", code, s.Level.Level())
	}
	if code, body := get("GET", "/debug/pprof/cmdline", ""); code != 200 || body == "" {
		t.Errorf("/debug/pprof/cmdline: %d", code)
	}
	if code := Healthcheck(ops.Addr().String(), io.Discard); code != ExitOK {
		t.Errorf("healthcheck: %d", code)
	}
	s.Health.Stopping()
	if code := Healthcheck(ops.Addr().String(), io.Discard); code != ExitError {
		t.Errorf("healthcheck while stopping: %d", code)
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s, _ := newShell(t)
	defer s.Close()
	run := func(addr string, f func(context.Context) error) (int, string) {
		var stderr bytes.Buffer
		return s.ExitCode("test", s.Run(Config{OpsAddr: addr}, f), &stderr), stderr.String()
	}
	if code, stderr := run(taken.Addr().String(), nil); code != ExitConfig || !strings.HasPrefix(stderr, "OPS_ADDR: ") {
		t.Errorf("port in use: %d %q", code, stderr)
	}
	if code, stderr := run("127.0.0.1:0", func(context.Context) error { return fmt.Errorf("broken") }); code != ExitError || stderr != "" {
		t.Errorf("failure: %d %q", code, stderr)
	}
	if code, _ := run("127.0.0.1:0", func(context.Context) error { return context.Canceled }); code != ExitOK {
		t.Errorf("stop: %d", code)
	}
}
