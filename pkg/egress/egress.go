package egress

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"gancho/pkg/address"
	"gancho/pkg/ca"
)

// Config is read from the environment by every process that sends to webhooks
// or judges their URLs. The zero value is the default: HTTPS to public
// addresses on ports 443 and 8443.
type Config struct {
	// AllowHTTPURLs also accepts http:// URLs (and with them port 80). For
	// trials and tests: notifications then travel in clear. Default false.
	AllowHTTPURLs bool `env:"ALLOW_HTTP_URLS" envDefault:"false"`
	// AllowCIDRs opens ranges that are refused by default, such as
	// 127.0.0.0/8 in tests or the network of an internal receiver. No wider
	// than /8 (IPv4) and /32 (IPv6). Default none.
	AllowCIDRs []string `env:"EGRESS_ALLOW_CIDRS" envSeparator:","`
	// DenyCIDRs refuses more ranges, before AllowCIDRs is looked at: public
	// addresses that are this installation's own. Any width. Default none.
	DenyCIDRs []string `env:"EGRESS_DENY_CIDRS" envSeparator:","`
	// AllowPorts lists the ports that may be dialled: numbers and ranges
	// (1024-65535) from 1 to 65535, or * for all. Default 443,8443.
	AllowPorts []string `env:"EGRESS_ALLOW_PORTS" envSeparator:"," envDefault:"443,8443"`
	// CAFile is a PEM file with certificates of authorities that are trusted
	// in addition to the system's. Default none.
	CAFile string `env:"EGRESS_CA_FILE"`
	// ProxyURL is an http:// or https:// proxy for all connections. The check
	// of addresses then covers the proxy only, so use one that filters
	// addresses itself. Default none.
	ProxyURL string `env:"EGRESS_PROXY_URL" secret:"true"`
	// DNSServer is the name server (ip:port) to ask instead of those in
	// /etc/resolv.conf. For tests and special networks. Default none.
	DNSServer string `env:"EGRESS_DNS_SERVER"`
	// TLSLegacy also sends to receivers that speak TLS 1.2 with RSA key exchange only, which has no forward secrecy:
	// who gets the receiver's key later can read recorded traffic. Default false.
	TLSLegacy bool `env:"EGRESS_TLS_LEGACY" envDefault:"false"`
}

// proxyForm is the form of EGRESS_PROXY_URL.
var proxyForm = address.Form{Schemes: []string{"http", "https"}}

// Validate reports every problem, one line each, as New does.
func (c Config) Validate() error {
	_, err := New(c)
	return err
}

// ownMaxAge is how long the list of the machine's addresses is believed.
const ownMaxAge = 30 * time.Second

// Policy is a checked [Config]. It is immutable but for the cached list of the
// machine's addresses, and safe for concurrent use.
type Policy struct {
	// AllowHTTP reports whether http:// URLs are accepted.
	AllowHTTP bool
	// RootCAs verifies receivers' certificates: the system's roots plus
	// EGRESS_CA_FILE. Nil means the system's.
	RootCAs *x509.CertPool
	// Proxy is where all connections go, or nil. Its user information is a
	// secret.
	Proxy *url.URL
	// LegacyTLS reports whether RSA key exchange may be used where a receiver offers nothing else.
	LegacyTLS bool

	allow, deny []netip.Prefix
	ports       []portRange
	proxyAddr   string // host:port of Proxy, or ""
	resolver    *resolver
	proxyNames  *net.Resolver
	failed      failures
	own         atomic.Pointer[ownAddrs]
}

type portRange struct{ first, last uint16 }

type ownAddrs struct {
	addrs []netip.Addr
	read  time.Time
}

// New checks cfg. The error holds every problem, one line each, naming the
// variable, its value and the allowed ones.
func New(cfg Config) (*Policy, error) {
	p := &Policy{AllowHTTP: cfg.AllowHTTPURLs, LegacyTLS: cfg.TLSLegacy}
	var problems []error
	problem := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf(format, args...))
	}

	for _, s := range clean(cfg.AllowCIDRs) {
		prefix, err := parsePrefix(s)
		switch {
		case err != nil:
			problem("EGRESS_ALLOW_CIDRS: %q is not a range; write address/bits, such as 10.1.0.0/16 (%w)", s, err)
		case prefix.Addr().Is4() && prefix.Bits() < 8:
			problem("EGRESS_ALLOW_CIDRS: %q is too wide; IPv4 ranges may be /8 to /32", s)
		case prefix.Addr().Is6() && prefix.Bits() < 32:
			problem("EGRESS_ALLOW_CIDRS: %q is too wide; IPv6 ranges may be /32 to /128", s)
		default:
			p.allow = append(p.allow, prefix)
		}
	}
	for _, s := range clean(cfg.DenyCIDRs) {
		prefix, err := parsePrefix(s)
		if err != nil {
			problem("EGRESS_DENY_CIDRS: %q is not a range; write address/bits, such as 198.51.100.7/32 (%w)", s, err)
			continue
		}
		p.deny = append(p.deny, prefix)
	}

	ports := clean(cfg.AllowPorts)
	if len(ports) == 0 {
		ports = []string{"443", "8443"}
	}
	for _, s := range ports {
		r, ok := parsePorts(s)
		if !ok {
			problem("EGRESS_ALLOW_PORTS: %q is not a port; write numbers or ranges from "+
				"1 to 65535 (443,8443 or 1024-65535), or *", s)
			continue
		}
		p.ports = append(p.ports, r)
	}
	if p.AllowHTTP {
		p.ports = append(p.ports, portRange{80, 80})
	}

	if cfg.CAFile != "" {
		pool, err := ca.Pool(cfg.CAFile)
		if err != nil {
			problem("EGRESS_CA_FILE: %w; give a readable PEM file with at least one certificate", err)
		}
		p.RootCAs = pool
	}

	if cfg.ProxyURL != "" {
		if a, err := proxyForm.Parse(cfg.ProxyURL); err != nil {
			problem("EGRESS_PROXY_URL: %w; write http://[user:password@]host:port or https://...", err)
		} else {
			u := a.URL()
			p.Proxy = u
			port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
			p.proxyAddr = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
		}
	}

	var dnsServer string
	if cfg.DNSServer != "" {
		server, err := netip.ParseAddrPort(cfg.DNSServer)
		if err != nil || server.Port() == 0 {
			problem("EGRESS_DNS_SERVER: %q is not ip:port, such as 192.0.2.53:53 or [2001:db8::53]:53", cfg.DNSServer)
		}
		dnsServer = server.String()
	}
	p.resolver, p.proxyNames = newResolver(dnsServer), newProxyNames(dnsServer)

	if _, err := p.ownAddrs(); err != nil {
		problem("read the machine's own addresses: %w", err)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return p, nil
}

// newProxyNames looks up the proxy's name, to which the search list of /etc/resolv.conf applies. server is asked in
// place of the servers listed there; empty for those.
func newProxyNames(server string) *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, cmp.Or(server, addr))
		},
	}
}

// Blocked says that the policy refuses an address or a port. [errors.AsType]
// finds it in what DialContext returns.
type Blocked struct {
	// Addr is the address judged; the zero Addr when Rule is RulePort and no
	// address was at hand.
	Addr netip.Addr
	// Port is the port dialled, or 0 when only an address was judged.
	Port uint16
	// Rule is why.
	Rule Rule
}

func (b *Blocked) Error() string {
	switch b.Rule {
	case RulePort:
		return "port " + strconv.Itoa(int(b.Port)) + " is not open; EGRESS_ALLOW_PORTS lists the open ports"
	case RuleNetwork:
		return "only TCP connections may leave"
	case RuleDenied:
		return "address " + b.Addr.String() + " is refused: listed in EGRESS_DENY_CIDRS"
	case RuleInvalid, RuleZone:
		return "address " + b.Addr.String() + " is refused: " + string(b.Rule)
	}
	return "address " + b.Addr.String() + " is refused: " + string(b.Rule) +
		"; EGRESS_ALLOW_CIDRS lists the open ranges"
}

// AddrAllowed returns nil when a may be dialled, else a [*Blocked] with the
// rule that refuses it. An IPv4-mapped IPv6 address is refused unless its IPv4
// address lies inside EGRESS_ALLOW_CIDRS.
func (p *Policy) AddrAllowed(a netip.Addr) error {
	if rule := p.rule(a); rule != "" {
		return &Blocked{Addr: a, Rule: rule}
	}
	return nil
}

func (p *Policy) rule(a netip.Addr) Rule {
	switch {
	case !a.IsValid():
		return RuleInvalid
	case a.Zone() != "":
		return RuleZone
	}
	plain := a.Unmap()
	for _, prefix := range p.deny {
		if prefix.Contains(plain) {
			return RuleDenied
		}
	}
	for _, prefix := range p.allow {
		if prefix.Contains(plain) && (prefix.IsSingleIP() || !isMetadata(plain)) {
			return ""
		}
	}
	if a.Is4In6() {
		return RuleMapped
	}
	if rule := judge(a); rule != "" {
		return rule
	}
	// A failed refresh keeps the last list: New has read one.
	own, _ := p.ownAddrs()
	if slices.Contains(own, a) {
		return RuleOwn
	}
	return ""
}

// ProxyAddr is the proxy as host:port, or "".
func (p *Policy) ProxyAddr() string { return p.proxyAddr }

// PortAllowed reports whether port may be dialled.
func (p *Policy) PortAllowed(port uint16) bool {
	for _, r := range p.ports {
		if r.first <= port && port <= r.last {
			return true
		}
	}
	return false
}

// control is called by the dialer for each candidate, on a socket that is not
// connected yet.
func (p *Policy) control(network, address string, anyPort bool) error {
	if network != "tcp4" && network != "tcp6" {
		return &Blocked{Rule: RuleNetwork}
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return &Blocked{Rule: RuleInvalid}
	}
	if rule := p.rule(ap.Addr()); rule != "" {
		return &Blocked{Addr: ap.Addr(), Port: ap.Port(), Rule: rule}
	}
	if !anyPort && !p.PortAllowed(ap.Port()) {
		return &Blocked{Addr: ap.Addr(), Port: ap.Port(), Rule: RulePort}
	}
	return nil
}

// ownAddrs returns the addresses of the machine's interfaces, read at most
// every ownMaxAge. On an error it returns the last list with it.
func (p *Policy) ownAddrs() ([]netip.Addr, error) {
	last := p.own.Load()
	now := time.Now()
	if last != nil && now.Sub(last.read) < ownMaxAge {
		return last.addrs, nil
	}
	fresh := &ownAddrs{read: now}
	list, err := net.InterfaceAddrs()
	if err != nil {
		if last == nil {
			return nil, err
		}
		fresh.addrs = last.addrs
	}
	for _, item := range list {
		if prefix, err := netip.ParsePrefix(item.String()); err == nil {
			fresh.addrs = append(fresh.addrs, prefix.Addr().Unmap())
		}
	}
	p.own.Store(fresh)
	return fresh.addrs, err
}

// clean trims the parts of a list and drops empty ones.
func clean(list []string) []string {
	var out []string
	for _, s := range list {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// parsePrefix accepts address/bits only. Bits set to the right of the prefix
// are a typing mistake that would open another range than the one meant.
func parsePrefix(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return prefix, errors.New("no address, no /bits, or bits out of range")
	case prefix.Addr().Is4In6():
		return prefix, errors.New("write the IPv4 range itself")
	case prefix != prefix.Masked():
		return prefix, fmt.Errorf("address bits after the prefix; did you mean %s?", prefix.Masked())
	}
	return prefix, nil
}

func parsePorts(s string) (portRange, bool) {
	if s == "*" {
		return portRange{1, 65535}, true
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	b, errB := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return portRange{}, false
	}
	return portRange{uint16(a), uint16(b)}, true
}
