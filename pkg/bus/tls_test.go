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
	"gancho/pkg/waittest"
)

// startServer starts a broker with these options and JetStream and returns its host:port.
func startServer(t *testing.T, opts *server.Options) string {
	t.Helper()
	return runServer(t, opts).Addr().String()
}

func runServer(t *testing.T, opts *server.Options) *server.Server {
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
	return s
}

func portOf(t *testing.T, s *server.Server) string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// asked returns how many connections have been made to the server.
func asked(t *testing.T, s *server.Server) uint64 {
	t.Helper()
	v, err := s.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	return v.TotalConnections
}

// connects reports whether a service with that configuration can work with the server, and why not. No other client may
// connect to it.
func connects(t *testing.T, s *server.Server, cfg bus.Config) (bool, string) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(cfg, "publisher", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	before, ended := asked(t, s), false
	go func() { done <- b.Own(ctx, topology.Publisher, bustest.Limits()) }()
	waittest.Until(t, "it works, or two attempts have failed", func() bool {
		select {
		case err = <-done:
			ended = true
		default:
		}
		return ended || asked(t, s) > before+2
	})
	why := b.State()
	if !ended {
		cancel()
		err = <-done
	}
	return err == nil && why == "", why
}

func TestBrokerOverTLS(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	files, other := tlstest.New(t), tlstest.New(t)
	const login = "gancho:p%40ss%2Fword%25@"
	for name, tc := range map[string]struct {
		url    string // without the port
		caFile string
		ok     bool
	}{
		"its authority":          {"tls://" + login + "127.0.0.1", files.CA, true},
		"by name":                {"tls://" + login + "localhost", files.CA, true},
		"nats:// with authority": {"nats://" + login + "127.0.0.1", files.CA, true},
		"another authority":      {"tls://" + login + "127.0.0.1", other.CA, false},
		"none named":             {"tls://" + login + "127.0.0.1", "", false},
		"wrong password":         {"tls://gancho:wrong@127.0.0.1", files.CA, false},
		"no user":                {"tls://127.0.0.1", files.CA, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := runServer(t, &server.Options{TLSConfig: files.Server(t), TLSTimeout: 5, Username: "gancho", Password: "p@ss/word%"})
			ok, why := connects(t, s, bus.Config{URL: tc.url + ":" + portOf(t, s), CAFile: tc.caFile})
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
		plain := runServer(t, &server.Options{})
		if ok, _ := connects(t, plain, bus.Config{URL: "tls://" + plain.Addr().String(), CAFile: files.CA}); ok {
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
	s := runServer(t, &server.Options{TrustedOperators: []*jwt.OperatorClaims{decoded}, AccountResolver: resolver, SystemAccount: public(t, system)})
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
	if ok, why := connects(t, s, bus.Config{URL: s.ClientURL(), CredsFile: file}); !ok {
		t.Errorf("with the credentials: %s", why)
	}
	if ok, _ := connects(t, s, bus.Config{URL: s.ClientURL()}); ok {
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
	first := runServer(t, &server.Options{Username: "gancho", Password: "old"})
	b, err := bus.Connect(bus.Config{URL: "nats://gancho:new@" + first.Addr().String()}, "publisher", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.Own(ctx, topology.Publisher, bustest.Limits()) }()
	waittest.Until(t, "three attempts have failed, where the client alone would give up after two", func() bool { return asked(t, first) > 3 })
	select {
	case err := <-done:
		t.Fatalf("let in with a wrong password: %v", err)
	default:
	}
	if b.State() == "" {
		t.Error("ready with a wrong password")
	}
	port, err := strconv.Atoi(portOf(t, first))
	if err != nil {
		t.Fatal(err)
	}
	first.Shutdown()
	first.WaitForShutdown()
	startServer(t, &server.Options{Username: "gancho", Password: "new", Port: port})
	if err := <-done; err != nil || b.State() != "" {
		t.Errorf("with the right password: %v, %q", err, b.State())
	}
}
