package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"gancho/pkg/dnstest"
	"gancho/pkg/waittest"
)

// zone answers from a table that a test may change at any time. Names are fully qualified.
type zone struct {
	addr string

	mu      sync.Mutex
	answers map[string]func(nth int) []string // addresses, or one name (CNAME)
	asked   map[string]int                    // by name and type
}

func newZone(tb testing.TB, answers map[string]func(nth int) []string) *zone {
	tb.Helper()
	s := &zone{answers: answers, asked: make(map[string]int)}
	s.addr = dnstest.Start(tb, s.answer)
	return s
}

func (s *zone) answer(q dnsmessage.Question, m *dnsmessage.Message) bool {
	name := q.Name.String()
	s.mu.Lock()
	key := name + " " + q.Type.String()
	s.asked[key]++
	nth := s.asked[key]
	s.mu.Unlock()
	for {
		f := s.answers[name]
		if f == nil {
			if len(m.Answers) == 0 {
				m.RCode = dnsmessage.RCodeNameError
			}
			return true
		}
		next := ""
		for _, text := range f(nth) {
			head := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: q.Class} // TTL 0
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil:
				next = text
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(text)}})
			case a.Is4() && q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
			case a.Is6() && q.Type == dnsmessage.TypeAAAA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
			}
		}
		if next == "" {
			return true
		}
		name = next
	}
}

func (s *zone) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for key := range s.asked {
		out = append(out, key)
	}
	slices.Sort(out)
	return out
}

func always(list ...string) func(int) []string { return func(int) []string { return list } }

// listeners accept on several addresses with one port and count.
type listeners struct {
	port string

	mu       sync.Mutex
	accepted map[string]int // by address
}

func listen(tb testing.TB, addrs ...string) *listeners {
	tb.Helper()
	var wg sync.WaitGroup
	tb.Cleanup(wg.Wait)
	for range 20 { // until one port is free on all of them
		l := &listeners{port: "0", accepted: make(map[string]int)}
		var lns []net.Listener
		for _, addr := range addrs {
			ln, err := net.Listen("tcp", net.JoinHostPort(addr, l.port))
			if err != nil {
				break
			}
			_, l.port, _ = net.SplitHostPort(ln.Addr().String())
			lns = append(lns, ln)
		}
		for _, ln := range lns {
			if len(lns) < len(addrs) {
				_ = ln.Close()
				continue
			}
			tb.Cleanup(func() { _ = ln.Close() })
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					host, _, _ := net.SplitHostPort(c.LocalAddr().String())
					l.mu.Lock()
					l.accepted[host]++
					l.mu.Unlock()
					_ = c.Close()
				}
			})
		}
		if len(lns) == len(addrs) {
			return l
		}
	}
	tb.Fatalf("no port is free on all of %v", addrs)
	return nil
}

func (l *listeners) count(addr string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted[addr]
}

func dial(p *Policy, addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := p.DialContext(ctx, "tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// TestNames: 127.0.0.2 is open, 127.0.0.3 and ::1 are not. Whatever names resolve to, and whenever, only
// the open one is reached.
func TestNames(t *testing.T) {
	t.Parallel()
	const open, closed = "127.0.0.2", "127.0.0.3"
	for _, tc := range []struct {
		name    string
		answers map[string]func(int) []string
		host    string
		dials   int
		reached int // of dials
	}{
		{"open", map[string]func(int) []string{"hook.test.": always(open)}, "hook.test", 3, 3},
		{"closed", map[string]func(int) []string{"hook.test.": always(closed)}, "hook.test", 3, 0},
		{"rebinding", map[string]func(int) []string{"hook.test.": func(nth int) []string {
			if nth == 1 {
				return []string{open}
			}
			return []string{closed}
		}}, "hook.test", 7, 1},
		{"changing for ever", map[string]func(int) []string{"hook.test.": func(nth int) []string {
			return []string{[]string{open, closed}[nth%2]}
		}}, "hook.test", 50, 25},
		{"alias of a closed one", map[string]func(int) []string{"hook.test.": always("redis."), "redis.": always(closed)}, "hook.test", 3, 0},
		{"long alias", map[string]func(int) []string{"hook.test.": always("a.test."), "a.test.": always("b.test."), "b.test.": always(closed)}, "hook.test", 3, 0},
		{"alias of an open one", map[string]func(int) []string{"hook.test.": always("a.test."), "a.test.": always(open)}, "hook.test", 3, 3},
		{"mixed, closed first", map[string]func(int) []string{"hook.test.": always(closed, open)}, "hook.test", 250, 250},
		{"mixed, closed last", map[string]func(int) []string{"hook.test.": always(open, closed)}, "hook.test", 250, 250},
		{"mixed with IPv6", map[string]func(int) []string{"hook.test.": always("::1", open)}, "hook.test", 250, 250},
		{"mixed with IPv6, all closed", map[string]func(int) []string{"hook.test.": always("::1", closed)}, "hook.test", 100, 0},
		{"IPv6 loopback", map[string]func(int) []string{"hook.test.": always("::1")}, "hook.test", 3, 0},
		{"mapped", map[string]func(int) []string{"hook.test.": always("::ffff:127.0.0.3")}, "hook.test", 3, 0},
		{"NAT64", map[string]func(int) []string{"hook.test.": always("64:ff9b::7f00:3")}, "hook.test", 3, 0},
		{"6to4", map[string]func(int) []string{"hook.test.": always("2002:7f00:3::")}, "hook.test", 3, 0},
		{"unspecified", map[string]func(int) []string{"hook.test.": always("0.0.0.0", "::")}, "hook.test", 3, 0},
		{"single label", map[string]func(int) []string{"redis.": always(closed)}, "redis", 3, 0},
		{"trailing dot", map[string]func(int) []string{"hook.test.": always(open)}, "hook.test.", 3, 3},
		{"number", nil, "2130706435", 3, 0},
		{"short number", nil, "127.3", 3, 0},
		{"hexadecimal", nil, "0x7f000003", 3, 0},
		{"octal", nil, "0177.0.0.3", 3, 0},
		{"literal, open", nil, open, 3, 3},
		{"literal, closed", nil, closed, 3, 0},
		{"literal, mapped and open", nil, "::ffff:127.0.0.2", 3, 3},
		{"literal, mapped and closed", nil, "::ffff:127.0.0.3", 3, 0},
		{"literal, IPv6", nil, "::1", 3, 0},
		{"literal, zone", nil, "::1%lo", 3, 0},
		{"no host", nil, "", 3, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, open, closed, "::1", "127.0.0.1")
			ns := newZone(t, tc.answers)
			p := policy(t, Config{AllowCIDRs: []string{open + "/32"}, AllowPorts: []string{"*"}, DNSServer: ns.addr})
			var reached int
			for range tc.dials {
				err := dial(p, net.JoinHostPort(tc.host, l.port))
				if err == nil {
					reached++
				}
			}
			if reached != tc.reached {
				t.Errorf("%d of %d dials succeeded, want %d", reached, tc.dials, tc.reached)
			}
			waittest.Until(t, "the listeners have accepted", func() bool { return l.count(open) == tc.reached })
			if n := l.count(closed) + l.count("::1") + l.count("127.0.0.1"); n != 0 {
				t.Errorf("closed listeners accepted %d connections", n)
			}
		})
	}
}

// TestBlockedIsFound: the reason is found below what the dialer wraps around it.
func TestBlockedIsFound(t *testing.T) {
	t.Parallel()
	ns := newZone(t, map[string]func(int) []string{"hook.test.": always("10.0.0.1"), "two.test.": always("10.0.0.1", "fd00::1")})
	p := policy(t, Config{DNSServer: ns.addr})
	for _, tc := range []struct {
		addr string
		want Blocked
	}{
		{"10.0.0.1:443", Blocked{netip.MustParseAddr("10.0.0.1"), 443, RulePrivate}},
		{"hook.test:8443", Blocked{netip.MustParseAddr("10.0.0.1"), 8443, RulePrivate}},
		{"169.254.169.254:80", Blocked{netip.MustParseAddr("169.254.169.254"), 80, RuleMetadata}},
		{"[fd00::1]:443", Blocked{netip.MustParseAddr("fd00::1"), 443, RuleUniqueLocal}},
		{"8.8.8.8:22", Blocked{netip.MustParseAddr("8.8.8.8"), 22, RulePort}},
	} {
		err := dial(p, tc.addr)
		got, ok := errors.AsType[*Blocked](err)
		if !ok || *got != tc.want {
			t.Errorf("%s: %v, want %+v", tc.addr, err, tc.want)
		}
	}
	if rule := ruleOf(dial(p, "two.test:443")); rule != RulePrivate && rule != RuleUniqueLocal {
		t.Errorf("two closed addresses: rule %q", rule)
	}
	for _, network := range []string{"udp", "udp4", "unix", "ip4:icmp"} {
		c, err := p.DialContext(t.Context(), network, "8.8.8.8:443")
		if err == nil {
			_ = c.Close()
			t.Errorf("a %s connection was made", network)
		}
	}
}

// TestNoSearchList: what a customer wrote is not completed with the domains of /etc/resolv.conf.
func TestNoSearchList(t *testing.T) {
	t.Parallel()
	ns := newZone(t, nil)
	p := policy(t, Config{DNSServer: ns.addr})
	for _, host := range []string{"redis", "redis.default", "hook.test"} {
		if err := dial(p, host+":443"); err == nil {
			t.Errorf("%s was reached", host)
		}
	}
	want := []string{"hook.test. TypeA", "hook.test. TypeAAAA", "redis. TypeA", "redis. TypeAAAA", "redis.default. TypeA", "redis.default. TypeAAAA"}
	if got := ns.names(); !slices.Equal(got, want) {
		t.Errorf("asked for %q, want %q", got, want)
	}
}

// TestProxyPort: the proxy's own port needs no entry, its address does, and other hosts gain nothing.
func TestProxyPort(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.2")
	for cidrs, want := range map[string]Rule{"127.0.0.2/32": "", "127.0.0.9/32": RuleLoopback} {
		p := policy(t, Config{AllowCIDRs: []string{cidrs}, ProxyURL: "http://127.0.0.2:" + l.port})
		if got := ruleOf(dial(p, "127.0.0.2:"+l.port)); got != want {
			t.Errorf("open %s: rule %q, want %q", cidrs, got, want)
		}
		if got := ruleOf(dial(p, "127.0.0.9:"+l.port)); cidrs == "127.0.0.9/32" && got != RulePort {
			t.Errorf("another host on the proxy's port: rule %q, want %q", got, RulePort)
		}
	}
}
