package bustest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gancho/pkg/waittest"

	"github.com/nats-io/nats-server/v2/server"
)

// StartCluster starts three servers that are one JetStream cluster and returns once it has a leader. Their
// one account may hold maxFile bytes, all replicas together.
func StartCluster(t testing.TB, maxFile int64) []*Server {
	t.Helper()
	ports := freePorts(t, 3)
	text := fmt.Sprintf("max_payload: 2MB\nno_auth_user: test\naccounts { TEST { jetstream { max_file: %d }, users: "+
		"[ { user: test, password: test } ] } }\n"+
		"cluster { name: test, routes: [ nats://127.0.0.1:%d, nats://127.0.0.1:%d, nats://127.0.0.1:%d ] }\n", maxFile,
		ports[0], ports[1], ports[2])
	conf := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var servers []*Server
	for i, port := range ports {
		opts, err := server.ProcessConfigFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		opts.ServerName, opts.Host, opts.Port = fmt.Sprint("server-", i+1), "127.0.0.1", server.RANDOM_PORT
		opts.JetStream, opts.StoreDir, opts.NoLog, opts.NoSigs = true, t.TempDir(), true, true
		opts.Cluster.Host, opts.Cluster.Port = "127.0.0.1", port
		s := &Server{t: t, opts: opts}
		s.start()
		t.Cleanup(func() { s.srv.Shutdown(); s.srv.WaitForShutdown() })
		servers = append(servers, s)
	}
	waittest.Until(t, "the cluster has a leader and all servers", func() bool {
		return slices.ContainsFunc(servers, func(s *Server) bool {
			return s.srv.JetStreamIsLeader() && len(s.srv.JetStreamClusterPeers()) == len(servers)
		})
	})
	return servers
}

// freePorts returns ports of 127.0.0.1 that are free now.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port) //nolint:errcheck // it listens on TCP
	}
	return ports
}
