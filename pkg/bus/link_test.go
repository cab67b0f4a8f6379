package bus_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/tlstest"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// watched connects to a broker and returns its log lines from warnings up.
func watched(t *testing.T, url string) (*bus.Bus, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.WarnLevel)
	b, err := bus.Connect(bus.Config{URL: url}, "publisher", zap.New(core), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b, logs
}

// TestOldBroker: nats-server 2.9 takes a stream with allow_msg_schedules, drops the setting without a word, and no
// retry is ever made.
func TestOldBroker(t *testing.T) {
	t.Parallel()
	url, version := bustest.StartOld(t)
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	// Its version is enough to refuse it, before anything is made there.
	b, logs := watched(t, url)
	owned := make(chan error, 1)
	go func() { owned <- b.Own(ctx, topology.Dispatcher, bustest.Limits()) }()
	for _, part := range []string{"nats-server " + version, "2.12.0 or newer is needed", "allow_msg_schedules"} {
		waittest.Until(t, part, func() bool { return strings.Contains(b.State(), part) })
	}
	waittest.Until(t, "one log line", func() bool { return logs.FilterMessage("the broker is too old").Len() == 1 && logs.Len() == 1 })
	if err := b.Create(ctx, bustest.Limits()); err == nil || !strings.Contains(err.Error(), "is too old") {
		t.Errorf("create: %v", err)
	}
	if info, err := js.AccountInfo(ctx); err != nil || info.Streams != 0 {
		t.Errorf("%d streams, %v; want none", info.Streams, err)
	}

	// One that does not say how old it is gives itself away by its answers.
	unversioned, _ := watched(t, url)
	unversioned.IgnoreVersion()
	go func() { _ = unversioned.Own(ctx, topology.Dispatcher, bustest.Limits()) }()
	want := "stream RETRIES: nats-server " + version + " does not support all that is asked of it: allow_msg_schedules is false, asked for was true; 2.12.0 or newer is needed"
	waittest.Until(t, want, func() bool { return unversioned.State() == want })
	consumers, _ := watched(t, url)
	consumers.IgnoreVersion()
	go func() {
		_, _ = consumers.Consumer(ctx, topology.Retries, jetstream.ConsumerConfig{Durable: "c"})
	}()
	want = "consumer c: nats-server " + version + " does not support all that is asked of it: metadata is none, asked for was gancho.settings; 2.12.0 or newer is needed"
	waittest.Until(t, want, func() bool { return consumers.State() == want })
	cancel()
	<-owned //nolint:errcheck // it ended
}

// TestWhyUnreachable: every server of the list has a cause of its own, known before there was any connection.
func TestWhyUnreachable(t *testing.T) {
	t.Parallel()
	locked := startServer(t, &server.Options{Username: "gancho", Password: "right"})
	plain := startServer(t, &server.Options{})
	secured := startServer(t, &server.Options{TLSConfig: tlstest.New(t).Server(t), TLSTimeout: 5})
	b, logs := watched(t, strings.Join([]string{
		"nats://gancho:hunter2@" + locked, "nats://gancho:hunter2@nats.invalid:4222", "nats://gancho:hunter2@127.0.0.1:1",
		"tls://gancho:hunter2@" + plain, "nats://gancho:hunter2@" + secured,
	}, ","))
	for _, part := range []string{
		locked + ": login refused", "nats.invalid:4222: ", "127.0.0.1:1: connection refused",
		plain + ": TLS: the server does not offer it", secured + ": TLS: the certificate is not accepted",
	} {
		waittest.Until(t, part, func() bool { return strings.Contains(b.State(), part) })
	}
	if state := b.State(); !strings.HasPrefix(state, "not connected to the broker: ") || strings.Contains(state, "hunter2") {
		t.Errorf("state %q", state)
	}
	lines := logs.FilterMessage("the broker cannot be reached; trying again").All()
	if len(lines) == 0 {
		t.Fatal("nothing is logged")
	}
	if servers, ok := lines[0].ContextMap()["servers"].([]any); !ok || len(servers) != 5 || logs.Len() != 1 {
		t.Errorf("logged: %v; want one line with five servers", logs.All())
	}
}

// TestStateDoesNotWait: while the client library shakes hands it holds its lock, and a silent server takes all of the
// time for that.
func TestStateDoesNotWait(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	b, err := bus.ConnectDialing(bus.Config{URL: "nats://" + l.Addr().String()}, "publisher", zap.NewNop(), prometheus.NewRegistry(), new(net.Dialer).DialContext)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	pending := func(conn net.Conn) bool { // the peer has not closed it
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := conn.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	for handshakes := 0; handshakes < 3; { // of the connection, and of the diagnosis
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if pending(conn) {
			handshakes++
			if state := b.State(); !pending(conn) {
				t.Errorf("the state %q came after the handshake", state)
			}
		}
		_ = conn.Close()
	}
}

// TestCloseDoesNotWait: a dial that does not end, such as the look-up of a name that is gone, holds up nothing.
func TestCloseDoesNotWait(t *testing.T) {
	t.Parallel()
	dialing := make(chan struct{}, 100)
	b, err := bus.ConnectDialing(bus.Config{URL: "nats://gone:4222"}, "publisher", zap.NewNop(), prometheus.NewRegistry(), func(ctx context.Context, _, _ string) (net.Conn, error) {
		dialing <- struct{}{}
		<-t.Context().Done()
		return nil, ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	<-dialing
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Own(ctx, topology.Publisher, bustest.Limits()); err == nil {
		t.Error("owned without a broker")
	}
	if !strings.HasPrefix(b.State(), "not connected to the broker") {
		t.Errorf("state %q", b.State())
	}
	b.Close()
}

// TestDeniedRights: a broker that refuses a publish is named in the state, once, whatever id the subject ends in.
func TestDeniedRights(t *testing.T) {
	t.Parallel()
	addr := startServer(t, &server.Options{Users: []*server.User{{
		Username: "gancho", Password: "right", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"gancho.attempts.>"}}},
	}}})
	b, logs := watched(t, "nats://gancho:right@"+addr)
	waittest.Until(t, "connected", func() bool { return b.State() == "" })
	ctx, cancel := context.WithCancel(t.Context())
	for _, id := range []string{"a.1", "a.2", "b.3"} {
		go func() { _, _ = b.Publish(ctx, topology.Attempts, bus.NewMessage("gancho.attempts."+id, "", nil)) }()
	}
	want := "the user of NATS_URL may not publish to gancho.attempts: give it the rights of deploy/nats/accounts.conf"
	waittest.Until(t, want, func() bool { return b.Degraded() == want })
	cancel()
	if n := logs.FilterMessage("broker reports an error").Len(); n != 1 {
		t.Errorf("%d lines, want 1: %v", n, logs.All())
	}
}
