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
	"net/http/httptest"
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
	ops, err := s.serveOps(Config{OpsAddr: "127.0.0.1:0"})
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
	if code := Healthcheck(ops.Addr().String(), false, io.Discard); code != ExitOK {
		t.Errorf("healthcheck: %d", code)
	}
	s.Health.Stopping()
	if code := Healthcheck(ops.Addr().String(), false, io.Discard); code != ExitError {
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

// TestDebugAccess: profiles and the log level answer this machine only, unless OPS_DEBUG opens them. Metrics and
// readiness answer everyone.
func TestDebugAccess(t *testing.T) {
	t.Parallel()
	ask := func(debug bool, remote, path string, header ...string) int {
		s, _ := newShell(t)
		defer s.Close()
		ops, err := s.serveOps(Config{OpsAddr: "127.0.0.1:0", OpsDebug: debug})
		if err != nil {
			t.Fatal(err)
		}
		defer ops.Close()
		r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
		r.RemoteAddr = remote
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		ops.server.Handler.ServeHTTP(w, r)
		return w.Code
	}
	for _, path := range []string{"/debug/pprof/cmdline", "/debug/pprof/", "/debug/loglevel"} {
		for remote, want := range map[string]int{
			"127.0.0.1:5": 200, "127.8.8.8:5": 200, "[::1]:5": 200, "[::ffff:127.0.0.1]:5": 200,
			"10.0.0.1:5": 403, "172.17.0.1:5": 403, "[2001:db8::1]:5": 403, "[::ffff:10.0.0.1]:5": 403, "": 403,
		} {
			if got := ask(false, remote, path); got != want {
				t.Errorf("%s from %q: %d, want %d", path, remote, got, want)
			}
			if got := ask(true, remote, path); got != 200 {
				t.Errorf("%s from %q with OPS_DEBUG: %d", path, remote, got)
			}
		}
		if got := ask(false, "127.0.0.1:5", path, "X-Forwarded-For", "10.0.0.1"); got != 403 {
			t.Errorf("%s through a proxy: %d", path, got)
		}
	}
	for _, path := range []string{"/metrics", "/healthz"} {
		if got := ask(false, "10.0.0.1:5", path); got != 200 {
			t.Errorf("%s from another machine: %d", path, got)
		}
	}
	var cfg struct{ Config Config }
	if problems := Load(&cfg, nil); len(problems) > 0 || cfg.Config.OpsAddr != "127.0.0.1:9090" {
		t.Errorf("by default OPS_ADDR is %s, problems %q", cfg.Config.OpsAddr, problems)
	}
}

// TestLogLevel: the level can be set to debug, info, warn and error; those above would end the log.
func TestLogLevel(t *testing.T) {
	t.Parallel()
	const form, object = "application/x-www-form-urlencoded", "application/json"
	for _, tc := range []struct {
		kind, body string
		code       int
		level      zapcore.Level
	}{
		{object, `{"level":"error"}`, 200, zapcore.ErrorLevel},
		{object, `{"level":"warn"}`, 200, zapcore.WarnLevel},
		{form, "level=info", 200, zapcore.InfoLevel},
		{object, `{"level":"fatal"}`, 400, zapcore.DebugLevel},
		{object, `{"level":"panic"}`, 400, zapcore.DebugLevel},
		{object, `{"level":"dpanic"}`, 400, zapcore.DebugLevel},
		{form, "level=fatal", 400, zapcore.DebugLevel},
		{object, `{"level":""}`, 400, zapcore.DebugLevel},
		{object, `{"level":7}`, 400, zapcore.DebugLevel},
		{object, ``, 400, zapcore.DebugLevel},
		{object, `{"level":"` + strings.Repeat("x", 2<<10) + `"}`, 400, zapcore.DebugLevel},
	} {
		s, _ := newShell(t)
		r := httptest.NewRequest(http.MethodPut, "/debug/loglevel", strings.NewReader(tc.body))
		r.Header.Set("Content-Type", tc.kind)
		w := httptest.NewRecorder()
		s.setLogLevel(w, r)
		if w.Code != tc.code || s.Level.Level() != tc.level {
			t.Errorf("%s: %d, level %v; want %d, %v", tc.body, w.Code, s.Level.Level(), tc.code, tc.level)
		}
		s.Close()
	}
}
