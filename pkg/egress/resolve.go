package egress

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// askAgain is how long a name server may be silent before the next one is asked too. The first query stays
	// open: the first answer counts, from either.
	askAgain = 300 * time.Millisecond
	// askRounds is how often each name server is asked for one family of addresses.
	askRounds = 3
	// serverMemory is how long a name server that was silent or failed comes after the others.
	serverMemory = time.Minute

	resolvConf    = "/etc/resolv.conf"
	resolvMaxAge  = 5 * time.Second
	maxServers    = 3    // as in the C library
	maxUDPPayload = 1232 // fits into one packet everywhere (DNS flag day 2020)
	maxUDPAnswer  = 8192 // some servers send more than they were asked for
	maxAddresses  = 64   // of one answer
)

// resolver looks up the addresses of host names. It asks for both families at once and reports each as it comes,
// so that neither waits for the other; a server that is silent or fails costs the time to ask the next one, and is
// asked last for a minute. Safe for concurrent use.
type resolver struct {
	hosts *net.Resolver // answers from /etc/hosts alone
	fixed bool          // servers never change

	mu      sync.Mutex
	servers []*nameServer
	checked time.Time // when resolv.conf was last read
}

type nameServer struct {
	addr     string
	answered atomic.Int64 // when it last answered, in Unix nanoseconds
	failed   atomic.Int64 // when it was last silent or failed
	plain    atomic.Bool  // it refuses queries with EDNS
}

// newResolver asks server (ip:port), or the servers of /etc/resolv.conf when it is empty.
func newResolver(server string) *resolver {
	r := &resolver{hosts: &net.Resolver{
		PreferGo: true,
		Dial:     func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("files only") },
	}}
	if server != "" {
		r.fixed, r.servers = true, []*nameServer{{addr: server}}
	}
	return r
}

// family is the answer for one family. A name without addresses of the family has neither addrs nor err.
type family struct {
	is6   bool
	addrs []netip.Addr
	err   error // a *net.DNSError
}

// lookup sends the answers for both families, in the order in which they come. The channel holds both, so that
// nothing waits for a reader that has left.
func (r *resolver) lookup(ctx context.Context, host string) <-chan family {
	out := make(chan family, 2)
	name, err := dnsmessage.NewName(strings.TrimSuffix(host, ".") + ".")
	if err != nil || !validName(name) {
		err := &net.DNSError{Err: "not a host name", Name: host, IsNotFound: true}
		out <- family{err: err}
		out <- family{is6: true, err: err}
		return out
	}
	if known, err := r.hosts.LookupNetIP(ctx, "ip", name.String()); err == nil {
		var both [2]family
		for _, a := range known {
			if a = a.Unmap(); a.Is4() {
				both[0].addrs = append(both[0].addrs, a)
			} else {
				both[1].addrs = append(both[1].addrs, a)
			}
		}
		both[1].is6 = true
		out <- both[0]
		out <- both[1]
		return out
	}
	servers := r.order()
	for _, t := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeA} {
		go func() {
			addrs, err := ask(ctx, servers, dnsmessage.Question{Name: name, Type: t, Class: dnsmessage.ClassINET})
			out <- family{is6: t == dnsmessage.TypeAAAA, addrs: addrs, err: err}
		}()
	}
	return out
}

// validName reports whether every label has 1 to 63 bytes.
func validName(n dnsmessage.Name) bool {
	for label := range strings.SplitSeq(strings.TrimSuffix(n.String(), "."), ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return true
}

// order returns the servers, those that failed last time last.
func (r *resolver) order() []*nameServer {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if !r.fixed && (r.servers == nil || now.Sub(r.checked) > resolvMaxAge) {
		r.checked = now
		r.reread(readServers(resolvConf))
	}
	out := slices.Clone(r.servers)
	slices.SortStableFunc(out, func(a, b *nameServer) int { return cmp.Compare(a.trouble(now), b.trouble(now)) })
	return out
}

// reread takes over addrs and keeps the records of servers that stay.
func (r *resolver) reread(addrs []string) {
	fresh := make([]*nameServer, 0, len(addrs))
	for _, addr := range addrs {
		i := slices.IndexFunc(r.servers, func(s *nameServer) bool { return s.addr == addr })
		if i < 0 {
			fresh = append(fresh, &nameServer{addr: addr})
		} else {
			fresh = append(fresh, r.servers[i])
		}
	}
	r.servers = fresh
}

// trouble is when s failed last, or 0 when it answered since or the failure is too old to matter.
func (s *nameServer) trouble(now time.Time) int64 {
	failed := s.failed.Load()
	if failed <= s.answered.Load() || now.UnixNano()-failed > int64(serverMemory) {
		return 0
	}
	return failed
}

// readServers returns the name servers of a resolv.conf as ip:port, or the local one when it names none.
func readServers(path string) []string {
	text, _ := os.ReadFile(path) // unreadable: as if it named none
	var out []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" || len(out) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53).String())
		}
	}
	if len(out) == 0 {
		out = []string{"127.0.0.1:53", "[::1]:53"}
	}
	return out
}

// ask puts one question to the servers, one after the other without waiting for the silent ones, and returns the
// first answer. The error is that of the last server that failed.
func ask(ctx context.Context, servers []*nameServer, q dnsmessage.Question) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the other queries
	defer cancel()
	type reply struct {
		addrs []netip.Addr
		err   error
	}
	most := askRounds * len(servers)
	replies := make(chan reply, most)
	var asked, failed int
	askedAt := make([]int64, most)
	next := func() {
		s, round := servers[asked%len(servers)], asked/len(servers)
		askedAt[asked] = time.Now().UnixNano()
		asked++
		go func() {
			// A server that drops queries with EDNS, or fails on them, may answer the second one.
			addrs, err := s.ask(ctx, q, round%2 == 0 && !s.plain.Load())
			replies <- reply{addrs, err}
		}()
	}
	next()
	timer := time.NewTimer(askAgain)
	defer timer.Stop()
	var last error
	for {
		select {
		case r := <-replies:
			if dns, ok := errors.AsType[*net.DNSError](r.err); r.err == nil || ok && dns.IsNotFound {
				return r.addrs, r.err
			}
			last = r.err
			failed++
			if failed == most {
				return nil, last
			}
			if asked < len(servers) { // one that was not asked yet; the same one not before its time
				next()
				timer.Reset(askAgain)
			}
		case <-timer.C:
			for i, at := range askedAt[:asked] { // recorded before the next server's answer ends the look-up
				servers[i%len(servers)].silentSince(at)
			}
			if asked < most {
				next()
				timer.Reset(askAgain)
			}
		case <-ctx.Done():
			if last == nil {
				last = silent(servers[:min(asked, len(servers))], shown(q))
			}
			return nil, last
		}
	}
}

// silent is the error of a look-up that ended without any answer.
func silent(servers []*nameServer, host string) error {
	names := make([]string, len(servers))
	for i, s := range servers {
		names[i] = s.addr
	}
	return &net.DNSError{Err: "no answer", Name: host, Server: strings.Join(names, ", "), IsTimeout: true, IsTemporary: true}
}

func shown(q dnsmessage.Question) string { return strings.TrimSuffix(q.Name.String(), ".") }

// silentSince records a failure of s if it has answered no query since at, in nanoseconds.
func (s *nameServer) silentSince(at int64) {
	if s.answered.Load() < at {
		s.failed.Store(time.Now().UnixNano())
	}
}

// ask puts q to s and records its answer or failure. [ask] records its silence.
func (s *nameServer) ask(ctx context.Context, q dnsmessage.Question, edns bool) ([]netip.Addr, error) {
	addrs, code, err := s.exchange(ctx, q, edns)
	if err == nil && edns && (code == dnsmessage.RCodeFormatError || code == dnsmessage.RCodeNotImplemented || code == codeBadVersion) {
		if addrs, code, err = s.exchange(ctx, q, false); err == nil && code != dnsmessage.RCodeFormatError {
			s.plain.Store(true)
		}
	}
	fail := func(text string, notFound bool) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: text, Name: shown(q), Server: s.addr, IsNotFound: notFound, IsTemporary: !notFound}
	}
	switch {
	case err == nil && code == dnsmessage.RCodeSuccess:
		s.answered.Store(time.Now().UnixNano())
		return addrs, nil
	case err == nil && code == dnsmessage.RCodeNameError:
		s.answered.Store(time.Now().UnixNano())
		return fail("no such host", true)
	case ctx.Err() == nil:
		s.failed.Store(time.Now().UnixNano())
	}
	if err == nil {
		return fail("the server answered "+codeText(code), false)
	}
	return fail(reason(err), false)
}

// codeBadVersion says that a server knows another version of EDNS only (RFC 6891, section 6.1.3).
const codeBadVersion = dnsmessage.RCode(16)

// codeText is a response code as it is written in RFC 1035 and in the output of name servers' tools.
func codeText(code dnsmessage.RCode) string {
	switch code {
	case dnsmessage.RCodeFormatError:
		return "FORMERR"
	case dnsmessage.RCodeServerFailure:
		return "SERVFAIL"
	case dnsmessage.RCodeNotImplemented:
		return "NOTIMP"
	case dnsmessage.RCodeRefused:
		return "REFUSED"
	case codeBadVersion:
		return "BADVERS"
	}
	return fmt.Sprintf("with code %d", code)
}

// exchange sends one query over UDP and, when the answer was cut, over TCP.
func (s *nameServer) exchange(ctx context.Context, q dnsmessage.Question, edns bool) ([]netip.Addr, dnsmessage.RCode, error) {
	id := uint16(rand.Uint32()) //nolint:gosec // a random id, and a random port of the system's
	query, err := pack(id, q, edns)
	if err != nil {
		return nil, 0, err
	}
	msg, err := s.roundTrip(ctx, "udp", query, q)
	if err != nil {
		return nil, 0, err
	}
	addrs, head, err := parse(msg)
	if err == nil && head.Truncated {
		tcpCtx, cancel := ctx, context.CancelFunc(func() {})
		if len(addrs) > 0 { // a firewall that drops TCP must not cost the attempt
			tcpCtx, cancel = context.WithTimeout(ctx, askAgain)
		}
		whole, tcpErr := s.roundTrip(tcpCtx, "tcp", query, q)
		cancel()
		if tcpErr == nil {
			addrs, head, err = parse(whole)
		} else if len(addrs) == 0 { // some addresses are as good as all
			return nil, 0, fmt.Errorf("the answer is too long for UDP, and over TCP: %w", tcpErr)
		}
	}
	if err == nil && head.RCode == dnsmessage.RCodeSuccess && len(addrs) == 0 && !head.Authoritative && !head.RecursionAvailable {
		return nil, 0, errors.New("the server does not look up names of others")
	}
	return addrs, head.RCode, err
}

// roundTrip returns the first message from s that answers query.
func (s *nameServer) roundTrip(ctx context.Context, network string, query []byte, q dnsmessage.Question) ([]byte, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, s.addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()

	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...) //nolint:gosec // at most 300 bytes
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	if network == "tcp" {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return nil, err
		}
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, msg); err != nil {
			return nil, err
		}
		if !answers(msg, query[2:], q) {
			return nil, errors.New("the answer is to another question")
		}
		return msg, nil
	}
	buf := make([]byte, maxUDPAnswer)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], query, q) { // anything else may be forged
			return buf[:n], nil
		}
	}
}

func pack(id uint16, q dnsmessage.Question, edns bool) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	if err := errors.Join(b.StartQuestions(), b.Question(q)); err != nil {
		return nil, err
	}
	if edns {
		var h dnsmessage.ResourceHeader
		if err := errors.Join(b.StartAdditionals(), h.SetEDNS0(maxUDPPayload, dnsmessage.RCodeSuccess, false),
			b.OPTResource(h, dnsmessage.OPTResource{})); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// answers reports whether msg is an answer to query, which asks q. Old servers leave the question out of an error.
func answers(msg, query []byte, q dnsmessage.Question) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || !bytes.Equal(msg[:2], query[:2]) {
		return false
	}
	got, err := p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) {
		return h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError
	}
	return err == nil && got.Type == q.Type && got.Class == q.Class && strings.EqualFold(got.Name.String(), q.Name.String())
}

// parse returns the addresses in msg, those of aliases included.
func parse(msg []byte) ([]netip.Addr, dnsmessage.Header, error) {
	var p dnsmessage.Parser
	head, err := p.Start(msg)
	if err != nil {
		return nil, head, err
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, head, err
	}
	var out []netip.Addr
	for len(out) < maxAddresses {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return out, head, err
		}
		switch h.Type {
		case dnsmessage.TypeA:
			r, err := p.AResource()
			if err != nil {
				return out, head, err
			}
			out = append(out, netip.AddrFrom4(r.A))
		case dnsmessage.TypeAAAA:
			r, err := p.AAAAResource()
			if err != nil {
				return out, head, err
			}
			out = append(out, netip.AddrFrom16(r.AAAA))
		default:
			if err := p.SkipAnswer(); err != nil {
				return out, head, err
			}
		}
	}
	if len(out) == 0 {
		head.RCode = extended(p, head.RCode)
	}
	return out, head, nil
}

// extended returns the response code of a message whose answers p has read: EDNS holds its upper part.
func extended(p dnsmessage.Parser, code dnsmessage.RCode) dnsmessage.RCode {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return code
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return code
		}
		if h.Type == dnsmessage.TypeOPT {
			return h.ExtendedRCode(code)
		}
		if p.SkipAdditional() != nil {
			return code
		}
	}
}
