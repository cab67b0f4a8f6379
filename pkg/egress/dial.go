package egress

import (
	"context"
	"errors"
	"net"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The times of RFC 8305, section 8.
const (
	// familyDelay is how long IPv4 addresses that came first wait for IPv6 ones.
	familyDelay = 50 * time.Millisecond
	// addressDelay is how long an address may be silent before the next one is dialled too.
	addressDelay = 250 * time.Millisecond
)

const (
	// maxCandidates bounds the addresses of one name that are dialled.
	maxCandidates = 16
	// addressMemory is how long an address that failed comes after the others of its name. It is longer than the
	// longest default delay between two attempts.
	addressMemory = 3 * time.Hour
	// rememberedAddresses bounds the addresses remembered; beyond it the oldest are forgotten.
	rememberedAddresses = 4096
)

// DialContext connects to addr (host:port) over TCP. It looks up both address families at once and dials the
// addresses as RFC 8305 says: IPv6 and IPv4 in turn, the next one when the one before it failed or was silent for
// 250 ms, and the first connection wins. Addresses that failed last time are dialled last. Each address and the
// port are judged between look-up and connect; a refusal is a [*Blocked] inside the returned error.
//
// Host names are looked up as fully qualified: a search list in /etc/resolv.conf does not apply to names that
// customers wrote.
func (p *Policy) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, &Blocked{Rule: RuleNetwork}
	}
	d := net.Dialer{
		// Idle connections are closed long before a keep-alive probe would notice anything.
		KeepAlive: -1,
	}
	if p.proxyAddr != "" && addr == p.proxyAddr {
		d.ControlContext = func(_ context.Context, network, address string, _ syscall.RawConn) error {
			return p.control(network, address, true)
		}
		d.Resolver = p.proxyNames
		return d.DialContext(ctx, network, addr)
	}
	d.ControlContext = func(_ context.Context, network, address string, _ syscall.RawConn) error {
		return p.control(network, address, false)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return d.DialContext(ctx, network, addr)
	}
	r := race{policy: p, dialer: d, host: host, port: port}
	return r.run(ctx)
}

// Avoid dials addr, an address that was dialled for host, after the others of host from now on: the connection was
// made, but led to nothing.
func (p *Policy) Avoid(host string, addr net.Addr) {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		p.failed.note(host, tcp.AddrPort().Addr().Unmap())
	}
}

// race makes one connection to any of a name's addresses.
type race struct {
	policy     *Policy
	dialer     net.Dialer
	host, port string

	v4, v6 []netip.Addr // yet to be dialled, in order
	wait4  bool         // IPv4 waits for the answer for IPv6
	have6  bool         // the answer for IPv6 is there
	dialed []*candidate // in order
	errs   []error      // of the look-ups
}

type candidate struct {
	addr netip.Addr
	conn net.Conn
	err  error
	over bool
}

func (r *race) run(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.DNSStart != nil {
		trace.DNSStart(httptrace.DNSStartInfo{Host: r.host})
	}
	resolved := sync.OnceFunc(func() {
		if trace != nil && trace.DNSDone != nil {
			trace.DNSDone(httptrace.DNSDoneInfo{})
		}
	})
	answers, lookups := r.policy.resolver.lookup(ctx, r.host), 2
	results := make(chan *candidate, maxCandidates)
	pace := time.NewTimer(0) // fires when the next address may be dialled
	defer pace.Stop()
	patience := time.NewTimer(time.Hour)
	defer patience.Stop()
	may, running := true, 0
	for {
		if may {
			if addr, ok := r.next(); ok {
				resolved()
				may, running = false, running+1
				c := &candidate{addr: addr}
				r.dialed = append(r.dialed, c)
				go func() {
					c.conn, c.err = r.dialer.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), r.port))
					results <- c
				}()
				pace.Reset(addressDelay)
			} else if lookups == 0 && running == 0 {
				return nil, r.failure(nil)
			}
		}
		select {
		case a := <-answers:
			lookups--
			r.take(a, lookups)
			if r.wait4 {
				patience.Reset(familyDelay)
			}
		case <-patience.C:
			r.wait4 = false
		case <-pace.C:
			may = true
		case c := <-results:
			running--
			c.over = true
			if c.err == nil {
				r.won(c, results, running)
				return c.conn, nil
			}
			r.lost(ctx, c)
			may = true
		case <-ctx.Done():
			go drain(results, running)
			return nil, r.failure(ctx.Err())
		}
	}
}

// take adds the answer for one family; lookups is how many are still to come.
func (r *race) take(a family, lookups int) {
	if a.err != nil {
		r.errs = append(r.errs, a.err)
	}
	now := time.Now()
	addrs := a.addrs[:min(len(a.addrs), maxCandidates)]
	slices.SortStableFunc(addrs, func(x, y netip.Addr) int {
		return r.policy.failed.when(r.host, x, now).Compare(r.policy.failed.when(r.host, y, now))
	})
	if a.is6 {
		r.v6, r.have6, r.wait4 = addrs, true, false
		return
	}
	r.v4 = addrs
	// Where IPv6 failed last time, nothing waits for it.
	r.wait4 = lookups > 0 && r.policy.failed.when(r.host, any6, now).IsZero()
}

// any6 stands for all IPv6 addresses of a name: names whose addresses change all the time are remembered by it.
var any6 = netip.IPv6Unspecified()

// next returns the address to dial now: one of the family that was not dialled last, IPv6 at first unless it failed
// last time, and addresses without a failure before those with one.
func (r *race) next() (netip.Addr, bool) {
	if len(r.dialed) == maxCandidates || r.wait4 && len(r.v6) == 0 {
		return netip.Addr{}, false
	}
	now := time.Now()
	from := &r.v6
	if n := len(r.dialed); n > 0 && r.dialed[n-1].addr.Is6() || n == 0 &&
		!r.policy.failed.when(r.host, any6, now).IsZero() {
		from = &r.v4
	}
	other := &r.v4
	if from == other {
		other = &r.v6
	}
	if len(*from) == 0 || len(*other) > 0 && r.policy.failed.when(r.host, (*other)[0],
		now).Before(r.policy.failed.when(r.host, (*from)[0], now)) {
		from = other
	}
	if len(*from) == 0 {
		return netip.Addr{}, false
	}
	addr := (*from)[0]
	*from = (*from)[1:]
	return addr, true
}

// won closes the connections of the others as they come, and remembers those that had a start and lost.
func (r *race) won(winner *candidate, results chan *candidate, running int) {
	r.policy.failed.forget(r.host, winner.addr)
	earlier := true
	for _, c := range r.dialed {
		if c == winner {
			earlier = false
		} else if earlier && !c.over {
			r.policy.failed.note(r.host, c.addr)
		}
	}
	if winner.addr.Is6() {
		r.policy.failed.forget(r.host, any6)
	} else if !r.have6 || slices.ContainsFunc(r.dialed, func(c *candidate) bool { return c.addr.Is6() }) {
		r.policy.failed.note(r.host, any6)
	}
	go drain(results, running)
}

func drain(results chan *candidate, running int) {
	for range running {
		if c := <-results; c.conn != nil {
			_ = c.conn.Close()
		}
	}
}

// lost remembers an address that failed by itself.
func (r *race) lost(ctx context.Context, c *candidate) {
	if _, blocked := errors.AsType[*Blocked](c.err); !blocked && ctx.Err() == nil {
		r.policy.failed.note(r.host, c.addr)
	}
}

// failure is why no connection was made; cause is not nil when time or the caller ended it.
func (r *race) failure(cause error) error {
	if len(r.dialed) == 0 {
		for _, err := range r.errs { // a family without addresses says less than one that failed
			if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.IsNotFound {
				return err
			}
		}
		if len(r.errs) > 0 {
			return r.errs[0]
		}
		if cause != nil {
			return silent(r.policy.resolver.order(), r.host)
		}
		return &net.DNSError{Err: "the name has no address", Name: r.host, IsNotFound: true}
	}
	out := &DialError{}
	for _, c := range r.dialed {
		switch {
		case !c.over: // c.err belongs to the dialling goroutine
			r.policy.failed.note(r.host, c.addr)
			out.add(c.addr, r.port, os.ErrDeadlineExceeded)
		default:
			out.add(c.addr, r.port, c.err)
		}
	}
	return out
}

// DialError is why none of a name's addresses could be connected to.
type DialError struct {
	text []string
	errs []error
}

func (e *DialError) add(addr netip.Addr, port string, err error) {
	if _, blocked := errors.AsType[*Blocked](err); !blocked {
		e.text = append(e.text, net.JoinHostPort(addr.String(), port)+": "+reason(err))
	} else {
		e.text = append(e.text, err.Error())
	}
	e.errs = append(e.errs, err)
}

func (e *DialError) Error() string { return strings.Join(e.text, "; ") }

// Unwrap returns the errors of all addresses; a [*Blocked] only when every address was refused: with others to dial,
// the refused ones are not the cause.
func (e *DialError) Unwrap() []error {
	others := slices.DeleteFunc(slices.Clone(e.errs), func(err error) bool {
		_, blocked := errors.AsType[*Blocked](err)
		return blocked
	})
	if len(others) == 0 {
		return e.errs
	}
	return others
}

// reason is the short text of a network error, without the addresses that net repeats in it.
func reason(err error) string {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no.Error()
	}
	if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
		return "no answer"
	}
	return err.Error()
}

// failures remembers addresses that failed, by the name they were dialled for. Safe for concurrent use.
type failures struct {
	mu sync.Mutex
	at map[failedAddr]time.Time
}

type failedAddr struct {
	host string
	addr netip.Addr
}

func (f *failures) note(host string, addr netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.at == nil {
		f.at = make(map[failedAddr]time.Time)
	}
	if len(f.at) >= rememberedAddresses {
		for k, at := range f.at {
			if now.Sub(at) > addressMemory {
				delete(f.at, k)
			}
		}
		for k := range f.at { // any: their order is all that is lost
			if len(f.at) < rememberedAddresses {
				break
			}
			delete(f.at, k)
		}
	}
	f.at[failedAddr{host, addr}] = now
}

func (f *failures) forget(host string, addr netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.at, failedAddr{host, addr})
}

// when is when addr last failed for host; zero when it did not, or so long ago that it counts no more.
func (f *failures) when(host string, addr netip.Addr, now time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := f.at[failedAddr{host, addr}]
	if now.Sub(at) > addressMemory {
		return time.Time{}
	}
	return at
}
