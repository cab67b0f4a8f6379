package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"gancho/pkg/dnstest"
)

// soon is well below the 5 s of an attempt and well above the delays of the race.
const soon = 3 * time.Second

// dialWithin dials and fails the test when that takes longer than soon.
func dialWithin(t *testing.T, p *Policy, addr string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	c, err := p.DialContext(ctx, "tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// blackhole is an address on ip that drops connection attempts: a listener whose queue is full.
func blackhole(t *testing.T, ip string, port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	to := &syscall.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(ip).As4()}
	if err := errors.Join(syscall.Bind(fd, to), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", ip, port), 100*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}

// TestNameServersAsTheyAre dials a name whose servers misbehave in one way each: each time the address is reached.
func TestNameServersAsTheyAre(t *testing.T) {
	t.Parallel()
	const ip = "127.0.0.2"
	address := func(q dnsmessage.Question, m *dnsmessage.Message) bool {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnstest.Address(q, [4]byte{127, 0, 0, 2}))
		}
		return true
	}
	code := func(c dnsmessage.RCode) func(dnsmessage.Question, *dnsmessage.Message) bool {
		return func(_ dnsmessage.Question, m *dnsmessage.Message) bool { m.RCode = c; return true }
	}
	for name, servers := range map[string][]func(dnsmessage.Question, *dnsmessage.Message) bool{
		"silent for AAAA": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			return q.Type == dnsmessage.TypeA && address(q, m)
		}},
		"SERVFAIL for AAAA": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			if q.Type == dnsmessage.TypeAAAA {
				m.RCode = dnsmessage.RCodeServerFailure
			}
			return address(q, m)
		}},
		"says that the name does not exist, for AAAA": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			if q.Type == dnsmessage.TypeAAAA {
				m.RCode = dnsmessage.RCodeNameError
			}
			return address(q, m)
		}},
		"FORMERR to EDNS": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			if len(m.Additionals) > 0 {
				m.RCode = dnsmessage.RCodeFormatError
				return true
			}
			return address(q, m)
		}},
		"FORMERR to EDNS, without the question": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			if len(m.Additionals) > 0 {
				m.RCode, m.Questions = dnsmessage.RCodeFormatError, nil
				return true
			}
			return address(q, m)
		}},
		"NOTIMP to EDNS": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			if len(m.Additionals) > 0 {
				m.RCode = dnsmessage.RCodeNotImplemented
				return true
			}
			return address(q, m)
		}},
		"BADVERS to EDNS": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			if len(m.Additionals) > 0 {
				m.RCode = codeBadVersion
				return true
			}
			return address(q, m)
		}},
		"sends more than it was asked for": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			for range 10 { // the address comes behind the name
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 200)}},
				})
			}
			return address(q, m)
		}},
		"answers with another id first": {func() func(dnsmessage.Question, *dnsmessage.Message) bool {
			var n atomic.Int32
			return func(q dnsmessage.Question, m *dnsmessage.Message) bool {
				if n.Add(1) <= 2 {
					m.ID++
				}
				return address(q, m)
			}
		}()},
		"an alias of itself, and an address": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.CNAMEResource{CNAME: q.Name},
			})
			return address(q, m)
		}},
		"silent to EDNS": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			return len(m.Additionals) == 0 && address(q, m)
		}},
		"SERVFAIL to EDNS": {func(q dnsmessage.Question, m *dnsmessage.Message) bool {
			if len(m.Additionals) > 0 {
				m.RCode = dnsmessage.RCodeServerFailure
				return true
			}
			return address(q, m)
		}},
		"loses the first query": {func() func(dnsmessage.Question, *dnsmessage.Message) bool {
			var n atomic.Int32
			return func(q dnsmessage.Question, m *dnsmessage.Message) bool { return n.Add(1) > 2 && address(q, m) }
		}()},
		"the first is silent":  {func(dnsmessage.Question, *dnsmessage.Message) bool { return false }, address},
		"the first refuses":    {code(dnsmessage.RCodeRefused), address},
		"the first fails":      {code(dnsmessage.RCodeServerFailure), address},
		"two are silent":       {func(dnsmessage.Question, *dnsmessage.Message) bool { return false }, func(dnsmessage.Question, *dnsmessage.Message) bool { return false }, address},
		"the first is lame":    {func(_ dnsmessage.Question, m *dnsmessage.Message) bool { m.Authoritative = false; return true }, address},
		"the first is nowhere": {nil, address},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, ip)
			p := policy(t, Config{AllowCIDRs: []string{ip + "/32"}, AllowPorts: []string{"*"}, DNSServer: "127.0.0.1:53"})
			p.resolver.servers = nil
			for _, answer := range servers {
				addr := "127.0.0.1:1"
				if answer != nil {
					addr = dnstest.Start(t, answer)
				}
				p.resolver.servers = append(p.resolver.servers, &nameServer{addr: addr})
			}
			if err := dialWithin(t, p, "hook.test:"+l.port); err != nil {
				t.Fatal(err)
			}
			if len(servers) > 1 {
				if first := p.resolver.order()[0].addr; first == p.resolver.servers[0].addr {
					t.Error("the server that failed is asked first again")
				}
			}
		})
	}
}

// TestTruncated: an answer that was cut is fetched over TCP, and its addresses count where TCP is closed.
func TestTruncated(t *testing.T) {
	t.Parallel()
	const ip = "127.0.0.2"
	for name, tc := range map[string]struct {
		inUDP   bool
		tcp     func(t *testing.T, addr string) bool
		reached bool
	}{
		"over TCP":                     {false, serveTCP, true},
		"some addresses, no TCP":       {true, nil, true},
		"no address, no TCP":           {false, nil, false},
		"some addresses, and over TCP": {true, serveTCP, true},
		"some addresses, TCP silent":   {true, silentTCP, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, ip)
			var addr string
			for found := false; !found; { // a port that is free for both
				addr = dnstest.Start(t, func(q dnsmessage.Question, m *dnsmessage.Message) bool {
					m.Truncated = true
					if tc.inUDP && q.Type == dnsmessage.TypeA {
						m.Answers = append(m.Answers, dnstest.Address(q, [4]byte{127, 0, 0, 2}))
					}
					return true
				})
				found = tc.tcp == nil || tc.tcp(t, addr)
			}
			p := policy(t, Config{AllowCIDRs: []string{ip + "/32"}, AllowPorts: []string{"*"}, DNSServer: addr})
			err := dialWithin(t, p, "hook.test:"+l.port)
			if (err == nil) != tc.reached {
				t.Errorf("got %v", err)
			}
			if !tc.reached && !strings.Contains(err.Error(), addr) {
				t.Errorf("the error does not name the server: %v", err)
			}
		})
	}
}

// silentTCP accepts connections and says nothing. It returns false when the port is taken.
func silentTCP(t *testing.T, addr string) bool {
	t.Helper()
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		return false
	}
	t.Cleanup(func() { _ = ln.Close() })
	return true
}

// serveTCP answers A queries over TCP with 127.0.0.2. It returns false when the port is taken.
func serveTCP(t *testing.T, addr string) bool {
	t.Helper()
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		return false
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			var size [2]byte
			_, _ = io.ReadFull(c, size[:])
			msg := make([]byte, binary.BigEndian.Uint16(size[:]))
			_, _ = io.ReadFull(c, msg)
			var m dnsmessage.Message
			if m.Unpack(msg) == nil && len(m.Questions) == 1 {
				m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
				if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
					m.Answers = append(m.Answers, dnstest.Address(q, [4]byte{127, 0, 0, 2}))
				}
				if packed, err := m.Pack(); err == nil {
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
				}
			}
			_ = c.Close()
		}
	}()
	return true
}

// TestErrorsNameTheServer: the server that was asked, not one of resolv.conf.
func TestErrorsNameTheServer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(dnsmessage.Question, *dnsmessage.Message) bool{
		"silent": func(dnsmessage.Question, *dnsmessage.Message) bool { return false },
		"does not exist": func(_ dnsmessage.Question, m *dnsmessage.Message) bool {
			m.RCode = dnsmessage.RCodeNameError
			return true
		},
		"SERVFAIL": func(_ dnsmessage.Question, m *dnsmessage.Message) bool {
			m.RCode = dnsmessage.RCodeServerFailure
			return true
		},
		"FORMERR": func(_ dnsmessage.Question, m *dnsmessage.Message) bool {
			m.RCode = dnsmessage.RCodeFormatError
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := dnstest.Start(t, answer)
			p := policy(t, Config{DNSServer: addr})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := p.DialContext(ctx, "tcp", "hook.test:443")
			if dns, ok := errors.AsType[*net.DNSError](err); !ok || dns.Server != addr || dns.Name != "hook.test" {
				t.Errorf("got %#v, want the server %s", err, addr)
			}
		})
	}
}

// TestSilentAddress: an address that drops packets costs a part of the attempt, and is dialled last from then on.
func TestSilentAddress(t *testing.T) {
	t.Parallel()
	const good, bad = "127.0.0.2", "127.0.0.3"
	for name, order := range map[string][]string{"first": {bad, good}, "first two": {bad, bad, good}, "last": {good, bad}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, good)
			port, err := net.LookupPort("tcp", l.port)
			if err != nil {
				t.Fatal(err)
			}
			blackhole(t, bad, port)
			ns := newZone(t, map[string]func(int) []string{"hook.test.": always(order...)})
			p := policy(t, Config{AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}, DNSServer: ns.addr})
			if err := dialWithin(t, p, "hook.test:"+l.port); err != nil {
				t.Fatal(err)
			}
			failed := !p.failed.when("hook.test", netip.MustParseAddr(bad), time.Now()).IsZero()
			if want := order[0] == bad; failed != want {
				t.Errorf("remembered as failed: %t, want %t", failed, want)
			}
			r := race{policy: p, host: "hook.test"}
			r.take(family{is6: true}, 1)
			r.take(family{addrs: []netip.Addr{netip.MustParseAddr(bad), netip.MustParseAddr(good)}}, 0)
			if next, _ := r.next(); failed && next.String() != good {
				t.Errorf("the next attempt begins with %s", next)
			}
		})
	}
}

// TestSilentFamily: IPv6 addresses that nothing answers for do not hold up IPv4, and come last from then on.
func TestSilentFamily(t *testing.T) {
	t.Parallel()
	const good = "127.0.0.2"
	l := listen(t, good)
	p := policy(t, Config{AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}})
	six := netip.MustParseAddr("2606:4700::1")
	r := race{policy: p, host: "hook.test", port: l.port}
	r.take(family{is6: true, addrs: []netip.Addr{six}}, 1)
	r.take(family{addrs: []netip.Addr{netip.MustParseAddr(good)}}, 0)
	if first, _ := r.next(); first != six {
		t.Errorf("began with %s", first)
	}
	r.dialed = append(r.dialed, &candidate{addr: six})
	second, _ := r.next()
	if second.String() != good {
		t.Errorf("went on with %s", second)
	}
	winner := &candidate{addr: second, over: true}
	r.dialed = append(r.dialed, winner)
	r.won(winner, nil, 0)
	r = race{policy: p, host: "hook.test", port: l.port}
	r.take(family{addrs: []netip.Addr{netip.MustParseAddr(good)}}, 1)
	if first, ok := r.next(); !ok || first.String() != good {
		t.Errorf("next time: began with %s, %t", first, ok)
	}
}

// TestFailuresAreBounded: however many names there are.
func TestFailuresAreBounded(t *testing.T) {
	t.Parallel()
	var f failures
	for i := range 3 * rememberedAddresses {
		f.note(fmt.Sprint("host", i), netip.MustParseAddr("192.0.2.1"))
	}
	if n := len(f.at); n > rememberedAddresses {
		t.Errorf("%d addresses are remembered", n)
	}
}

// TestDialErrorNamesAddresses: every address with its own reason, and refused ones decide only when alone.
func TestDialErrorNamesAddresses(t *testing.T) {
	t.Parallel()
	ns := newZone(t, map[string]func(int) []string{"hook.test.": always("127.0.0.2", "10.0.0.1")})
	p := policy(t, Config{AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}, DNSServer: ns.addr})
	err := dialWithin(t, p, "hook.test:1")
	if rule := ruleOf(err); rule != "" {
		t.Errorf("counts as refused by rule %q", rule)
	}
	for _, want := range []string{"127.0.0.2:1: connection refused", "10.0.0.1", "private"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestReadServers(t *testing.T) {
	t.Parallel()
	if got := readServers("/nonexistent"); len(got) != 2 {
		t.Errorf("without a file: %q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0, 1, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, msg []byte) {
		addrs, _, _ := parse(msg)
		if len(addrs) > maxAddresses {
			t.Errorf("%d addresses", len(addrs))
		}
		answers(msg, msg, dnsmessage.Question{})
	})
}
