package testsystem

import (
	"cmp"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gancho/pkg/seal"
	"gancho/pkg/waittest"
)

// Account and Token are those of the system's one customer.
const (
	Account = "acme"
	Token   = "test-token-of-acme"
)

// System is all of Gancho as real processes. Redis is the caller's.
type System struct {
	Broker      *Process // nil when it is the caller's too
	Publisher   *Process
	Monitor     *Process
	Management  *Process
	Dispatchers []*Process
	NATSURL     string
	MonitorURL  string // of the broker's monitoring; set by StartBroker
	APIURL      string

	t    T
	bin  string
	opts Options
	env  []string
	port string
}

// Options of a system.
type Options struct {
	Bin      string   // where Build put the programs
	Dir      string   // for the broker's store and the key file
	Store    string   // for the broker's store instead of Dir
	MaxStore string   // max_file_store of the broker; "" is its default, three quarters of the disk
	RedisURL string   // of a running Redis
	NATSURL  string   // of a running broker; "" starts one
	Sync     string   // sync_interval of the broker that is started; "" is its default
	Env      []string // for every service, over the test system's own

	Own func(service string) []string // environment of one service, over Env; may be nil
}

// New starts the broker and every service and waits until all are ready.
func New(t T, o Options) *System {
	t.Helper()
	o.Store = cmp.Or(o.Store, o.Dir)
	s := &System{t: t, bin: o.Bin, opts: o, NATSURL: o.NATSURL}
	if s.NATSURL == "" {
		s.Broker = NewProcess(t, "nats-server", nil, filepath.Join(o.Bin, "nats-server"), "-c", s.configureBroker(o.MaxStore))
		s.StartBroker()
	}
	keys := filepath.Join(o.Dir, "encryption.key")
	if err := seal.New().Write(keys); err != nil {
		t.Fatalf("key file: %v", err)
	}
	s.env = append([]string{
		"NATS_URL=" + s.NATSURL, "REDIS_URL=" + o.RedisURL, "ENCRYPTION_KEY_FILE=" + keys, "API_TOKENS=" + Account + ":" + Token,
		"OPS_ADDR=127.0.0.1:0", "HTTP_ADDR=127.0.0.1:0", "API_RATE_LIMIT=1000000", "ALLOW_HTTP_URLS=true", "EGRESS_ALLOW_CIDRS=127.0.0.0/8", "EGRESS_ALLOW_PORTS=*",
	}, o.Env...)
	s.Publisher, s.Monitor, s.Management = s.service("publisher"), s.service("suspension-monitor"), s.service("management")
	s.Dispatchers = []*Process{s.service("dispatcher")}
	for _, p := range s.Services() {
		p.Start()
	}
	s.WaitReady()
	return s
}

// configureBroker writes the broker's configuration, which counts at its next start, and returns the file.
func (s *System) configureBroker(maxStore string) string {
	s.t.Helper()
	text := fmt.Sprintf("listen: 127.0.0.1:-1\nhttp: 127.0.0.1:-1\nmax_payload: 2MB\njetstream { store_dir: %q", filepath.Join(s.opts.Store, "jetstream"))
	if s.opts.Sync != "" {
		text += ", sync_interval: " + s.opts.Sync
	}
	if maxStore != "" {
		text += ", max_file_store: " + maxStore
	}
	file := filepath.Join(s.opts.Dir, "nats.conf")
	if err := os.WriteFile(file, []byte(text+" }\n"), 0o600); err != nil {
		s.t.Fatalf("broker configuration: %v", err)
	}
	return file
}

// LimitStore sets the broker's max_file_store from its next start on.
func (s *System) LimitStore(to string) {
	s.t.Helper()
	s.configureBroker(to)
}

// Attach waits until a process that runs all services in one (gancho serve) is ready, and returns a system
// that knows its API only.
func Attach(t T, p *Process) *System {
	t.Helper()
	s := &System{t: t, Management: p}
	s.ready(p)
	s.APIURL = "http://" + p.Find(`"msg":"serving".*"http_addr":"([^"]+)"`)
	return s
}

// StartBroker starts the broker, after a Kill on the same port.
func (s *System) StartBroker() {
	s.t.Helper()
	if s.port != "" && len(s.Broker.Args) == 3 {
		s.Broker.Args = append(s.Broker.Args, "-p", s.port)
	}
	s.Broker.Start()
	addr := s.Broker.Find(`Listening for client connections on (127\.0\.0\.1:\d+)`)
	s.NATSURL = "nats://" + addr
	s.MonitorURL = "http://" + s.Broker.Find(`Starting http monitor on (127\.0\.0\.1:\d+)`)
	_, s.port, _ = strings.Cut(addr, ":")
}

func (s *System) service(name string) *Process {
	env := s.env
	if s.opts.Own != nil {
		env = append(slices.Clone(env), s.opts.Own(name)...)
	}
	return NewProcess(s.t, name, env, filepath.Join(s.bin, name))
}

// AddDispatcher starts one more dispatcher and waits until it is ready.
func (s *System) AddDispatcher() *Process {
	s.t.Helper()
	p := s.service("dispatcher")
	s.Dispatchers = append(s.Dispatchers, p)
	p.Start()
	s.ready(p)
	return p
}

// StartFrom starts a service from another folder of programs and waits until it is ready. It is the caller's to end.
func (s *System) StartFrom(bin, name string) *Process {
	s.t.Helper()
	p := NewProcess(s.t, name, s.env, filepath.Join(bin, name))
	p.Start()
	s.ready(p)
	return p
}

// Services returns the processes that are ours.
func (s *System) Services() []*Process {
	return append([]*Process{s.Publisher, s.Monitor, s.Management}, s.Dispatchers...)
}

// WaitReady waits until every running service is ready and finds the API's address.
func (s *System) WaitReady() {
	s.t.Helper()
	for _, p := range s.Services() {
		if p.Running() {
			s.ready(p)
		}
	}
	if s.Management.Running() {
		s.APIURL = "http://" + s.Management.Find(`"msg":"serving".*"http_addr":"([^"]+)"`)
	}
}

// Ops returns the ops address of a service.
func (s *System) Ops(p *Process) string {
	s.t.Helper()
	return "http://" + p.Find(`"msg":"started".*"ops_addr":"([^"]+)"`)
}

func (s *System) ready(p *Process) {
	s.t.Helper()
	url := s.Ops(p) + "/readyz"
	s.Until(p.Name+" is ready", func() bool {
		resp, err := http.Get(url) //nolint:gosec // a test on loopback
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Until waits until it is so, for two minutes at most.
func (s *System) Until(what string, is func() bool) { s.t.Helper(); waittest.Until(s.t, what, is) }

// Stop ends everything.
func (s *System) Stop() {
	for _, p := range s.Services() {
		p.Kill()
	}
	if s.Broker != nil {
		s.Broker.Kill()
	}
}
