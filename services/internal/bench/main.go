// Bench measures Gancho on loopback: all services, broker and Redis as separate processes, a receiver in
// a process of its own, and this process as the CRM. It prints deliveries per second, latency, processor
// time for 10,000 deliveries summed over all our processes and the brokers, and the ratio to a bare HTTP
// client's rate against the same receiver in the same run.
package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/client"
	"gancho/services/internal/testsystem"
)

// fatal ends the benchmark; the test system calls it when a program does not come up.
type fatal struct{ cleanup func() }

func (f *fatal) Helper() {}

func (f *fatal) Context() context.Context { return context.Background() }

func (f *fatal) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	f.cleanup()
	os.Exit(1)
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "receiver" {
		receive()
		return
	}
	only := flag.String("only", "", "run the scenarios whose name holds this; those of growth (scale), of stores (shares) and of kills (crash) only if it begins so")
	syncs := flag.String("sync", "default,always", "sync_interval settings of the broker")
	env := flag.String("env", "", "environment for the services, separated by spaces")
	cost := flag.Bool("cost", false, "print the cost of one delivery in each process, at the broker and in Redis, for the scenarios of latency and throughput")
	profile := flag.String("profile", "", "write a CPU profile of the dispatcher during throughput to this file")
	bin := flag.String("bin", "", "use the programs in this folder instead of building them; built ones are left there when it is empty")
	webhooks := flag.Int("webhooks", 100_000, "how many webhooks api and scale: webhooks load, at least 1,000")
	parked := flag.Int("parked", 100_000, "how many notifications scale: parked has parked")
	attempts := flag.Int("attempts", 1_000_000, "how many attempts the api scenario loads")
	flag.Parse()
	load := load{webhooks: max(*webhooks, 1_000), attempts: *attempts, parked: *parked}
	f := &fatal{cleanup: func() {}}
	dir, err := os.MkdirTemp("", "gancho-bench-")
	if err != nil {
		f.Fatalf("%v", err)
	}
	f.cleanup = func() { _ = os.RemoveAll(dir) }
	defer f.cleanup()
	fmt.Printf("%s, %d cores, %s; %s\n\n", cpuName(), runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format(time.DateOnly))
	programs := cmp.Or(*bin, dir)
	if _, err := os.Stat(filepath.Join(programs, "nats-server")); err != nil {
		if err := testsystem.Build(programs, false); err != nil {
			f.Fatalf("%v", err)
		}
	}
	if strings.HasPrefix(*only, "scale") {
		scale(f, programs, dir, *only, strings.Fields(*env), load)
		return
	}
	if strings.HasPrefix(*only, "shares") {
		shares(f, programs, dir, *only, strings.Fields(*env))
		return
	}
	for sync := range strings.SplitSeq(*syncs, ",") {
		b := newBench(f, programs, dir, sync, strings.Fields(*env))
		b.profile, b.load, b.cost = *profile, load, *cost
		b.run(*only)
		b.stop()
	}
	traces(f, programs, dir, *only, strings.Fields(*env))
}

// traces measures what recording and sending spans costs: the same load without and with a collector, which
// takes everything and keeps nothing. Its own work is not counted.
func traces(f *fatal, bin, dir, only string, env []string) {
	if !strings.Contains("traces off, traces on", only) {
		return
	}
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer sink.Close()
	for _, s := range []struct{ name, collector string }{{"traces off", ""}, {"traces on", sink.URL}} {
		b := newBench(f, bin, dir, "default", append(slices.Clone(env), "OTEL_EXPORTER_OTLP_ENDPOINT="+s.collector))
		b.scenario(s.name, "crm_task_created", 10, 2000, 150) // below the limit of the slower one: processor time is compared
		b.stop()
	}
}

func cpuName() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

// load is how much the scenarios of growth and the api scenario store.
type load struct{ webhooks, attempts, parked int }

type bench struct {
	f        *fatal
	sync     string
	profile  string
	system   *testsystem.System
	redis    *testsystem.Process
	receiver *testsystem.Process
	client   *client.Client
	target   string // host:port of the receiver
	dir      string // of the broker's store and the key file
	redisURL string

	load    load
	cost    bool              // print the cost of a delivery
	ops     map[string]string // addresses of the services' ops servers, by name
	crashed bool              // the webhooks of the crash scenarios are registered

	js      jetstream.JetStream
	nc      *nats.Conn
	ceiling float64
	last    map[string]time.Duration // processor time when the scenario began
}

func newBench(f *fatal, bin, dir, sync string, env []string) *bench {
	b := &bench{f: f, sync: sync}
	work, err := os.MkdirTemp(dir, "run-")
	if err != nil {
		f.Fatalf("%v", err)
	}
	redis, err := exec.LookPath("redis-server")
	if err != nil {
		f.Fatalf("install redis-server (make bench does it)")
	}
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatalf("%v", err)
	}
	_, port, _ := net.SplitHostPort(socket.Addr().String())
	_ = socket.Close()
	b.redis = testsystem.NewProcess(f, "redis-server", nil, redis, "--bind", "127.0.0.1", "--port", port, "--dir", work, "--appendonly", "yes", "--save", "")
	b.redis.Start()
	b.redis.Find(`(Ready to accept connections)`)
	self, err := os.Executable()
	if err != nil {
		f.Fatalf("%v", err)
	}
	b.receiver = testsystem.NewProcess(f, "receiver", nil, self, "receiver")
	b.receiver.Start()
	b.target = b.receiver.Find(`^listening on (.*)$`)
	b.dir, b.redisURL = work, "redis://127.0.0.1:"+port
	options := testsystem.Options{
		Bin: bin, Dir: work, RedisURL: b.redisURL, Env: append([]string{
			"SUSPENSION_MIN_FAILURES=1000000", "GOGC=400", "API_TOKENS=" + testsystem.Account + ":" + testsystem.Token + ",*:" + operatorToken,
		}, env...),
		Own: func(service string) []string { return []string{fmt.Sprintf("GOMEMLIMIT=%dMiB", memory[service].soft)} },
	}
	if sync != "default" {
		options.Sync = sync
	}
	b.system = testsystem.New(f, options)
	b.ops = map[string]string{}
	for _, p := range b.system.Services() { // now: their output is not kept for ever
		b.ops[p.Name] = b.system.Ops(p)
	}
	if b.client, err = client.New(client.Config{URL: b.system.APIURL, Token: testsystem.Token}); err != nil {
		f.Fatalf("%v", err)
	}
	if b.nc, err = nats.Connect(b.system.NATSURL); err != nil {
		f.Fatalf("%v", err)
	}
	if b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncMaxPending(1000)); err != nil {
		f.Fatalf("%v", err)
	}
	return b
}

func (b *bench) stop() {
	b.nc.Close()
	b.system.Stop()
	b.redis.Kill()
	b.receiver.Kill()
}

func (b *bench) run(only string) {
	fmt.Printf("sync_interval %s\n", b.sync)
	fmt.Printf("%-28s %10s %9s %9s %9s %12s %12s %10s\n", "scenario", "deliv/s", "of raw", "p50 ms", "p99 ms", "CPU s/10k", "receiver", "peak MiB")
	for _, s := range []struct {
		name string
		run  func(name string)
	}{
		{"raw client, c=64", b.raw},
		{"latency 1 x 200/s", func(n string) { b.scenario(n, "crm_deal_created", 1, 4000, 200) }},
		{"throughput 10 webhooks", func(n string) { b.scenario(n, "crm_task_created", 10, 3000, 0) }},
		{"fan-out 50 webhooks", func(n string) { b.scenario(n, "crm_contact_created", 50, 600, 0) }},
		{"raw client again", b.raw},
		{"isolation: 6 of 20 hang, 20 events/s each", func(n string) { b.isolation(n, "hang", 20) }},
		{"isolation: 6 of 20 hang, 40 events/s each", func(n string) { b.isolation(n, "hang", 40) }},
		{"isolation: 6 of 20 fail, 20 events/s each", func(n string) { b.isolation(n, "fail", 20) }},
		{"isolation: 6 of 20 fail, 40 events/s each", func(n string) { b.isolation(n, "fail", 40) }},
		{"isolation: one takes 4.9 s at 500 events/s", b.slow},
		{"isolation: 500 drip a byte a second", b.drip},
		{"new webhooks", b.fresh},
		{"crash: dispatcher", func(n string) { b.crash(n, func(s *testsystem.System) *testsystem.Process { return s.Dispatchers[0] }) }},
		{"crash: publisher", func(n string) { b.crash(n, func(s *testsystem.System) *testsystem.Process { return s.Publisher }) }},
		{"crash: suspension-monitor", func(n string) { b.crash(n, func(s *testsystem.System) *testsystem.Process { return s.Monitor }) }},
		{"crash: management", func(n string) { b.crash(n, func(s *testsystem.System) *testsystem.Process { return s.Management }) }},
		{"api: lists and pages", b.api}, // the last: it ends the other services
	} {
		if (strings.HasPrefix(s.name, "isolation") || strings.HasPrefix(s.name, "api")) && b.sync != "default" {
			continue
		}
		if strings.HasPrefix(s.name, "crash") != strings.HasPrefix(only, "crash") {
			continue
		}
		if strings.Contains(s.name, only) {
			s.run(s.name)
		}
	}
	fmt.Println()
}

// memory is what docker-compose.yml grants each service, in MiB: GOMEMLIMIT and mem_limit. GOGC is set as there too.
var memory = map[string]struct{ soft, hard int64 }{
	"publisher": {430, 512}, "dispatcher": {850, 1024}, "suspension-monitor": {215, 256}, "management": {650, 768},
}

// scenario publishes events of one name, at a rate or as fast as the broker takes them, to so many
// webhooks, and waits until everything is delivered and accounted for.
func (b *bench) scenario(name, eventName string, webhooks, events, rate int) {
	for i := range webhooks {
		b.register(eventName, fmt.Sprintf("http://%s/ok/%s/%d", b.target, eventName, i))
	}
	b.reset()
	var before *costs
	if b.cost {
		before = b.costs()
	}
	b.cpu()
	receiver := b.receiver.CPU()
	if b.profile != "" && strings.HasPrefix(name, "throughput") {
		go b.writeProfile()
	}
	began := time.Now()
	b.publishAt(eventName, events, rate)
	want := events * webhooks
	r := b.waitFor(want)
	took := time.Duration(r.Last - began.UnixNano())
	b.settle()
	var cpu time.Duration
	spent := map[string]time.Duration{}
	for _, p := range b.processes() {
		spent[p.Name] = p.CPU() - b.last[p.Name]
		cpu += spent[p.Name]
	}
	receiver = b.receiver.CPU() - receiver
	perSecond := float64(want) / took.Seconds()
	of := "-"
	if b.ceiling > 0 {
		of = fmt.Sprintf("%.0f %%", 100*perSecond/b.ceiling)
	}
	per10k := func(d time.Duration) float64 { return d.Seconds() * 10_000 / float64(want) }
	fmt.Printf("%-28s %10.0f %9s %9.1f %9.1f %12.2f %12.2f %10d\n", name, perSecond, of, r.P50, r.P99, per10k(cpu), per10k(receiver), b.memory()>>20)
	fmt.Printf("%30s", "CPU s/10k of")
	for _, p := range b.processes() {
		fmt.Printf(" %s %.2f", p.Name, per10k(spent[p.Name]))
	}
	fmt.Println()
	model := per10k(spent[b.system.Management.Name] + spent[b.redis.Name])
	verdict := "within"
	if model > readModelLimit {
		verdict = "OVER"
	}
	fmt.Printf("%30s %.2f (management and Redis), %s the limit of %.2f\n", "of it the read model", model, verdict, readModelLimit)
	if r.Requests > want {
		fmt.Printf("%30s %d\n", "duplicates:", r.Requests-want)
	}
	if b.cost {
		b.costs().print(before, want)
	}
}

// readModelLimit bounds the cost of the delivery log: processor seconds for 10,000 deliveries. Management does
// nothing else here, and Redis also holds the error windows, which are counted too.
const readModelLimit = 1.0

func (b *bench) processes() []*testsystem.Process {
	return append(b.system.Services(), b.system.Broker, b.redis)
}

// cpu notes every process's processor time, for the difference.
func (b *bench) cpu() {
	b.last = map[string]time.Duration{}
	for _, p := range b.processes() {
		b.last[p.Name] = p.CPU()
	}
}

func (b *bench) memory() (sum int64) {
	for _, p := range b.processes() {
		sum += p.PeakMemory()
	}
	return sum
}

// settle waits until every consumer of the broker has caught up, so that work put off is counted.
func (b *bench) settle() {
	for deadline := time.Now().Add(30 * time.Second); b.lag() > 0 && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
}

// lag is how many messages the consumers have not settled yet; retries that wait for their time are not meant.
func (b *bench) lag() (lag uint64) {
	for _, stream := range []string{"CRM_EVENTS", "NOTIFICATIONS", "ATTEMPTS", "RETRIES"} {
		s, err := b.js.Stream(context.Background(), stream)
		if err != nil {
			continue
		}
		for c := range s.ListConsumers(context.Background()).Info() {
			lag += c.NumPending
			if stream != "RETRIES" {
				lag += uint64(c.NumAckPending) //nolint:gosec // a count
			}
		}
	}
	return lag
}

func (b *bench) writeProfile() {
	resp, err := http.Get(b.system.Ops(b.system.Dispatchers[0]) + "/debug/pprof/profile?seconds=5")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	var buf bytes.Buffer
	_, _ = buf.ReadFrom(resp.Body)
	_ = os.WriteFile(filepath.Clean(b.profile), buf.Bytes(), 0o600)
}
