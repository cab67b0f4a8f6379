package bustest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"testing"

	"gancho/pkg/waittest"
)

// StartCluster starts three servers that are one JetStream cluster and returns once it has a leader. Their
// one account may hold maxFile bytes, all replicas together.
func StartCluster(t testing.TB, maxFile int64) []*Server {
	t.Helper()
	ports := freePorts(t, 3)
	var servers []*Server
	for i, port := range ports {
		servers = append(servers, start(t, fmt.Sprint("server-", i+1), fmt.Sprintf("max_payload: 2MB\nno_auth_user: test\n"+
			"accounts { TEST { jetstream { max_file: %d }, users: [ { user: test, password: test } ] } }\n"+
			"cluster { name: test, listen: \"127.0.0.1:%d\", routes: [ nats://127.0.0.1:%d, nats://127.0.0.1:%d, nats://127.0.0.1:%d ] }\n",
			maxFile, port, ports[0], ports[1], ports[2])))
	}
	waittest.Until(t, "the cluster has a leader and all servers", func() bool {
		return slices.ContainsFunc(servers, func(s *Server) bool {
			c := s.cluster()
			return c.Leader == s.name && len(c.Replicas) == len(servers)-1
		})
	})
	return servers
}

// LeadsCluster reports whether the server leads its cluster.
func (s *Server) LeadsCluster() bool { s.t.Helper(); return s.cluster().Leader == s.name }

// meta is a server's view of its cluster. Only the leader knows the replicas.
type meta struct {
	Leader   string
	Replicas []struct{ Name string }
}

func (s *Server) cluster() meta {
	s.t.Helper()
	if s.cmd == nil {
		return meta{}
	}
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.ports.Monitoring[0]+"/jsz", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	var jsz struct {
		Cluster meta `json:"meta_cluster"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&jsz); err != nil {
		s.t.Fatal(err)
	}
	return jsz.Cluster
}

// freePorts returns ports of 127.0.0.1 that are free now. They are below those that the kernel gives out, so no
// connection takes one before its server listens.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for len(ports) < n {
		port := 10_000 + rand.IntN(10_000) //nolint:gosec // no secret
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue // taken
		}
		defer func() { _ = l.Close() }()
		ports = append(ports, port)
	}
	return ports
}
