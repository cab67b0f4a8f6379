package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/net/dns/dnsmessage"

	"gancho/services/internal/testsystem"
)

var outageFor = flag.Duration("outage", 3*time.Second, "how long TestOutages takes each dependency away")

// nameServer answers every name with 127.0.0.1 while it is up.
type nameServer struct {
	t    *testing.T
	addr string

	mu   sync.Mutex
	conn net.PacketConn
}

func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	d := &nameServer{t: t, addr: "127.0.0.1:0"}
	d.up()
	t.Cleanup(d.down)
	return d
}

func (d *nameServer) up() {
	d.t.Helper()
	c, err := net.ListenPacket("udp4", d.addr)
	if err != nil {
		d.t.Fatalf("name server: %v", err)
	}
	d.addr = c.LocalAddr().String()
	d.mu.Lock()
	d.conn = c
	d.mu.Unlock()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			if q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
				}}
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	}()
}

func (d *nameServer) down() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		_ = d.conn.Close()
	}
	d.conn = nil
}

// TestOutages takes each dependency away for a while under steady load, gone (connections are refused) and
// silent (they hang). Nothing exits, nothing spins, the logs stay short, nothing is lost, and everything goes
// on within seconds when it is back. With -outage 10m it is the long form, worth a run before a release.
func TestOutages(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T) (*system, []guest) {
		t.Helper()
		d := startNameServer(t)
		s := newSystem(t, "EGRESS_DNS_SERVER="+d.addr, "ATTEMPT_TIMEOUT=1s",
			// Six attempts outlast the outage, and the next one is not long after it.
			"RETRY_DELAYS="+strings.TrimSuffix(strings.Repeat(fmt.Sprint(*outageFor/4, ","), 5), ","))
		return s, []guest{
			{"NATS gone", outage{away: s.Broker.Kill, back: s.StartBroker}.test},
			{"NATS silent", outage{away: func() { s.Broker.Signal(syscall.SIGSTOP) }, back: func() { s.Broker.Signal(syscall.SIGCONT) }}.test},
			{"Redis gone", outage{s.redis.Kill, s.redis.Restart, true}.test},
			{"Redis silent", outage{s.redis.Pause, s.redis.Continue, true}.test},
			{"DNS gone", outage{away: d.down, back: d.up}.test},
		}
	}
	if *outageFor <= time.Minute {
		s, outages := start(t)
		share(t, s, outages...)
		return
	}
	for i := range 5 { // the long form has no time for one after the other
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			s, outages := start(t)
			share(t, s, outages[i])
		})
	}
}

// outage is what TestOutages takes away.
type outage struct {
	away, back func()
	delivers   bool // meanwhile
}

func (outage outage) test(t *testing.T, s *system) {
	rc := newReceiver(t, func(w http.ResponseWriter, _ string) { w.Header().Set("Connection", "close") }) // each request needs a name
	h := s.register(dealCreated, strings.Replace(rc.URL, "127.0.0.1", "receiver.example", 1))
	s.settle()
	first := ids(dealCreated, h, s.publishMany(5))
	s.waitAll(first, "delivered")

	cpu, said := map[*testsystem.Process]time.Duration{}, map[*testsystem.Process]map[string]int{}
	for _, p := range s.Services() {
		cpu[p], said[p] = p.CPU(), messages(p)
	}
	outage.away()
	acknowledged := s.tryPublishing(*outageFor)
	if outage.delivers {
		s.waitAll(ids(dealCreated, h, acknowledged), "delivered")
	}
	for _, p := range s.Services() {
		busy := float64(p.CPU()-cpu[p]) / float64(*outageFor)
		lines := 0
		for m, n := range messages(p) {
			if n -= said[p][m]; n > 0 {
				t.Logf("%s: %d times %s", p.Name, n, m)
				lines += n
			}
		}
		t.Logf("%s: %.1f %% of a processor, %d lines", p.Name, busy*100, lines)
		if busy > 0.5 {
			t.Errorf("%s kept %.0f %% of a processor busy meanwhile", p.Name, busy*100)
		}
		if most := 10 + int(outageFor.Minutes()*10); lines > most {
			t.Errorf("%s logged %d lines meanwhile, want at most %d", p.Name, lines, most)
		}
	}
	outage.back()
	began := time.Now()
	s.WaitReady()
	t.Logf("ready after %v", time.Since(began).Round(10*time.Millisecond))
	id := ids(dealCreated, h, s.publishMany(1))
	s.waitAll(id, "delivered")
	t.Logf("a new event delivered after %v", time.Since(began).Round(10*time.Millisecond))
	if !outage.delivers {
		<-time.After(*outageFor / 4) // the longest that a retry then waits
	}
	s.waitAll(ids(dealCreated, h, acknowledged), "delivered")
	t.Logf("%d acknowledged meanwhile, the last delivered after %v", len(acknowledged), time.Since(began).Round(10*time.Millisecond))
}

// messages counts what the process logged, by its text, but for the one line of each attempt and request.
func messages(p *testsystem.Process) map[string]int {
	out := map[string]int{}
	for line := range strings.Lines(p.Log()) {
		var l struct{ Msg string }
		if json.Unmarshal([]byte(line), &l) != nil {
			l.Msg = line
		}
		if l.Msg != "attempt" && l.Msg != "request" {
			out[l.Msg]++
		}
	}
	return out
}

// tryPublishing publishes four events a second, without insisting, and returns those that were acknowledged.
func (s *system) tryPublishing(during time.Duration) (acknowledged []string) {
	end := time.After(during)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return acknowledged
		case <-tick.C:
		}
		id := uuid.NewString()
		ctx, cancel := context.WithTimeout(s.t.Context(), 200*time.Millisecond)
		_, err := s.js.Publish(ctx, "crm.events."+account+"."+dealCreated, fmt.Appendf(nil, `{"document":{"id":"`+documentID+`"},"transaction_uuid":%q}`, id), jetstream.WithMsgID(id))
		cancel()
		if err == nil {
			acknowledged = append(acknowledged, id)
		}
	}
}

// TestStopsWithoutBrokerAndRedis: with both away at once, gone or silent, every service says why it is not ready, and
// stops in time.
func TestStopsWithoutBrokerAndRedis(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(*system){
		"gone":   func(s *system) { s.Broker.Kill(); s.redis.Kill() },
		"silent": func(s *system) { s.Broker.Signal(syscall.SIGSTOP); s.redis.Pause() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t)
			rc := newReceiver(t, succeed)
			s.waitAll(ids(dealCreated, s.register(dealCreated, rc.URL), s.publishMany(1)), "delivered")
			away(s)
			s.tryPublishing(2 * time.Second) // they find out
			for _, p := range s.Services() {
				s.Until(p.Name+" answers /readyz", func() bool {
					status, body := s.readyz(p)
					return status == http.StatusOK && name == "silent" || status == http.StatusServiceUnavailable && (name == "silent" || strings.Contains(body, "connection refused"))
				})
			}
			for _, p := range s.Services() {
				began := time.Now()
				s.stopCleanly(p)
				t.Logf("%s: stopped after %v", p.Name, time.Since(began))
			}
			if name == "silent" {
				s.Broker.Signal(syscall.SIGCONT)
				s.redis.Continue()
			}
		})
	}
}
