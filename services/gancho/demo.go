package gancho

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"gancho/pkg/bus"
	"gancho/pkg/client"
	"gancho/pkg/event"
	"gancho/pkg/event/samples"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/service"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

// demoSettings make the tour short: what takes minutes and hours by default takes seconds. One request at
// a time per URL, so that the order of arrival can be checked exactly.
var demoSettings = []string{
	"NATS_LISTEN=127.0.0.1:0", "NATS_SYNC_INTERVAL=1s", "OPS_ADDR=127.0.0.1:0", "REDIS_URL=", "REDIS_URL_FILE=", "NATS_URL_FILE=",
	"ENCRYPTION_KEY_FILE=", "API_TOKENS=", "API_TOKENS_FILE=",
	"ALLOW_HTTP_URLS=true", "EGRESS_ALLOW_CIDRS=127.0.0.0/8", "EGRESS_ALLOW_PORTS=*", "EGRESS_PROXY_URL=",
	"ATTEMPT_TIMEOUT=10s", "RETRY_DELAYS=200ms,300ms,400ms,500ms,600ms", "RETRY_JITTER=0.1", "MAX_IN_FLIGHT_PER_URL=1",
	"SUSPENSION_WINDOW=10m", "SUSPENSION_MIN_FAILURES=20", "SUSPENSION_MIN_SPAN=4s", "SUSPENSION_DURATION=2s", "SUSPENSION_MAX_DURATION=4s",
	"LOG_LEVEL=info",
}

const (
	// demoRounds is how often every sample event is published.
	demoRounds = 10
	// demoRefused is how many notifications the flaky receiver never accepts: their 18 failed attempts are too few to
	// suspend it.
	demoRefused = 3
	// demoLimit ends a tour that does not come to its end, demoPatience one that gets nowhere. A busy machine needs
	// longer than the minute that the tour takes otherwise.
	demoLimit, demoPatience = 15 * time.Minute, time.Minute
	// demoSilence is how long the progress may stand still before the tour reports the reason.
	demoSilence = 5 * time.Second
)

// Demo is the finite tour: it starts everything on free ports and a temporary directory, three receivers
// (one healthy, one flaky, one dead that comes back), registers webhooks through the API, publishes the
// sample events, shows conditions and look-ups, and checks the books against the receivers' requests. It returns 1 if
// they do not balance.
func Demo(environ []string, stdout, stderr io.Writer) int {
	dir, err := os.MkdirTemp("", "gancho-demo-")
	if err != nil {
		fmt.Fprintln(stderr, err)
		return service.ExitError
	}
	d := &demo{out: stdout, dir: dir, terminal: isTerminal(stdout)}
	err = d.run(environ)
	if err != nil {
		fmt.Fprintf(stderr, "\ndemo: %v\nThe log is %s\n", err, filepath.Join(dir, "gancho.log"))
		return service.ExitError
	}
	_ = os.RemoveAll(dir)
	return service.ExitOK
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

type demo struct {
	out      io.Writer
	dir      string
	terminal bool
	api      string
	client   *client.Client
	bus      *bus.Bus

	receivers []*demoReceiver
	ledger    []*demoEntry // every notification that must end
	waiting   []string     // ids on PARKED that were never attempted when the dead receiver came back, the oldest first
	began     time.Time
	lastLine  string
	counts    string    // of the last progress
	moved     time.Time // when they changed last
	waited    time.Time // when the tour last reported the reason of a wait
}

// demoEntry is one notification that the published events led to.
type demoEntry struct {
	id        string
	receiver  *demoReceiver
	published time.Time
	state     notification.State
	done      int  // attempts recorded
	parked    bool // seen parked at least once
}

func (d *demo) run(environ []string) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	environ = append(slices.Clone(environ), demoSettings...)
	environ = append(environ, "DATA_DIR="+d.dir, "HTTP_ADDR="+address)
	d.api = "http://" + address
	logFile, err := os.Create(filepath.Join(d.dir, "gancho.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	shell, err := service.NewShell("info", zapcore.AddSync(logFile))
	if err != nil {
		return err
	}
	defer shell.Close()
	var cfg Config
	if problems := service.Load(&cfg, environ); len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n"))
	}
	all, problems, err := prepare(&cfg, environ)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n"))
	}
	if d.client, err = client.New(client.Config{URL: d.api, Token: all.firstToken}); err != nil {
		return err
	}

	ctx, stopSignals := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stopSignals()
	ctx, stop := context.WithTimeout(ctx, demoLimit)
	defer stop()
	stopped := make(chan error, 1)
	at := make(chan addresses, 1)
	go func() { stopped <- all.run(ctx, shell, func(a addresses) { at <- a }) }()
	var where addresses
	select {
	case err := <-stopped:
		return err
	case where = <-at:
	}
	if d.bus, err = bus.Connect(bus.Config{URL: where.nats}, "demo", zap.NewNop(), prometheus.NewRegistry()); err != nil {
		return err
	}
	defer d.bus.Close()
	tour := d.tour(ctx, shell.Health, where)
	stop()
	if err := <-stopped; err != nil && tour == nil {
		return err
	}
	return tour
}

// freeAddress returns an address on loopback that no process listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// tour plays a customer, the CRM and three receivers.
func (d *demo) tour(ctx context.Context, health *service.Health, where addresses) error {
	if err := d.waitReady(ctx, health); err != nil {
		return err
	}
	dead := &demoReceiver{name: "dead", answer: alwaysFails}
	d.receivers = []*demoReceiver{{name: "healthy", answer: alwaysAnswers}, {name: "flaky", answer: failsTwice, refuses: demoRefused}, dead}
	fmt.Fprintf(d.out, "Gancho runs in this process: broker %s, API %s\n\n", where.nats, d.api)
	for _, r := range d.receivers {
		if err := r.start(); err != nil {
			return err
		}
		defer r.stop()
		if err := d.register(ctx, r); err != nil {
			return err
		}
		fmt.Fprintf(d.out, "  registered %-8s every event -> %s (%s)\n", r.name, r.url(), r.describe())
	}
	if err := d.warmUp(ctx, health); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nPublishing %d events of %d kinds to NATS\n", demoRounds*len(samples.Names()), len(samples.Names()))
	d.began = time.Now()
	d.moved, d.waited = d.began, d.began
	for range demoRounds {
		for _, name := range samples.Names() {
			if err := d.publish(ctx, name); err != nil {
				return err
			}
			if !sleep.For(ctx, 20*time.Millisecond) {
				return ctx.Err()
			}
		}
		d.progress(ctx)
		d.moved = time.Now()
	}
	d.say("waiting until the dead receiver is suspended and its notifications are parked")
	if err := d.progressUntil(ctx, func() bool { return d.count(dead, notification.Parked) > 0 && d.count(dead, notification.Pending) == 0 }); err != nil {
		return fmt.Errorf("the dead receiver was not suspended: %w", err)
	}
	if err := d.readParked(ctx, dead); err != nil {
		return fmt.Errorf("read parked notifications: %w", err)
	}
	dead.comeBack()
	d.say("the dead receiver is back; the next probe finds out, and parked notifications are released, oldest first")
	if err := d.progressUntil(ctx, func() bool { return d.open() == 0 }); err != nil {
		return fmt.Errorf("%d notifications have not ended: %w", d.open(), err)
	}
	if err := (&owner{d: d}).play(ctx); err != nil {
		return err
	}
	return d.balance()
}

// warmUp returns once an event was sent to every receiver. A registration counts for events published 1 s after its
// answer on a machine that is not busy; the publisher that matches is the proof.
func (d *demo) warmUp(ctx context.Context, health *service.Health) error {
	missing := func() (names []string) {
		for _, r := range d.receivers {
			if !r.warm() {
				names = append(names, r.name)
			}
		}
		return names
	}
	const every = 10
	began := time.Now()
	for i := 0; len(missing()) > 0; i++ {
		if i%(every*5) == 0 { // the first may have come before the registrations
			name := samples.Names()[0]
			body, e, err := sample(name, time.Now())
			if err != nil {
				return err
			}
			for _, r := range d.receivers {
				r.expectWarmUp(event.NotificationID(e.ID, r.webhook))
			}
			if _, err := eventstream.Publish(ctx, d.bus, event.Subject(firstAccount, name), e.MsgID(), nil, body); err != nil {
				return err
			}
		}
		if !sleep.For(ctx, time.Second/every) || time.Since(began) > demoPatience {
			return fmt.Errorf("no event has reached the receivers %s after %v: %s", strings.Join(missing(), ", "),
				time.Since(began).Round(time.Second), cmp.Or(strings.Join(health.State().Reasons, "; "), "the services say that they are ready"))
		}
	}
	return nil
}

func (d *demo) waitReady(ctx context.Context, health *service.Health) error {
	for {
		if health.State().Ready && d.answers(ctx) {
			return nil
		}
		if !sleep.For(ctx, 20*time.Millisecond) {
			return fmt.Errorf("the services are not ready: %s", strings.Join(health.State().Reasons, "; "))
		}
	}
}

// answers reports whether the API serves calls.
func (d *demo) answers(ctx context.Context) bool {
	for _, err := range d.client.Webhooks(ctx) {
		return err == nil
	}
	return true // there is no webhook yet
}

// register creates the receiver's webhook through the API.
func (d *demo) register(ctx context.Context, r *demoReceiver) error {
	name, every, method, url := "demo "+r.name, "*", http.MethodPost, r.url()
	created, err := d.client.CreateWebhook(ctx, client.Change{Name: &name, EventName: &every, Method: &method, URL: &url})
	if err != nil {
		return fmt.Errorf("register a webhook: %w", err)
	}
	r.webhook, err = uuid.Parse(created.Value.ID)
	return err
}

// sample returns a new event of a name, and its body.
func sample(name string, at time.Time) ([]byte, event.Event, error) {
	body := samples.Event(name, uuid.NewString(), at)
	e, rejected := event.Parse(event.Message{Subject: event.Subject(firstAccount, name), Header: func(string) string { return "" }, Body: body})
	if rejected != nil {
		return nil, event.Event{}, fmt.Errorf("sample of %s: %w", name, rejected)
	}
	return body, e, nil
}

// publish stores one sample event as the CRM does, and enters its expected results in the ledger.
func (d *demo) publish(ctx context.Context, name string) error {
	now := time.Now()
	body, e, err := sample(name, now)
	if err != nil {
		return err
	}
	if _, err := eventstream.Publish(ctx, d.bus, event.Subject(firstAccount, name), e.MsgID(), nil, body); err != nil {
		return err
	}
	for _, r := range d.receivers {
		id := event.NotificationID(e.ID, r.webhook)
		r.expect(id, body)
		d.ledger = append(d.ledger, &demoEntry{id: id, receiver: r, published: now, state: notification.Pending})
	}
	return nil
}

// refresh reads the journal for every notification that has not ended.
func (d *demo) refresh(ctx context.Context) {
	for _, e := range d.ledger {
		if e.state.Terminal() {
			continue
		}
		last, err := journal.Last(ctx, d.bus, firstAccount, e.id)
		if err != nil {
			continue // no record yet
		}
		e.state, e.done = last.State, last.AttemptsDone
		e.parked = e.parked || last.Kind == notification.KindParked
	}
}

func (d *demo) count(r *demoReceiver, s notification.State) (n int) {
	for _, e := range d.ledger {
		if (r == nil || e.receiver == r) && e.state == s {
			n++
		}
	}
	return n
}

func (d *demo) open() (n int) {
	for _, e := range d.ledger {
		if !e.state.Terminal() {
			n++
		}
	}
	return n
}

// progressUntil shows progress until the condition holds. It gives up when nothing moves for long.
func (d *demo) progressUntil(ctx context.Context, is func() bool) error {
	for {
		d.progress(ctx)
		if is() {
			return nil
		}
		if !sleep.For(ctx, 100*time.Millisecond) {
			return fmt.Errorf("%w; %s", ctx.Err(), d.missing())
		}
		if still := time.Since(d.moved); still > demoPatience {
			return fmt.Errorf("nothing has happened for %v; %s", still.Round(time.Second), d.missing())
		}
		if time.Since(d.moved) > demoSilence && time.Since(d.waited) > demoSilence {
			d.waited = time.Now()
			d.say(d.missing())
		}
	}
}

// missing names the notifications that have not ended, by receiver and state.
func (d *demo) missing() string {
	var lines []string
	for _, r := range d.receivers {
		for _, state := range []notification.State{notification.Pending, notification.Retrying, notification.Parked} {
			if n := d.count(r, state); n > 0 {
				i := slices.IndexFunc(d.ledger, func(e *demoEntry) bool { return e.receiver == r && e.state == state })
				oldest := d.ledger[i]
				lines = append(lines, fmt.Sprintf("%d of the %s receiver are %s, the oldest %s since %v", n, r.name, state, oldest.id,
					time.Since(oldest.published).Round(time.Second)))
			}
		}
	}
	return "waiting for: " + strings.Join(lines, "; ")
}

// progress shows how far the notifications are: a bar on a terminal, plain lines elsewhere.
func (d *demo) progress(ctx context.Context) {
	d.refresh(ctx)
	total := demoRounds * len(samples.Names()) * len(d.receivers)
	ended := len(d.ledger) - d.open()
	const width = 30
	line := fmt.Sprintf("[%-*s] %3d/%d ended: %d delivered, %d permanently failed; %d retrying, %d parked", width,
		strings.Repeat("#", ended*width/total), ended, total, d.count(nil, notification.Delivered),
		d.count(nil, notification.PermanentlyFailed), d.count(nil, notification.Retrying), d.count(nil, notification.Parked))
	if line != d.counts {
		d.counts, d.moved = line, time.Now()
	}
	if line == d.lastLine {
		return
	}
	if d.terminal {
		fmt.Fprintf(d.out, "\r%s\x1b[K", line)
		d.lastLine = line
		return
	}
	if second := time.Since(d.began).Truncate(time.Second).String(); !strings.HasPrefix(d.lastLine, second+" ") {
		d.lastLine = second + " "
		fmt.Fprintf(d.out, "%5s %s\n", second, line)
	}
}

func (d *demo) say(text string) {
	if d.terminal {
		fmt.Fprint(d.out, "\r\x1b[K")
	}
	fmt.Fprintf(d.out, "%5s %s\n", time.Since(d.began).Truncate(time.Second), text)
	d.lastLine = ""
}

// balance compares the ledger, the journal and the receivers' requests, and prints the table.
func (d *demo) balance() error {
	var problems []string
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var retried, parked, duplicates, lost int
	var latency []time.Duration
	for _, e := range d.ledger {
		seen := e.receiver.requests(e.id)
		distinct := map[string]bool{}
		accepted := false
		for i, r := range seen {
			if distinct[r.attempt] {
				duplicates++
			}
			distinct[r.attempt] = true
			accepted = accepted || r.accepted
			if i == 0 && e.receiver.name == "healthy" {
				latency = append(latency, r.at.Sub(e.published))
			}
		}
		switch {
		case e.state == notification.Delivered && !accepted:
			lost++
			problem("%s says delivered, but its receiver never accepted it", e.id)
		case e.state == notification.PermanentlyFailed && (accepted || len(distinct) != notification.MaxAttempts || e.done != notification.MaxAttempts):
			problem("%s is permanently failed after %d attempts of which the receiver saw %d", e.id, e.done, len(distinct))
		case !e.state.Terminal():
			lost++
			problem("%s has not ended: %s", e.id, e.state)
		}
		if len(distinct) > 1 {
			retried++
		}
		if e.parked {
			parked++
		}
	}
	for _, r := range d.receivers {
		if n := r.strangers(); n > 0 {
			problem("the %s receiver saw %d requests that no event accounts for", r.name, n)
		}
		if n := r.changed(); n > 0 {
			problem("the %s receiver saw %d bodies that differ from the published ones", r.name, n)
		}
	}
	if d.count(nil, notification.PermanentlyFailed) < demoRefused {
		problem("not every notification that its receiver refuses failed permanently")
	}
	if len(d.waiting) == 0 {
		problem("nothing was parked before its first attempt")
	}
	if out := d.outOfOrder(); out > 0 {
		problem("%d notifications arrived before one that was parked before them", out)
	}
	d.table(retried, parked, duplicates, lost, latency)
	if len(problems) > 0 {
		return fmt.Errorf("the books do not balance:\n  %s", strings.Join(problems[:min(10, len(problems))], "\n  "))
	}
	fmt.Fprintf(d.out, "The books balance: every notification ended once, as its receiver saw it, and parked ones arrived oldest first.\n")
	return nil
}

// readParked notes in which order PARKED holds a receiver's notifications that were never attempted.
func (d *demo) readParked(ctx context.Context, r *demoReceiver) error {
	subject := topology.SubjectParked(firstAccount, "*", r.webhook.String())
	for next := uint64(1); ; {
		m, err := d.bus.Get(ctx, topology.Parked, subject, next)
		if errors.Is(err, bus.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		n, err := notification.Decode(m.Header, m.Data)
		if err != nil {
			return err
		}
		if n.AttemptsDone == 0 {
			d.waiting = append(d.waiting, n.ID)
		}
		next = m.Sequence + 1
	}
}

// outOfOrder counts notifications that arrived before one that was parked before them. The receiver gets one request
// at a time, so the order is exact; those that needed a second attempt after their release do not count.
func (d *demo) outOfOrder() (n int) {
	byID := map[string]*demoEntry{}
	for _, e := range d.ledger {
		byID[e.id] = e
	}
	var last time.Time
	for _, id := range d.waiting {
		e := byID[id]
		if e == nil || e.done != 1 {
			continue
		}
		seen := e.receiver.requests(id)
		if len(seen) == 0 {
			continue // reported as one that the receiver never accepted
		}
		if at := seen[0].at; at.Before(last) {
			n++
		} else {
			last = at
		}
	}
	return n
}

func (d *demo) table(retried, parked, duplicates, lost int, latency []time.Duration) {
	if d.terminal {
		fmt.Fprintln(d.out)
	}
	slices.SortFunc(latency, func(a, b time.Duration) int { return cmp.Compare(a, b) })
	at := func(percent int) time.Duration {
		return latency[min(len(latency)-1, len(latency)*percent/100)].Round(100 * time.Microsecond)
	}
	fmt.Fprintln(d.out)
	for _, row := range [][2]any{
		{"events", len(d.ledger) / len(d.receivers)},
		{"notifications", len(d.ledger)},
		{"delivered", d.count(nil, notification.Delivered)},
		{"  of them retried", retried - d.count(nil, notification.PermanentlyFailed)},
		{"permanently failed", d.count(nil, notification.PermanentlyFailed)},
		{"parked on the way", parked},
		{"duplicates", duplicates},
		{"latency p50", at(50)},
		{"latency p95", at(95)},
		{"latency p99", at(99)},
		{"lost", lost},
	} {
		fmt.Fprintf(d.out, "  %-20s %10v\n", row[0], row[1])
	}
	fmt.Fprintf(d.out, "  (%s; latency is from publishing to the healthy receiver)\n\nlost: %d\n", time.Since(d.began).Round(time.Second), lost)
}
