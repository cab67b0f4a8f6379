package bus_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/tlstest"
	"gancho/pkg/topology"
)

// startServer starts a broker with these options and JetStream and returns its host:port.
func startServer(t *testing.T, opts *server.Options) string {
	t.Helper()
	opts.Host, opts.NoLog, opts.NoSigs, opts.JetStream, opts.MaxPayload = "127.0.0.1", true, true, true, 2<<20
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	if opts.StoreDir == "" {
		opts.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("nats-server is not ready after 20 s")
	}
	return s.Addr().String()
}

// connects reports whether a service with that configuration can work, and why not.
func connects(t *testing.T, cfg bus.Config) (bool, string) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(cfg, "publisher", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.Own(ctx, topology.Publisher, bustest.Limits()) }()
	// What cannot work is told by the state all the time; it is looked at after a few reconnections.
	tick := time.NewTicker(1500 * time.Millisecond)
	defer tick.Stop()
	for range 2 {
		select {
		case err := <-done:
			return err == nil && b.State() == "", b.State()
		case <-tick.C:
		}
		if b.State() == "" {
			err := <-done
			return err == nil, b.State()
		}
	}
	why := b.State()
	cancel()
	<-done //nolint:errcheck // only that it ended matters
	return false, why
}

func TestBrokerOverTLS(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	files, other := tlstest.New(t), tlstest.New(t)
	addr := startServer(t, &server.Options{
		TLSConfig: files.Server(t), TLSTimeout: 5, Username: "gancho", Password: "p@ss/word%",
	})
	const login = "gancho:p%40ss%2Fword%25@"
	for name, tc := range map[string]struct {
		cfg bus.Config
		ok  bool
	}{
		"its authority":          {bus.Config{URL: "tls://" + login + addr, CAFile: files.CA}, true},
		"by name":                {bus.Config{URL: strings.Replace("tls://"+login+addr, "127.0.0.1", "localhost", 1), CAFile: files.CA}, true},
		"nats:// with authority": {bus.Config{URL: "nats://" + login + addr, CAFile: files.CA}, true},
		"another authority":      {bus.Config{URL: "tls://" + login + addr, CAFile: other.CA}, false},
		"none named":             {bus.Config{URL: "tls://" + login + addr}, false},
		"wrong password":         {bus.Config{URL: "tls://gancho:wrong@" + addr, CAFile: files.CA}, false},
		"no user":                {bus.Config{URL: "tls://" + addr, CAFile: files.CA}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ok, why := connects(t, tc.cfg)
			if ok != tc.ok {
				t.Errorf("works: %v (%s), want %v", ok, why, tc.ok)
			}
			if !ok && !strings.Contains(why, "not connected to the broker") {
				t.Errorf("state: %q", why)
			}
		})
	}
	t.Run("no TLS where it is asked for", func(t *testing.T) {
		t.Parallel()
		plain := startServer(t, &server.Options{})
		if ok, _ := connects(t, bus.Config{URL: "tls://" + plain, CAFile: files.CA}); ok {
			t.Error("connected in clear")
		}
	})
}

// TestCredentialsFile: brokers with accounts by JWT.
func TestCredentialsFile(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	operator, system, account, user := pair(t, nkeys.CreateOperator), pair(t, nkeys.CreateAccount), pair(t, nkeys.CreateAccount), pair(t, nkeys.CreateUser)
	oc := jwt.NewOperatorClaims(public(t, operator))
	oc.SystemAccount = public(t, system)
	sc := jwt.NewAccountClaims(public(t, system))
	ac := jwt.NewAccountClaims(public(t, account))
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	uc := jwt.NewUserClaims(public(t, user))
	userJWT := encode(t, uc, account)
	resolver := &server.MemAccResolver{}
	for k, c := range map[nkeys.KeyPair]*jwt.AccountClaims{system: sc, account: ac} {
		if err := resolver.Store(public(t, k), encode(t, c, operator)); err != nil {
			t.Fatal(err)
		}
	}
	decoded, err := jwt.DecodeOperatorClaims(encode(t, oc, operator))
	if err != nil {
		t.Fatal(err)
	}
	addr := startServer(t, &server.Options{TrustedOperators: []*jwt.OperatorClaims{decoded}, AccountResolver: resolver, SystemAccount: public(t, system)})
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(userJWT, seed)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "publisher.creds")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, why := connects(t, bus.Config{URL: "nats://" + addr, CredsFile: file}); !ok {
		t.Errorf("with the credentials: %s", why)
	}
	if ok, _ := connects(t, bus.Config{URL: "nats://" + addr}); ok {
		t.Error("let in without credentials")
	}
}

func pair(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	k, err := create()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func public(t *testing.T, k nkeys.KeyPair) string {
	t.Helper()
	p, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func encode(t *testing.T, c jwt.Claims, by nkeys.KeyPair) string {
	t.Helper()
	s, err := c.Encode(by)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestWrongPasswordIsRetried is row 76 of the bad inputs: a service whose password is wrong is not ready, and
// works as soon as the broker accepts it, without a restart.
func TestWrongPasswordIsRetried(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	opts := &server.Options{Username: "gancho", Password: "old"}
	first, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), Username: "gancho", Password: "old"})
	if err != nil {
		t.Fatal(err)
	}
	first.Start()
	if !first.ReadyForConnections(20 * time.Second) {
		t.Fatal("nats-server is not ready after 20 s")
	}
	addr := first.Addr().String()
	b, err := bus.Connect(bus.Config{URL: "nats://gancho:new@" + addr}, "publisher", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	done := make(chan error, 1)
	go func() { done <- b.Own(context.Background(), topology.Publisher, bustest.Limits()) }()
	select {
	case err := <-done:
		t.Fatalf("let in with a wrong password: %v", err)
	case <-time.After(4 * time.Second): // several attempts: the client would give up after two
	}
	if b.State() == "" {
		t.Error("ready with a wrong password")
	}
	_, port, _ := net.SplitHostPort(addr)
	if opts.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	first.Shutdown()
	first.WaitForShutdown()
	opts.Password = "new"
	startServer(t, opts)
	select {
	case err := <-done:
		if err != nil || b.State() != "" {
			t.Errorf("with the right password: %v, %q", err, b.State())
		}
	case <-time.After(30 * time.Second):
		t.Errorf("not connected 30 s after the password became right: %q", b.State())
	}
}
