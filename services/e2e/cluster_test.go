package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"gancho/pkg/waittest"
	"gancho/services/internal/testsystem"
)

// cluster is all that deploy/cluster starts except the services, with its own configuration, on loopback: three
// NATS servers, two Redis and three Sentinels.
type cluster struct {
	t         *testing.T
	nats      []*testsystem.Process // named as their servers are
	clients   []string              // host:port of each server
	monitors  []string              // host:port of its monitoring
	redis     []*testsystem.Process
	redisAt   []string
	sentinels []*testsystem.Process
	watchers  []string // host:port of each Sentinel
}

// freePorts returns addresses of ports that are free now. They are below those that the kernel gives to
// outgoing connections, so that a server which was killed finds its own again.
func freePorts(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for len(addrs) < n {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(20_000+rand.IntN(12_000))))
		if err != nil {
			continue // taken
		}
		defer func() { _ = l.Close() }()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

func portOf(addr string) string {
	_, port, _ := strings.Cut(addr, ":")
	return port
}

// clusterPassword is that of a user of the cluster's brokers, Redis and Sentinels.
func clusterPassword(user string) string { return "7" + user }

func startCluster(t *testing.T) *cluster {
	t.Helper()
	bin, err := binaries()
	must(t, "build", err)
	c := &cluster{t: t}
	conf, err := filepath.Abs(root("deploy", "cluster"))
	must(t, "deploy/cluster", err)

	c.clients, c.monitors = freePorts(t, 3), freePorts(t, 3)
	routes := freePorts(t, 3)
	env := []string{"NATS_SYNC_INTERVAL=always", "NATS_SERVER_FILE_STORE=10GB", "NATS_MAX_FILE_STORE=30GB", `NATS_PASSWORD_CLUSTER="` + clusterPassword("cluster") + `"`}
	for _, user := range brokerUsers {
		env = append(env, "NATS_PASSWORD_"+strings.ToUpper(strings.ReplaceAll(user, "-", "_"))+`="`+clusterPassword(user)+`"`)
	}
	var urls []string
	for _, route := range routes {
		urls = append(urls, `"nats://cluster:`+clusterPassword("cluster")+"@"+route+`"`)
	}
	env = append(env, "NATS_ROUTES=["+strings.Join(urls, ", ")+"]")
	for i := range 3 {
		name := fmt.Sprint("nats-", i+1)
		c.nats = append(c.nats, testsystem.NewProcess(t, name, append(slices.Clone(env), "NATS_SERVER_NAME="+name, "NATS_STORE_DIR="+t.TempDir()),
			filepath.Join(bin, "nats-server"), "-c", filepath.Join(conf, "nats", "nats.conf"), "-a", "127.0.0.1", "-p", portOf(c.clients[i]),
			"-m", portOf(c.monitors[i]), "--cluster", "nats://"+routes[i]))
	}

	c.redisAt, c.watchers = freePorts(t, 2), freePorts(t, 3)
	env = []string{"REDIS_FIRST_PRIMARY=" + c.redisAt[0], "SENTINELS=" + strings.Join(c.watchers, " "), "SENTINEL_DOWN_AFTER=1000"}
	for _, user := range []string{"monitor", "management", "replication", "sentinel", "lookup"} {
		env = append(env, "REDIS_PASSWORD_"+strings.ToUpper(user)+"="+clusterPassword(user))
	}
	script := func(name, file, self string) *testsystem.Process {
		p := testsystem.NewProcess(t, name, append(slices.Clone(env), self), "/bin/sh", filepath.Join(conf, "redis", file), "--bind", "127.0.0.1")
		p.Dir = t.TempDir()
		p.Env = append(p.Env, "TMPDIR="+p.Dir)
		return p
	}
	for i, addr := range c.redisAt {
		c.redis = append(c.redis, script(fmt.Sprint("redis-", i+1), "redis.sh", "REDIS_SELF="+addr))
	}
	for i, addr := range c.watchers {
		c.sentinels = append(c.sentinels, script(fmt.Sprint("sentinel-", i+1), "sentinel.sh", "SENTINEL_SELF="+addr))
	}

	all := slices.Concat(c.nats, c.redis, c.sentinels)
	t.Cleanup(func() {
		for _, p := range all {
			if t.Failed() {
				t.Logf("last lines of %s:\n%s", p.Name, p.Output())
			}
			p.Kill()
		}
	})
	for _, p := range append(c.nats, c.redis...) {
		p.Start()
	}
	c.redis[1].Find(`(MASTER <-> REPLICA sync: Finished)`) // Sentinels ask for replicas at first, and then every 10 s
	for _, p := range c.sentinels {
		p.Start()
	}
	for i := range c.nats {
		c.waitHealthy(i)
	}
	c.waitReplicas(c.redisAt[0])
	return c
}

// waitHealthy waits until a NATS server has caught up with the others.
func (c *cluster) waitHealthy(i int) {
	c.t.Helper()
	waittest.Until(c.t, c.nats[i].Name+" is healthy", func() bool {
		resp, err := http.Get("http://" + c.monitors[i] + "/healthz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// waitReplicas waits until the Sentinels agree on the primary and see each other and its replica.
func (c *cluster) waitReplicas(primary string) {
	c.t.Helper()
	for i, addr := range c.watchers {
		s := redis.NewSentinelClient(&redis.Options{Addr: addr, Username: "sentinel", Password: clusterPassword("sentinel")})
		waittest.Until(c.t, c.sentinels[i].Name+" sees the primary, its replica and the other Sentinels", func() bool {
			said, err := s.Master(c.t.Context(), "gancho").Result()
			return err == nil && said["port"] == portOf(primary) && said["num-slaves"] == "1" && said["num-other-sentinels"] == "2"
		})
		_ = s.Close()
	}
}

// url is the NATS_URL of a user.
func (c *cluster) url(user string) string {
	var out []string
	for _, addr := range c.clients {
		out = append(out, "nats://"+user+":"+clusterPassword(user)+"@"+addr)
	}
	return strings.Join(out, ",")
}

// redisURL is the REDIS_URL of a user.
func (c *cluster) redisURL(user string) string {
	return "redis://" + user + ":" + clusterPassword(user) + "@" + strings.Join(c.watchers, ",") + "/0?" + url.Values{
		"master_name": {"gancho"}, "sentinel_username": {"lookup"}, "sentinel_password": {clusterPassword("lookup")},
	}.Encode()
}

// own is the environment of a service: its users.
func (c *cluster) own(service string) []string {
	env := []string{"NATS_URL=" + c.url(service)}
	switch service {
	case userMonitor:
		env = append(env, "REDIS_URL="+c.redisURL("monitor"))
	case userManagement:
		env = append(env, "REDIS_URL="+c.redisURL("management"))
	}
	return env
}

// leader returns the server that leads a stream.
func (c *cluster) leader(js jetstream.JetStream, stream string) (at int) {
	c.t.Helper()
	waittest.Until(c.t, stream+" has a leader", func() bool {
		s, err := js.Stream(c.t.Context(), stream)
		if err != nil || s.CachedInfo().Cluster == nil {
			return false
		}
		at = c.named(s.CachedInfo().Cluster.Leader)
		return at >= 0
	})
	return at
}

// metaLeader returns the server that leads the cluster.
func (c *cluster) metaLeader() (at int) {
	c.t.Helper()
	waittest.Until(c.t, "the cluster has a leader", func() bool {
		resp, err := http.Get("http://" + c.monitors[0] + "/jsz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var js struct {
			Meta struct {
				Leader string `json:"leader"`
			} `json:"meta_cluster"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&js); err != nil {
			return false
		}
		at = c.named(js.Meta.Leader)
		return at >= 0
	})
	return at
}

func (c *cluster) named(server string) int {
	return slices.IndexFunc(c.nats, func(p *testsystem.Process) bool { return p.Name == server })
}

// TestClusterLosesServers runs deploy/cluster under steady load, kills the NATS server that leads, the one
// that leads the cluster, and the Redis primary, starts each again, and compares the ledgers: what the broker
// acknowledged, what the receivers saw, and what the API says.
func TestClusterLosesServers(t *testing.T) {
	t.Parallel()
	began := time.Now()
	passed := func(what string) { t.Logf("%v: %s", time.Since(began).Round(100*time.Millisecond), what) }
	c := startCluster(t)
	passed("three NATS servers, two Redis and three Sentinels are one")
	bin, err := binaries()
	must(t, "build", err)
	s := &system{t: t, token: token}
	s.System = testsystem.New(t, testsystem.Options{Bin: bin, Dir: t.TempDir(), NATSURL: c.url(userPublisher), Own: c.own, Env: []string{
		"STREAM_REPLICAS=3", "RETRY_DELAYS=400ms,400ms,400ms,400ms,400ms", "RETRY_JITTER=0", "ATTEMPT_TIMEOUT=1s",
		"SUSPENSION_WINDOW=1m", "SUSPENSION_MIN_FAILURES=60", "SUSPENSION_MIN_SPAN=5s", "SUSPENSION_DURATION=1s", "SUSPENSION_MAX_DURATION=2s",
	}})
	t.Cleanup(func() {
		for _, p := range s.Services() {
			if t.Failed() {
				t.Logf("last lines of %s:\n%s", p.Name, p.Output())
			}
		}
		s.Stop()
	})
	s.AddDispatcher()
	js := func(user string) jetstream.JetStream {
		nc, err := nats.Connect(c.url(user), nats.CustomInboxPrefix("_INBOX_"+user), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
		must(t, user+" connects", err)
		t.Cleanup(nc.Close)
		out, err := jetstream.New(nc)
		must(t, user+"'s JetStream", err)
		return out
	}
	s.js = js(userCRM)
	operator := js(userOperator)

	w := newWitness()
	repaired := make(chan struct{})
	receivers := []*receiver{
		newReceiver(t, w.watch(succeed)),
		newReceiver(t, w.watch(func(rw http.ResponseWriter, attempt string) {
			if rw.Header().Get(seenID) < "8" && attempt < "3" { // half of them
				fail(rw, attempt)
			}
		})),
		newReceiver(t, w.watch(func(rw http.ResponseWriter, attempt string) {
			select {
			case <-repaired:
			default:
				fail(rw, attempt)
			}
		})),
	}
	var hooks []hook
	for _, rc := range receivers {
		hooks = append(hooks, s.register(dealCreated, rc.URL))
	}
	s.settle()

	// The load goes on while servers die; publish repeats until the broker acknowledged.
	ctx, stop := context.WithCancel(t.Context())
	loaded := make(chan []string, 1)
	go func() {
		var txs []string
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			txs = append(txs, s.publish(dealCreated))
			<-tick.C
		}
		loaded <- txs
	}()
	step := func(what string) {
		t.Helper()
		seen := receivers[0].total()
		waittest.Until(t, "deliveries go on: "+what, func() bool { return receivers[0].total() >= seen+10 })
	}
	passed("services are ready")
	step("before anything")
	kill := func(what string, i int) {
		t.Helper()
		c.nats[i].Kill()
		step(what + " killed")
		passed(what + " killed: deliveries go on")
		c.nats[i].Start()
		c.waitHealthy(i)
		step(what + " back")
		passed(what + " started: healthy")
	}
	kill("the leader of NOTIFICATIONS", c.leader(operator, "NOTIFICATIONS"))
	s.Until("the failing URL is suspended", func() bool {
		var h hook
		status, err := s.try(http.MethodGet, "/crm/v2/webhooks/"+hooks[2].ID, nil, &h)
		return err == nil && status == http.StatusOK && h.Status == "suspended"
	})

	c.redis[0].Kill()
	step("the Redis primary killed")
	c.waitPrimary(c.redisAt[1])
	listed := func() bool {
		status, err := s.try(http.MethodGet, "/crm/v2/webhooks/"+hooks[0].ID+"/notifications", nil, nil)
		return err == nil && status == http.StatusOK
	}
	s.Until("lists of notifications come from the new primary", listed)
	c.redis[0].Start()
	c.waitReplicas(c.redisAt[1])

	kill("the leader of the cluster", c.metaLeader())
	stop()
	txs := <-loaded
	close(repaired)

	published := map[string]string{}
	for _, tx := range txs {
		owe(published, hooks, tx)
	}
	passed("the load is over")
	s.js = operator
	l := s.rest(published, w, receivers, 2*time.Minute)
	l.crashes = true
	passed("everything has ended")
	problems, repeated := audit(l)
	for _, p := range problems[:min(20, len(problems))] {
		t.Error(p)
	}
	t.Logf("%d notifications, %d attempts repeated, %d problems", len(published), repeated, len(problems))
	s.waitBooks(`gancho_notifications_opened{}`, float64(len(published)))
	s.waitBooks(`gancho_unaccounted_notifications{}`, 0)
	for _, p := range s.Services() {
		for line := range strings.Lines(p.Log()) {
			if strings.Contains(line, "while services ran") || strings.Contains(line, "paused until") || strings.Contains(line, "Violation") {
				t.Errorf("%s: %s", p.Name, line)
			}
		}
	}
}

// waitPrimary waits until the Sentinels name another primary.
func (c *cluster) waitPrimary(want string) {
	c.t.Helper()
	s := redis.NewSentinelClient(&redis.Options{Addr: c.watchers[0], Username: "lookup", Password: clusterPassword("lookup")})
	defer s.Close()
	waittest.Until(c.t, "another primary", func() bool {
		addr, err := s.GetMasterAddrByName(c.t.Context(), "gancho").Result()
		return err == nil && len(addr) == 2 && net.JoinHostPort(addr[0], addr[1]) == want
	})
}
