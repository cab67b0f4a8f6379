package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"gancho/pkg/address"
)

// link is the state of the connection, as far as this process has been notified of it. The client library holds its
// lock while it dials and logs in, so nothing that must answer at once may ask it. It is safe for concurrent use.
type link struct {
	mu      sync.Mutex
	up      bool
	lenient bool                 // any version will do
	version string               // of the server, while up
	causes  []string             // why each server cannot be used, while down
	refused map[string]time.Time // the rights that the broker missed lately, and when
}

func (l *link) set(up bool, version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.version, l.causes = up, version, nil
}

func (l *link) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// unfit says why the broker cannot be worked with at all, "" if it can.
func (l *link) unfit() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.up && len(l.causes) > 0:
		return "not connected to the broker: " + strings.Join(l.causes, "; ")
	case !l.up:
		return "not connected to the broker"
	case l.lenient:
		return ""
	}
	return tooOld(l.version)
}

func (l *link) serverVersion() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.version
}

// refusedFor is how long a refusal counts after it happened last.
const refusedFor = time.Minute

// refuse notes that the broker denied a right.
func (l *link) refuse(right string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused[right] = time.Now()
}

// denied returns the rights that the broker denied lately.
func (l *link) denied() (rights []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for right, at := range l.refused {
		if time.Since(at) > refusedFor {
			delete(l.refused, right)
		} else {
			rights = append(rights, right)
		}
	}
	slices.Sort(rights)
	return rights
}

// oldest is the oldest version of nats-server that can do everything asked of it: it introduced allow_msg_schedules
// (without which no retry is made) and allow_atomic. An older one ignores both without a word.
const oldest = "2.12.0"

// tooOld says that a version of nats-server is too old, "" if it is not. A version of another form counts as new
// enough: the server's answers to the creation of streams and consumers are compared with the requests.
func tooOld(version string) string {
	if have, want := parseVersion(version), parseVersion(oldest); have == nil || slices.Compare(have, want) >= 0 {
		return ""
	}
	return fmt.Sprintf("nats-server %s is too old: %s or newer is needed, which has allow_msg_schedules (stream "+
		"RETRIES) and allow_atomic; upgrade the broker", version, oldest)
}

// TooOld says that the broker's version is too old, "" when it is not, or there is no connection.
func (b *Bus) TooOld() string {
	if !b.link.isUp() {
		return ""
	}
	return b.link.unfit()
}

// fit returns an error while the broker cannot be worked with.
func (b *Bus) fit() error {
	if why := b.link.unfit(); why != "" {
		return &unfitError{why}
	}
	return nil
}

// unfitError says that the broker cannot be worked with at all.
type unfitError struct{ why string }

func (e *unfitError) Error() string { return e.why }

// connected notes a new connection.
func (b *Bus) connected(nc *nats.Conn) {
	b.link.set(true, nc.ConnectedServerVersion())
	if why := b.TooOld(); why != "" && b.ShouldLog("version") {
		b.log.Error("the broker is too old", zap.String("reason", why))
	}
}

// parseVersion returns the three numbers of a version, nil when it has another form.
func parseVersion(version string) []int {
	core, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "-")
	numbers := make([]int, 0, 3)
	for part := range strings.SplitSeq(core, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil
		}
		numbers = append(numbers, n)
	}
	if len(numbers) != 3 {
		return nil
	}
	return numbers
}

// How long an attempt to reach a server may take, how long the client library waits for one, and how often the servers
// are asked why they cannot be used.
const (
	dialTimeout    = 10 * time.Second
	dialPatience   = 300 * time.Millisecond
	dialKept       = 1500 * time.Millisecond // nats-server closes a connection that does not log in within 2 s
	diagnoseWithin = 3 * time.Second
	diagnoseEvery  = 5 * time.Second
	diagnoseFirst  = 500 * time.Millisecond
)

// dialer dials in the background, because the client library holds its lock while it dials, and a look-up of a name
// that is gone takes many seconds. A connection that comes later than the library waits is there for its next attempt.
type dialer struct {
	ctx     context.Context //nolint:containedctx // its end ends every attempt, and every connection
	dial    dialFunc
	mu      sync.Mutex
	pending map[string]chan dialed // by address
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

type dialed struct {
	conn net.Conn
	err  error
	at   time.Time
}

// errDialing says that a server has not answered yet.
var errDialing = errors.New("no connection yet")

// Dial is nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	wait := time.NewTimer(dialPatience)
	defer wait.Stop()
	for {
		result := d.start(network, address)
		select {
		case r := <-result:
			d.mu.Lock()
			delete(d.pending, address)
			d.mu.Unlock()
			if r.err == nil && time.Since(r.at) > dialKept {
				_ = r.conn.Close()
				continue
			}
			return r.conn, r.err
		case <-wait.C:
			return nil, errDialing
		case <-d.ctx.Done():
			return nil, d.ctx.Err()
		}
	}
}

func (d *dialer) start(network, address string) chan dialed {
	d.mu.Lock()
	defer d.mu.Unlock()
	result := d.pending[address]
	if result == nil {
		result = make(chan dialed, 1)
		d.pending[address] = result
		go func() {
			ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
			defer cancel()
			conn, err := d.dial(ctx, network, address)
			if err == nil {
				conn = closedWith(d.ctx, conn)
			}
			result <- dialed{conn, err, time.Now()}
		}()
	}
	return result
}

// SkipTLSHandshake is what nats.go looks for in a custom dialer: it does the handshake itself.
func (*dialer) SkipTLSHandshake() bool { return false }

// boundConn is a connection that ends with a context.
type boundConn struct {
	net.Conn

	stop func() bool
}

func closedWith(ctx context.Context, conn net.Conn) net.Conn {
	return &boundConn{conn, context.AfterFunc(ctx, func() { _ = conn.Close() })}
}

func (c *boundConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// watchLink finds out, while there is no connection, why each server cannot be used, and logs it when it changes and
// at most once in repeatAfter, until Close.
func (b *Bus) watchLink(servers []string) {
	next := time.NewTimer(diagnoseFirst)
	defer next.Stop()
	for {
		select {
		case <-b.closing.Done():
			return
		case <-next.C:
		}
		next.Reset(diagnoseEvery)
		if b.link.isUp() {
			continue
		}
		causes := b.diagnose(servers)
		b.link.mu.Lock()
		down := !b.link.up
		if down {
			b.link.causes = causes
		}
		b.link.mu.Unlock()
		if down && b.closing.Err() == nil && b.ShouldLog("link: "+strings.Join(causes, ";")) {
			b.log.Warn("the broker cannot be reached; trying again", zap.Strings("servers", causes))
		}
	}
}

// diagnose tries every server with a connection of its own and returns, in order, the host and the cause of each that
// cannot be used.
func (b *Bus) diagnose(servers []string) []string {
	causes := make([]string, len(servers))
	var all sync.WaitGroup
	for i, server := range servers {
		all.Go(func() {
			if cause := b.try(server); cause != "" {
				u, err := url.Parse(server)
				if err != nil { // Validate has refused it
					return
				}
				causes[i] = u.Host + ": " + cause
			}
		})
	}
	all.Wait()
	return slices.DeleteFunc(causes, func(s string) bool { return s == "" })
}

// try connects to one server and returns why that is not possible, "" if it is.
func (b *Bus) try(server string) string {
	ctx, cancel := context.WithTimeout(b.closing, diagnoseWithin)
	defer cancel()
	direct := &directDialer{ctx: ctx}
	opts := append(slices.Clone(b.login), nats.Name(b.nc.Opts.Name+" diagnosis"), nats.NoReconnect(),
		nats.Timeout(diagnoseWithin),
		nats.SkipHostLookup(), nats.SetCustomDialer(direct))
	nc, err := nats.Connect(server, opts...)
	if err == nil {
		nc.Close()
		return ""
	}
	return causeOf(cmp.Or(direct.err, err))
}

// directDialer dials and remembers why that failed: nats.Connect does not always say.
type directDialer struct {
	ctx context.Context //nolint:containedctx // of one attempt
	err error
}

// Dial is nats.CustomDialer.
func (d *directDialer) Dial(network, address string) (net.Conn, error) {
	var n net.Dialer
	conn, err := n.DialContext(d.ctx, network, address)
	if d.err = err; err != nil {
		return nil, err
	}
	return closedWith(d.ctx, conn), nil
}

// causeOf says in a few words why a server of the broker cannot be used.
func causeOf(err error) string {
	text := strings.ToLower(err.Error())
	switch {
	case strings.Contains(text, "authorization violation"), strings.Contains(text, "authentication"),
		strings.Contains(text, "nkey"), strings.Contains(text, "user jwt"):
		return "login refused: check user and password of NATS_URL, or NATS_CREDS_FILE"
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "TLS: the server does not offer it; write nats:// in NATS_URL, or configure tls on the server"
	case errors.Is(err, nats.ErrTimeout):
		return "no answer in time"
	}
	if cause := address.Cause(err); strings.HasPrefix(cause, "TLS: the certificate is not accepted") {
		return cause + "; NATS_CA_FILE names the authority that signed it"
	} else if cause != "" {
		return cause
	}
	return "it refuses, or is no NATS server"
}

// denial is a refusal of the broker's permissions, with the operation and the first two tokens of the subject: the
// others may be ids, of which each would be another text.
var denial = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^".]*(?:\.[^".]*)?)`)

// right returns which right an error of the broker says is missing, "" when it is about something else.
func right(err error) string {
	m := denial.FindStringSubmatch(err.Error())
	if m == nil {
		return ""
	}
	verb := "publish to "
	if strings.EqualFold(m[1], "subscription") {
		verb = "subscribe to "
	}
	return verb + m[2]
}
