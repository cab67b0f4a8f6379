// Package bustest starts a real NATS server with JetStream on files inside the test process.
package bustest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// Server is a NATS server of one test, stopped when the test ends.
type Server struct {
	t    testing.TB
	opts *server.Options
	srv  *server.Server
}

// Start starts a server on a free port, its store in a directory of the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, opts: &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(),
		MaxPayload: 2 << 20, NoLog: true, NoSigs: true,
	}}
	s.start()
	t.Cleanup(func() { s.srv.Shutdown(); s.srv.WaitForShutdown() })
	return s
}

// StartHosted starts a server as hosted brokers are: its one account has maxFile bytes, and demands max_bytes of every
// stream.
func StartHosted(t testing.TB, maxFile int64) *Server {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "nats.conf")
	text := fmt.Sprintf("max_payload: 2MB\nno_auth_user: test\n"+
		"accounts { TEST { jetstream { max_file: %d, max_bytes_required: true }, users: [ { user: test, password: test } ] } }\n", maxFile)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	opts.Host, opts.Port, opts.JetStream, opts.StoreDir, opts.NoLog, opts.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(), true, true
	s := &Server{t: t, opts: opts}
	s.start()
	t.Cleanup(func() { s.srv.Shutdown(); s.srv.WaitForShutdown() })
	return s
}

func (s *Server) start() {
	s.t.Helper()
	srv, err := server.NewServer(s.opts)
	if err != nil {
		s.t.Fatalf("nats-server: %v", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(20 * time.Second) {
		s.t.Fatal("nats-server is not ready after 20 s")
	}
	s.srv = srv
}

// URL is where clients connect.
func (s *Server) URL() string { return s.srv.ClientURL() }

// StoreDir is where the server keeps its files.
func (s *Server) StoreDir() string { return s.opts.StoreDir }

// Name is the server's in a cluster.
func (s *Server) Name() string { return s.opts.ServerName }

// LeadsCluster reports whether the server leads its cluster.
func (s *Server) LeadsCluster() bool { return s.srv.JetStreamIsLeader() }

// Restart stops the server and starts it again on the same port and store.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// Run starts the server after Stop.
func (s *Server) Run() { s.t.Helper(); s.start() }

// Stop stops the server; Restart or the end of the test follows.
func (s *Server) Stop() {
	s.opts.Port = s.srv.Addr().(*net.TCPAddr).Port //nolint:errcheck // it listens on TCP
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
}

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
