package cli

import (
	"cmp"
	"context"
	"net"
	"strings"
	"sync"
	"time"

	"gancho/pkg/service"
)

type statusCmd struct {
	Addrs []string `arg:"" optional:"" placeholder:"HOST:PORT" help:"OPS_ADDR of each process (GANCHO_OPS_ADDRS, separated by commas; OPS_ADDR). A name with several addresses is asked at each."`
}

func (statusCmd) Help() string {
	return `Exit code 1 says that a process is not ready or cannot be reached.

Example:

	docker compose run --rm gancho status`
}

func (c statusCmd) Run(a *app) error {
	var cfg struct {
		Service service.Config
		Addrs   []string `env:"GANCHO_OPS_ADDRS" envSeparator:","`
	}
	service.Load(&cfg, a.Environ)
	addrs := c.Addrs
	if len(addrs) == 0 {
		addrs = cfg.Addrs
	}
	if len(addrs) == 0 {
		addrs = []string{cfg.Service.OpsAddr}
	}
	ctx := context.Background() // each question ends by itself
	var at [][2]string          // name and address
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return usage("%q is not host:port", addr)
		}
		for _, ip := range lookUp(ctx, cmp.Or(host, "127.0.0.1")) {
			at = append(at, [2]string{addr, net.JoinHostPort(ip, port)})
		}
	}
	rows := make([][]string, len(at))
	var all sync.WaitGroup
	var mu sync.Mutex
	for i, p := range at {
		all.Go(func() {
			state, good := describe(ctx, p[1])
			mu.Lock()
			defer mu.Unlock()
			rows[i] = []string{p[0], p[1], state}
			if !good {
				a.code = exitError
			}
		})
	}
	all.Wait()
	return a.rows(append([][]string{{"PROCESS", "ADDRESS", "STATE"}}, rows...))
}

// lookUp returns the addresses of a host, or the host where there are none.
func lookUp(ctx context.Context, host string) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil || len(ips) == 0 {
		return []string{host}
	}
	return ips
}

// describe says how a process is, and whether it is ready.
func describe(ctx context.Context, addr string) (state string, good bool) {
	s, err := service.Ask(ctx, addr)
	switch {
	case err != nil:
		return "not reachable: " + err.Error(), false
	case !s.Ready:
		return "not ready: " + strings.Join(s.Reasons, "; "), false
	case len(s.Degraded) > 0:
		return "ready, degraded: " + strings.Join(s.Degraded, "; "), true
	}
	return "ready", true
}
