// Package bustest starts a real NATS server with JetStream on files for a test.
package bustest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/proctest"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// Server is a NATS server of one test, a process that is killed when the test ends.
type Server struct {
	t       testing.TB
	program string
	name    string // in a cluster
	dir     string // of its configuration, log and addresses
	store   string
	config  string // beyond listening and storing
	port    string // from the first start on
	cmd     *exec.Cmd
	ports   struct{ NATS, Monitoring []string }
}

// newest builds nats-server in the version of go.mod, without the race detector, and returns its file. The Go build
// cache keeps it.
var newest = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "nats-server").Output()
	return strings.TrimSpace(string(out)), err
})

// Start starts a server on a free port, its store in a directory of the test.
func Start(t testing.TB) *Server {
	t.Helper()
	return start(t, "", "max_payload: 2MB\n")
}

// StartHosted starts a server as hosted brokers are: its one account has maxFile bytes, and demands max_bytes of every
// stream.
func StartHosted(t testing.TB, maxFile int64) *Server {
	t.Helper()
	return start(t, "", fmt.Sprintf("max_payload: 2MB\nno_auth_user: test\n"+
		"accounts { TEST { jetstream { max_file: %d, max_bytes_required: true }, users: [ { user: test, password: test } ] } }\n", maxFile))
}

func start(t testing.TB, name, config string) *Server {
	t.Helper()
	program, err := newest()
	if err != nil {
		t.Fatalf("go tool -n nats-server: %v", err)
	}
	s := &Server{t: t, program: program, name: name, dir: t.TempDir(), store: t.TempDir(), config: config, port: "-1"}
	s.Run()
	return s
}

// Run starts the server after Stop, on the port that it had.
func (s *Server) Run() {
	s.t.Helper()
	listen := fmt.Sprintf("listen: 127.0.0.1:%s\nhttp: 127.0.0.1:-1\nserver_name: %q\njetstream { store_dir: %q }\n", s.port,
		cmp.Or(s.name, "test"), s.store)
	file, log := filepath.Join(s.dir, "nats.conf"), filepath.Join(s.dir, "log")
	if err := os.WriteFile(file, []byte(listen+s.config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = exec.Command(s.program, "-c", file, "-l", log, "--ports_file_dir", s.dir) //nolint:noctx,gosec // it ends with the test
	s.cmd.SysProcAttr = proctest.WithParent()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("nats-server: %v", err)
	}
	s.t.Cleanup(s.kill)
	addresses := filepath.Join(s.dir, fmt.Sprintf("%s_%d.ports", filepath.Base(s.program), s.cmd.Process.Pid))
	waittest.Until(s.t, "nats-server listens, see "+log, func() bool {
		text, err := os.ReadFile(addresses)
		return err == nil && json.Unmarshal(text, &s.ports) == nil
	})
	_, s.port, _ = strings.Cut(strings.TrimPrefix(s.ports.NATS[0], "nats://"), ":")
}

func (s *Server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Stop stops the server, which has stored everything then; Run or the end of the test follows.
func (s *Server) Stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatalf("nats-server: %v", err)
	}
	_ = s.cmd.Wait() // it ends with an exit code of the signal
	s.cmd = nil
}

// Restart stops the server and starts it again on the same port and store.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Run()
}

// URL is where clients connect.
func (s *Server) URL() string { return s.ports.NATS[0] }

// StoreDir is where the server keeps its files.
func (s *Server) StoreDir() string { return s.store }

// Name is the server's in a cluster.
func (s *Server) Name() string { return s.name }

// Connect returns a bus of a service with that name, closed when the test ends.
func (s *Server) Connect(name string) *bus.Bus {
	s.t.Helper()
	b, err := bus.Connect(bus.Config{URL: s.URL()}, name, Logger(s.t), prometheus.NewRegistry())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(b.Close)
	return b
}

// JetStream is a connection past the bus, closed when the test ends.
func (s *Server) JetStream() jetstream.JetStream { s.t.Helper(); return JetStream(s.t, s.URL()) }

// JetStream is a connection past the bus to the broker at url, closed when the test ends.
func JetStream(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Topology creates every stream and bucket, as the services would, and returns the bus it used.
func (s *Server) Topology(l topology.Limits) *bus.Bus {
	s.t.Helper()
	b := s.Connect("test-topology")
	for _, o := range []topology.Owner{topology.Publisher, topology.Dispatcher, topology.Monitor, topology.Management} {
		if err := b.Own(s.t.Context(), o, l); err != nil {
			s.t.Fatal(err)
		}
	}
	return b
}

// Limits are the defaults.
func Limits() topology.Limits {
	return topology.Limits{Replicas: 1, EventMaxBytes: 1 << 20, EventsMaxAge: 168 * time.Hour, LogMaxAge: 720 * time.Hour, DuplicateWindow: 10 * time.Minute}
}

// Logger logs warnings and errors to the test.
func Logger(t testing.TB) *zap.Logger {
	return zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
}

// Example returns notification number i of one webhook.
func Example(i int) *notification.Notification {
	hook := uuid.MustParse("0190a5d4-0000-7000-8000-000000000001")
	eventID := event.ID("acme", "crm_deal_created", fmt.Sprint(i))
	return &notification.Notification{
		Account: "acme", ID: event.NotificationID(eventID, hook), WebhookID: hook.String(), EventID: eventID, EventName: "crm_deal_created",
		EventSequence: uint64(i), EventTime: time.UnixMilli(1_700_000_000_000), Send: 1, Body: []byte(`{"a": 1}`), //nolint:gosec // a count
	}
}
