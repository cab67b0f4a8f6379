package egress

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func policy(tb testing.TB, cfg Config) *Policy {
	tb.Helper()
	p, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func ruleOf(err error) Rule {
	if b, ok := errors.AsType[*Blocked](err); ok {
		return b.Rule
	}
	return ""
}

// TestRanges names the first and the last address of every refused range, and its neighbours.
func TestRanges(t *testing.T) {
	t.Parallel()
	p := policy(t, Config{})
	for _, tc := range []struct {
		addr string
		want Rule
	}{
		{"0.0.0.0", RuleThisNetwork},
		{"0.255.255.255", RuleThisNetwork},
		{"1.0.0.0", ""},
		{"9.255.255.255", ""},
		{"10.0.0.0", RulePrivate},
		{"10.255.255.255", RulePrivate},
		{"11.0.0.0", ""},
		{"100.63.255.255", ""},
		{"100.64.0.0", RuleShared},
		{"100.100.100.200", RuleMetadata},
		{"100.127.255.255", RuleShared},
		{"100.128.0.0", ""},
		{"126.255.255.255", ""},
		{"127.0.0.0", RuleLoopback},
		{"127.255.255.255", RuleLoopback},
		{"128.0.0.0", ""},
		{"169.253.255.255", ""},
		{"169.254.0.0", RuleLinkLocal},
		{"169.254.169.254", RuleMetadata},
		{"169.254.255.255", RuleLinkLocal},
		{"169.255.0.0", ""},
		{"172.15.255.255", ""},
		{"172.16.0.0", RulePrivate},
		{"172.31.255.255", RulePrivate},
		{"172.32.0.0", ""},
		{"191.255.255.255", ""},
		{"192.0.0.0", RuleProtocol},
		{"192.0.0.192", RuleMetadata},
		{"192.0.0.255", RuleProtocol},
		{"192.0.1.0", ""},
		{"192.0.1.255", ""},
		{"192.0.2.0", RuleDocumentation},
		{"192.0.2.255", RuleDocumentation},
		{"192.0.3.0", ""},
		{"192.31.195.255", ""},
		{"192.31.196.0", RuleAS112},
		{"192.31.196.255", RuleAS112},
		{"192.31.197.0", ""},
		{"192.52.192.255", ""},
		{"192.52.193.0", RuleAMT},
		{"192.52.193.255", RuleAMT},
		{"192.52.194.0", ""},
		{"192.88.98.255", ""},
		{"192.88.99.0", Rule6to4},
		{"192.88.99.255", Rule6to4},
		{"192.88.100.0", ""},
		{"192.167.255.255", ""},
		{"192.168.0.0", RulePrivate},
		{"192.168.255.255", RulePrivate},
		{"192.169.0.0", ""},
		{"192.175.47.255", ""},
		{"192.175.48.0", RuleAS112},
		{"192.175.48.255", RuleAS112},
		{"192.175.49.0", ""},
		{"198.17.255.255", ""},
		{"198.18.0.0", RuleBenchmark},
		{"198.19.255.255", RuleBenchmark},
		{"198.20.0.0", ""},
		{"198.51.99.255", ""},
		{"198.51.100.0", RuleDocumentation},
		{"198.51.100.255", RuleDocumentation},
		{"198.51.101.0", ""},
		{"203.0.112.255", ""},
		{"203.0.113.0", RuleDocumentation},
		{"203.0.113.255", RuleDocumentation},
		{"203.0.114.0", ""},
		{"223.255.255.255", ""},
		{"224.0.0.0", RuleMulticast},
		{"239.255.255.255", RuleMulticast},
		{"240.0.0.0", RuleReserved},
		{"255.255.255.254", RuleReserved},
		{"255.255.255.255", RuleBroadcast},

		{"::", RuleUnspecified},
		{"::1", RuleLoopback},
		{"::2", RuleCompatible},
		{"::127.0.0.1", RuleCompatible},
		{"::ffff:255.255.255.255", RuleMapped},
		{"::ffff:0.0.0.0", RuleMapped},
		{"::ffff:8.8.8.8", RuleMapped},
		{"::ffff:0:0:0", RuleTranslated},
		{"::ffff:0:808:808", RuleTranslated},
		{"64:ff9b::", RuleNAT64},
		{"64:ff9b::7f00:1", RuleNAT64},
		{"64:ff9b::ffff:ffff", RuleNAT64},
		{"64:ff9b::1:0:0", RuleUnallocated},
		{"64:ff9b:1::", RuleNAT64},
		{"64:ff9b:1:ffff:ffff:ffff:ffff:ffff", RuleNAT64},
		{"64:ff9b:2::", RuleUnallocated},
		{"100::", RuleDiscard},
		{"100::ffff:ffff:ffff:ffff", RuleDiscard},
		{"100:0:0:1::", RuleDiscard},
		{"100:0:0:1:ffff:ffff:ffff:ffff", RuleDiscard},
		{"100:0:0:2::", RuleUnallocated},
		{"1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleUnallocated},
		{"2000::", ""},
		{"2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"2001::", RuleTeredo},
		{"2001:0:53aa:64c::1", RuleTeredo},
		{"2001:0:ffff:ffff:ffff:ffff:ffff:ffff", RuleTeredo},
		{"2001:1::", RuleProtocol},
		{"2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", RuleProtocol},
		{"2001:200::", ""},
		{"2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"2001:db8::", RuleDocumentation},
		{"2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", RuleDocumentation},
		{"2001:db9::", ""},
		{"2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"2002::", Rule6to4},
		{"2002:7f00:1::", Rule6to4},
		{"2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Rule6to4},
		{"2003::", ""},
		{"2606:4700::1111", ""},
		{"2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", ""},
		{"2620:4f:8000::", RuleAS112},
		{"2620:4f:8000:ffff:ffff:ffff:ffff:ffff", RuleAS112},
		{"2620:4f:8001::", ""},
		{"3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"3fff::", RuleDocumentation},
		{"3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", RuleDocumentation},
		{"3fff:1000::", ""},
		{"3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"4000::", RuleUnallocated},
		{"5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleUnallocated},
		{"5f00::", RuleSRv6},
		{"5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleSRv6},
		{"5f01::", RuleUnallocated},
		{"fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleUnallocated},
		{"fc00::", RuleUniqueLocal},
		{"fd00:ec2::254", RuleMetadata},
		{"fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleUniqueLocal},
		{"fe00::", RuleUnallocated},
		{"fe80::", RuleLinkLocal},
		{"fe80::1%eth0", RuleZone},
		{"2606:4700::1111%eth0", RuleZone},
		{"febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleLinkLocal},
		{"fec0::", RuleSiteLocal},
		{"feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleSiteLocal},
		{"ff00::", RuleMulticast},
		{"ff02::1", RuleMulticast},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleMulticast},
	} {
		if got := ruleOf(p.AddrAllowed(netip.MustParseAddr(tc.addr))); got != tc.want {
			t.Errorf("%s: rule %q, want %q", tc.addr, got, tc.want)
		}
	}
	if got := ruleOf(p.AddrAllowed(netip.Addr{})); got != RuleInvalid {
		t.Errorf("the zero address: rule %q, want %q", got, RuleInvalid)
	}
}

func TestAllowAndDeny(t *testing.T) {
	t.Parallel()
	p := policy(t, Config{
		AllowCIDRs: []string{"127.0.0.0/8", " 10.1.0.0/16", "fd12:3456::/32", "169.254.0.0/16", "fd00:ec2::254/128", ""},
		DenyCIDRs:  []string{"10.1.2.0/24", "8.8.4.0/24", "2606:4700::/32"},
	})
	for _, tc := range []struct {
		addr string
		want Rule
	}{
		{"127.0.0.1", ""},
		{"::ffff:127.0.0.1", ""},
		{"10.1.255.255", ""},
		{"10.2.0.0", RulePrivate},
		{"10.1.2.3", RuleDenied},
		{"::ffff:10.1.2.3", RuleDenied},
		{"::ffff:8.8.8.8", RuleMapped},
		{"8.8.8.8", ""},
		{"8.8.4.4", RuleDenied},
		{"2606:4700::1", RuleDenied},
		{"fd12:3456:ffff::1", ""},
		{"fd12:3457::1", RuleUniqueLocal},
		{"fd12:3456::1%eth0", RuleZone},
		{"169.254.1.1", ""},
		{"169.254.169.254", RuleMetadata}, // inside an open range that was not opened for it
		{"fd00:ec2::254", ""},             // named alone
		{"fd00:ec2::253", RuleUniqueLocal},
		{"::1", RuleLoopback},
	} {
		if got := ruleOf(p.AddrAllowed(netip.MustParseAddr(tc.addr))); got != tc.want {
			t.Errorf("%s: rule %q, want %q", tc.addr, got, tc.want)
		}
	}
}

// TestOwnAddress gives the policy a public address as the machine's own.
func TestOwnAddress(t *testing.T) {
	t.Parallel()
	own := netip.MustParseAddr("93.184.215.14")
	for _, tc := range []struct {
		name string
		cfg  Config
		want Rule
	}{
		{"default", Config{}, RuleOwn},
		{"opened", Config{AllowCIDRs: []string{"93.184.215.14/32"}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := policy(t, tc.cfg)
			list := *p.own.Load()
			list.addrs = append(list.addrs, own)
			p.own.Store(&list)
			if got := ruleOf(p.AddrAllowed(own)); got != tc.want {
				t.Errorf("own address: rule %q, want %q", got, tc.want)
			}
			if got := ruleOf(p.AddrAllowed(own.Next())); got != "" {
				t.Errorf("neighbour: rule %q, want none", got)
			}
		})
	}
	p := policy(t, Config{})
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := p.ownAddrs(); len(got) != len(list) || len(got) == 0 {
		t.Errorf("own addresses %v, want those of %v", got, list)
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name         string
		ports        []string
		http         bool
		open, closed []uint16
	}{
		{"default", nil, false, []uint16{443, 8443}, []uint16{0, 80, 442, 444, 65535}},
		{"with http", nil, true, []uint16{80, 443, 8443}, []uint16{0, 81}},
		{"list and range", []string{"443", " 1024-2000 ", ""}, false, []uint16{443, 1024, 2000}, []uint16{0, 8443, 1023, 2001}},
		{"all", []string{"*"}, false, []uint16{1, 22, 65535}, []uint16{0}},
		{"ends", []string{"1-2", "65535"}, false, []uint16{1, 2, 65535}, []uint16{0, 3, 65534}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := policy(t, Config{AllowPorts: tc.ports, AllowHTTPURLs: tc.http})
			for _, port := range tc.open {
				if !p.PortAllowed(port) {
					t.Errorf("port %d is closed", port)
				}
			}
			for _, port := range tc.closed {
				if p.PortAllowed(port) {
					t.Errorf("port %d is open", port)
				}
			}
		})
	}
}

// TestConfigProblems: all problems at once, each naming variable, value and what is allowed.
func TestConfigProblems(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"everything open", Config{AllowCIDRs: []string{"0.0.0.0/0", "::/0"}}, []string{`EGRESS_ALLOW_CIDRS: "0.0.0.0/0" is too wide; IPv4 ranges may be /8 to /32`, `"::/0" is too wide; IPv6 ranges may be /32 to /128`}},
		{"one bit too wide", Config{AllowCIDRs: []string{"10.0.0.0/7", "fd00::/31"}}, []string{"10.0.0.0/7", "fd00::/31"}},
		{"no range", Config{AllowCIDRs: []string{"10.0.0.1", "x", "10.0.0.0/33"}}, []string{`"10.0.0.1" is not a range`, `"x" is not a range`, `"10.0.0.0/33" is not a range`}},
		{"bits after the prefix", Config{AllowCIDRs: []string{"10.1.2.3/16"}}, []string{"did you mean 10.1.0.0/16?"}},
		{"mapped range", Config{AllowCIDRs: []string{"::ffff:10.0.0.0/104"}}, []string{"write the IPv4 range itself"}},
		{"deny", Config{DenyCIDRs: []string{"x"}}, []string{`EGRESS_DENY_CIDRS: "x"`}},
		{"ports", Config{AllowPorts: []string{"0", "65536", "-1", "http", "20-10", "1-70000", "443"}}, []string{
			`EGRESS_ALLOW_PORTS: "0"`, `"65536"`, `"-1"`, `"http"`, `"20-10"`, `"1-70000"`, "from 1 to 65535",
		}},
		{"no CA file", Config{CAFile: "/nonexistent"}, []string{"EGRESS_CA_FILE: open /nonexistent"}},
		{"empty CA file", Config{CAFile: empty}, []string{"holds no certificate"}},
		{"proxy", Config{ProxyURL: "socks5://user:canary@proxy.example"}, []string{"EGRESS_PROXY_URL", "host:port"}},
		{"proxy's password", Config{ProxyURL: "http://user:p@ss/canary@proxy.example"}, []string{"EGRESS_PROXY_URL", "percent-encoded"}},
		{"proxy without host", Config{ProxyURL: "http://:80"}, []string{"EGRESS_PROXY_URL"}},
		{"DNS server", Config{DNSServer: "dns.example:53"}, []string{`EGRESS_DNS_SERVER: "dns.example:53" is not ip:port`}},
		{"DNS server without port", Config{DNSServer: "192.0.2.1:0"}, []string{"EGRESS_DNS_SERVER"}},
		{"all together", Config{AllowCIDRs: []string{"x"}, AllowPorts: []string{"y"}, DNSServer: "z"}, []string{`"x"`, `"y"`, `"z"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := New(tc.cfg)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error lacks %q:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("error repeats a password: %v", err)
			}
		})
	}
	if p, err := New(Config{AllowCIDRs: []string{"10.0.0.0/8", "fd00::/32"}}); err != nil || p == nil {
		t.Errorf("the widest ranges: %v", err)
	}
}
