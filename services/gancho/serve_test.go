package gancho

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"gancho/pkg/service"
	"gancho/pkg/waittest"
)

func serve(environ ...string) command {
	var stdout, stderr strings.Builder
	code := Serve(append([]string{"NATS_LISTEN=127.0.0.1:0", "HTTP_ADDR=127.0.0.1:0", "OPS_ADDR=127.0.0.1:0", "LOG_LEVEL=error"}, environ...), &stdout, &stderr)
	return command{code, stdout.String(), stderr.String()}
}

// TestServeRefusesAFolderInUse: two processes on one folder lose and repeat events, so the second reads and writes
// nothing there.
func TestServeRefusesAFolderInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lock, err := lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := serve("DATA_DIR=" + dir)
	got.want(t, 1, fmt.Sprintf(`DATA_DIR: \S+ is in use by the process with the id %d;`, os.Getpid()))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || got.out != "" {
		t.Errorf("the second process left %v and printed %q, %v; want only the lock's file", entries, got.out, err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	// A process that another test starts right now has the file until its own program begins.
	waittest.Until(t, "the lock of a process that ended is free", func() bool {
		again, err := lockDataDir(dir)
		if err == nil {
			_ = again.Close()
		}
		return err == nil
	})
}

// TestServeFailsBeforeItShowsAToken: a token that is shown once is of no use when nothing runs.
func TestServeFailsBeforeItShowsAToken(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() }) // after the parallel tests
	for variable, value := range map[string]string{
		"NATS_LISTEN": taken.Addr().String(), "HTTP_ADDR": taken.Addr().String(), "OPS_ADDR": taken.Addr().String(), "RETRY_DELAYS": "10s",
		"REDIS_URL": "redis://:p/w@127.0.0.1/0",
	} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			got := serve("DATA_DIR="+dir, variable+"="+value)
			got.want(t, service.ExitConfig, `(?m)^`+variable+`: `)
			if got.out != "" {
				t.Errorf("it printed %q", got.out)
			}
			if _, err := os.Stat(filepath.Join(dir, "api_tokens")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file of tokens: %v; want none, so that the next start shows the token", err)
			}
		})
	}
}

// TestServeKeepsItsFirstToken: the token that the services read is the one that is shown, once.
func TestServeKeepsItsFirstToken(t *testing.T) {
	t.Parallel()
	var cfg Config
	environ := []string{"DATA_DIR=" + t.TempDir(), "NATS_LISTEN=127.0.0.1:0", "HTTP_ADDR=127.0.0.1:0", "NATS_SYNC_INTERVAL=1s"}
	if problems := service.Load(&cfg, environ); len(problems) > 0 {
		t.Fatal(problems)
	}
	shown := ""
	for range 2 {
		all, problems, err := prepare(&cfg, environ)
		if err != nil || len(problems) > 0 {
			t.Fatal(problems, err)
		}
		shell, err := service.NewShell("error", zapcore.AddSync(io.Discard))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		err = all.run(ctx, shell, func(addresses) { stop() })
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(cfg.DataDir, "api_tokens"))
		if err != nil {
			t.Fatal(err)
		}
		if shown == "" {
			shown = all.firstToken
		} else if all.firstToken != "" {
			t.Error("the second start has a first token too")
		}
		if string(text) != firstAccount+":"+shown+"\n" {
			t.Errorf("the file holds %q, shown was %q", text, shown)
		}
	}
}

// TestStartCanBeInterrupted: a broker that reads its files for long does not hold up a stop.
func TestStartCanBeInterrupted(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "gancho-start-") //nolint:usetesting // its removal must wait for the broker
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the broker ends in its own time
		for deadline := time.Now().Add(30 * time.Second); os.RemoveAll(dir) != nil && time.Now().Before(deadline); {
			<-time.After(10 * time.Millisecond)
		}
	})
	cfg := Config{DataDir: dir, NATSListen: "127.0.0.1:0", NATSSyncInterval: "1s"}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := (&stack{cfg: cfg}).startBroker(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want that the start was cancelled", err)
	}
}
