package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/numbers"
	"gancho/pkg/redistest"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/command"
	"gancho/pkg/suspension/status"
	"gancho/pkg/topology"
)

// The users of deploy/nats/accounts.conf.
const (
	userCRM        = "crm"
	userPublisher  = "publisher"
	userDispatcher = "dispatcher"
	userMonitor    = "suspension-monitor"
	userManagement = "management"
	userOperator   = "operator"
)

var brokerUsers = []string{userCRM, userPublisher, userDispatcher, userMonitor, userManagement, userOperator}

// broker is a NATS server with the configuration that docker-compose.yml mounts.
type broker struct {
	srv *server.Server

	mu      sync.Mutex
	refused []string // "Permissions Violation" lines
}

func startBroker(t *testing.T) *broker {
	t.Helper()
	opts, err := server.ProcessConfigFile(shippedConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	if !opts.SyncAlways || opts.MaxPayload != 2<<20 || opts.NoAuthUser != "" {
		t.Errorf("nats.conf: sync always %v, max_payload %d, no_auth_user %q; want true, 2 MiB, none", opts.SyncAlways, opts.MaxPayload, opts.NoAuthUser)
	}
	opts.Host, opts.Port, opts.HTTPHost, opts.HTTPPort = "127.0.0.1", server.RANDOM_PORT, "", 0
	opts.StoreDir, opts.NoSigs = t.TempDir(), true
	b := &broker{}
	if b.srv, err = server.NewServer(opts); err != nil {
		t.Fatal(err)
	}
	b.srv.SetLoggerV2(b, false, false, false)
	b.srv.Start()
	t.Cleanup(func() { b.srv.Shutdown(); b.srv.WaitForShutdown() })
	if !b.srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("nats-server is not ready after 20 s")
	}
	return b
}

// shippedConfig writes deploy/nats/nats.conf with its include and its environment to one file. All tests share the
// environment of this process.
func shippedConfig(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	text.WriteString("NATS_SYNC_INTERVAL = always\nNATS_MAX_FILE_STORE = 1GB\n")
	for _, user := range brokerUsers {
		fmt.Fprintf(&text, "NATS_PASSWORD_%s = %q\n", strings.ToUpper(strings.ReplaceAll(user, "-", "_")), "12"+user)
	}
	conf, err := os.ReadFile(root("deploy", "nats", "nats.conf"))
	must(t, "nats.conf", err)
	const include = `include "accounts.conf"`
	before, after, found := strings.Cut(string(conf), include)
	if !found {
		t.Fatalf("nats.conf has no %s", include)
	}
	accounts, err := os.ReadFile(root("deploy", "nats", "accounts.conf"))
	must(t, "accounts.conf", err)
	file := filepath.Join(t.TempDir(), "nats.conf")
	must(t, "configuration", os.WriteFile(file, slices.Concat([]byte(text.String()), []byte(before), accounts, []byte(after)), 0o600))
	return file
}

// The server's log: only refusals matter here.
func (b *broker) Errorf(format string, v ...any) {
	if line := fmt.Sprintf(format, v...); strings.Contains(line, "Violation") {
		b.mu.Lock()
		b.refused = append(b.refused, line)
		b.mu.Unlock()
	}
}
func (b *broker) Noticef(string, ...any) {}
func (b *broker) Warnf(string, ...any)   {}
func (b *broker) Fatalf(string, ...any)  {}
func (b *broker) Debugf(string, ...any)  {}
func (b *broker) Tracef(string, ...any)  {}

func (b *broker) url(user string) string {
	u := url.URL{Scheme: "nats", Host: b.srv.Addr().String(), User: url.UserPassword(user, "12"+user)}
	return u.String()
}

func (b *broker) connect(t *testing.T, user string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(b.url(user), nats.CustomInboxPrefix("_INBOX_"+user), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatalf("%s: %v", user, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (b *broker) bus(t *testing.T, user string) *bus.Bus {
	t.Helper()
	c, err := bus.Connect(bus.Config{URL: b.url(user)}, user, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// must ends the test when a step of a service's work fails.
func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// stored drops the broker's answer to a message.
func stored(_ *jetstream.PubAck, err error) error { return err }

// TestBrokerLetsServicesWork does with each user, through pkg/bus, what its service does seldom or only
// when something broke, and sees that the broker refused nothing. TestServicesUnderTheirUsers runs the rest.
func TestBrokerLetsServicesWork(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	limits := topology.Limits{
		Replicas: 1, EventMaxBytes: 1 << 20, EventsMaxAge: time.Hour, LogMaxAge: time.Hour, DuplicateWindow: time.Minute,
	}
	publisher, dispatcher := b.bus(t, userPublisher), b.bus(t, userDispatcher)
	monitor, management := b.bus(t, userMonitor), b.bus(t, userManagement)
	must(t, "publisher's streams", publisher.Own(ctx, topology.Publisher, limits))
	must(t, "dispatcher's streams", dispatcher.Own(ctx, topology.Dispatcher, limits))
	must(t, "monitor's streams", monitor.Own(ctx, topology.Monitor, limits))
	must(t, "management's buckets", management.Own(ctx, topology.Management, limits))
	full, err := monitor.StreamState(ctx, topology.Events)
	must(t, "monitor looks at CRM_EVENTS", err)
	if got, want := full.MaxBytes, int64(1<<30/100*30); got != want { // of NATS_MAX_FILE_STORE
		t.Errorf("CRM_EVENTS may hold %d bytes, want %d", got, want)
	}
	must(t, "the broker's payload limit", publisher.RequirePayload(ctx, 1<<20+topology.BrokerHeadroom))

	must(t, "dispatcher awaits others' streams", dispatcher.Await(ctx, topology.Notifications, topology.Quarantine))

	// The CRM is an ordinary client, with an inbox prefix of its own.
	crmConn, err := nats.Connect(b.url(userCRM), nats.CustomInboxPrefix("_INBOX_crm"))
	must(t, "crm connects", err)
	t.Cleanup(crmConn.Close)
	crm, err := jetstream.New(crmConn)
	must(t, "crm's JetStream", err)
	_, err = crm.Publish(ctx, "crm.events.acme.crm_deal_created", []byte(`{"event_name":"crm_deal_created"}`))
	must(t, "crm publishes", err)
	_, err = crm.Publish(ctx, "crm.events.odd", []byte(`{}`))
	must(t, "crm publishes what publisher will reject", err)

	events, err := eventstream.Consume(ctx, publisher)
	must(t, "publisher consumes events", err)
	var got []*eventstream.Delivery
	must(t, "publisher pulls", events.Pull(ctx, 2, bus.Unbounded, func(m *eventstream.Delivery) { got = append(got, m) }))
	if len(got) != 2 {
		t.Fatalf("publisher got %d events, want 2", len(got))
	}
	webhookID, eventID := uuid.New(), uuid.NewString()
	n := &notification.Notification{
		Account: "acme", ID: event.NotificationID(eventID, webhookID), WebhookID: webhookID.String(), EventID: eventID,
		EventName: "crm_deal_created", EventSequence: 1, EventTime: time.Now(), Send: 1, Body: []byte(`{}`),
	}
	must(t, "publisher notifies", lane.Notify(publisher, n).Wait(ctx))
	must(t, "publisher rejects", stored(publisher.Publish(ctx, topology.Rejected, bus.NewMessage("gancho.rejected.bad_subject", "", got[1].Body))))
	got[0].Ack()
	got[1].Ack()

	first, err := lane.First(ctx, dispatcher, 20*time.Second)
	must(t, "dispatcher consumes first attempts", err)
	pulled, err := first.Pull(ctx, 1, bus.Unbounded, func(d *lane.Delivery) {
		record := &notification.Record{Kind: notification.KindAttempt, At: time.Now(), Account: d.Account, NotificationID: d.ID, WebhookID: d.WebhookID, Send: 1}
		_, recordErr := journal.Write(ctx, dispatcher, record)
		must(t, "dispatcher records", recordErr)
		must(t, "dispatcher schedules a retry", lane.Schedule(ctx, dispatcher, &d.Notification, time.Now()))
		must(t, "dispatcher parks", lane.Park(dispatcher, &d.Notification, "0123456789abcdef0123456789abcdef").Wait(ctx))
		must(t, "dispatcher keeps a failure", lane.Fail(ctx, dispatcher, &d.Notification, "status_5xx"))
		must(t, "dispatcher sets aside", d.SetAside(ctx, "internal_error", "test"))
		d.Ack()
	})
	must(t, "dispatcher pulls", err)
	if pulled != 1 {
		t.Fatalf("dispatcher pulled %d notifications, want 1", pulled)
	}
	_, err = journal.Last(ctx, dispatcher, n.Account, n.ID)
	must(t, "dispatcher reads the journal", err)

	retries, err := lane.Retries(ctx, dispatcher, 20*time.Second)
	must(t, "dispatcher consumes retries", err)
	for done := false; !done && ctx.Err() == nil; { // the schedule fires within a second
		_, err = retries.Pull(ctx, 1, bus.Unbounded, func(d *lane.Delivery) {
			done = true
			d.NakAfter(time.Hour)
		})
		must(t, "dispatcher pulls retries", err)
	}
	for _, err := range lane.LeftBehind(ctx, dispatcher, retries) {
		must(t, "dispatcher looks for retries left behind", err)
	}
	exhausted, err := lane.Exhausted(ctx, dispatcher)
	must(t, "dispatcher consumes advisories", err)
	must(t, "dispatcher pulls advisories", exhausted.Pull(ctx, func(*lane.Retry) error { return nil }))

	backlogs, err := lane.Backlogs(ctx, dispatcher, "")
	must(t, "dispatcher lists backlogs", err)
	if len(backlogs) != 1 {
		t.Fatalf("got %d backlogs, want 1", len(backlogs))
	}
	_, err = lane.Backlogs(ctx, management, n.Account)
	must(t, "management lists backlogs", err)
	_, err = lane.OldestParked(ctx, management, n.Account, backlogs[0].Lane, "*")
	must(t, "management reads the oldest parked", err)
	drain, err := lane.OpenDrain(ctx, dispatcher, n.Account, backlogs[0].Lane, "*", 1, 20*time.Second)
	must(t, "dispatcher drains", err)
	_, err = drain.Take(ctx, 1, func(d *lane.Delivery) { d.Ack() })
	must(t, "dispatcher takes from a drain", err)
	_, err = drain.Empty(ctx)
	must(t, "dispatcher looks at a drain", err)
	must(t, "dispatcher ends a drain", drain.Close(ctx))
	leases, err := dispatcher.Bucket(ctx, topology.BucketLeases)
	must(t, "dispatcher's leases", err)
	lease, err := leases.Acquire(ctx, "acme.lane", "one")
	must(t, "dispatcher takes a lease", err)
	must(t, "dispatcher renews a lease", lease.Renew(ctx))
	must(t, "dispatcher gives a lease back", lease.Release(ctx))
	paces, err := dispatcher.Bucket(ctx, topology.BucketPaces)
	must(t, "dispatcher's paces", err)
	planned, err := paces.Create(ctx, "acme.url", []byte("now"))
	must(t, "dispatcher plans requests", err)
	_, err = paces.Update(ctx, "acme.url", []byte("later"), planned)
	must(t, "dispatcher plans more requests", err)
	_, err = paces.Get(ctx, "acme.url")
	must(t, "dispatcher reads what is planned", err)

	webhooks, err := management.Bucket(ctx, topology.BucketWebhooks)
	must(t, "management's registry", err)
	revision, err := webhooks.Create(ctx, "acme.one", []byte(`{}`))
	must(t, "management creates a webhook", err)
	must(t, "management deletes a webhook", webhooks.Delete(ctx, "acme.one", revision))
	_, err = webhooks.Put(ctx, "acme.two", []byte(`{}`))
	must(t, "management changes a webhook", err)
	suspensions, err := monitor.Bucket(ctx, topology.BucketSuspensions)
	must(t, "monitor's bucket", err)
	revision, err = suspensions.Put(ctx, "acme.flag", []byte(`{}`))
	must(t, "monitor writes a flag", err)
	flags, err := dispatcher.Bucket(ctx, topology.BucketSuspensions)
	must(t, "dispatcher's flags", err)
	_, err = flags.Update(ctx, "acme.flag", []byte(`{"state":"probing"}`), revision)
	must(t, "dispatcher claims a probe", err)
	for name, who := range map[string]*bus.Bus{"publisher": publisher, "dispatcher": dispatcher, "monitor": monitor, "management": management} {
		for _, bucket := range []string{topology.BucketWebhooks, topology.BucketSuspensions} {
			watched, err := who.Bucket(ctx, bucket)
			must(t, name+" opens "+bucket, err)
			watching, stop := context.WithTimeout(ctx, 20*time.Second)
			entries := 0
			must(t, name+" watches "+bucket, watched.Watch(watching, func(bus.Entry) { entries++ }, stop))
			stop()
			if entries == 0 {
				t.Errorf("%s saw nothing in %s", name, bucket)
			}
			_, err = watched.Keys(ctx)
			must(t, name+" lists "+bucket, err)
		}
	}

	claims, err := management.Bucket(ctx, topology.BucketClaims)
	must(t, "management's claims", err)
	revision, err = claims.Create(ctx, "acme.claim", []byte("one"))
	must(t, "management claims a destination", err)
	_, err = claims.Get(ctx, "acme.claim")
	must(t, "management reads a claim", err)
	must(t, "management gives a claim back", claims.Delete(ctx, "acme.claim", revision))

	order := command.Command{Verb: command.Suspend, Account: "acme", URLKey: "0123456789abcdef0123456789abcdef", WebhookID: n.WebhookID, At: time.Now()}
	must(t, "management asks for a suspension", command.Send(ctx, management, order, "one"))
	commands, err := command.Consume(ctx, monitor)
	must(t, "monitor consumes commands", err)
	obeyed := 0
	must(t, "monitor pulls commands", commands.Pull(ctx, func(command.Command, uint64) error { obeyed++; return nil }))
	if obeyed != 1 {
		t.Errorf("monitor got %d commands, want 1", obeyed)
	}
	change := status.Change{Event: "suspended", Account: "acme", WebhookID: n.WebhookID, At: time.Now()}
	must(t, "monitor tells", status.Publish(ctx, monitor, change, "step"))
	if told, err := status.Published(ctx, monitor, change, "step"); err != nil || !told {
		t.Errorf("monitor told: %v, %v; want true", told, err)
	}

	arrivals, records := lane.NewReader(monitor, "books", bus.Position{}), journal.NewReader(monitor, "books", bus.Position{})
	_, err = records.Mark(ctx)
	must(t, "monitor looks at the journal", err)
	must(t, "monitor reads notifications", arrivals.Read(ctx, func(bus.Progress) {}, func(lane.Arrival, uint64) {}))
	must(t, "monitor reads the journal", records.Read(ctx, func(notification.Summary, time.Time) {}))
	tally := numbers.NewTally(monitor, zap.NewNop()) // it begins late, and reads both streams itself
	must(t, "monitor writes numbers", tally.Write(ctx, arrivals.At(), records.At(), time.Now()))
	written, err := monitor.StreamState(ctx, topology.Numbers)
	must(t, "monitor looks at NUMBERS", err)
	if written.Messages != 1 {
		t.Errorf("NUMBERS has %d messages, want a slice", written.Messages)
	}

	_, err = eventstream.Publish(ctx, management, "crm.events.acme.crm_deal_created", "id", nil, []byte(`{}`))
	must(t, "management ingests an event", err)
	_, err = eventstream.At(ctx, management, 1)
	must(t, "management reads an event", err)
	_, err = lane.Failed(ctx, management, n.Account, n.WebhookID, n.ID)
	must(t, "management reads a failure", err)
	n.Send = 2
	must(t, "management sends again", lane.Notify(management, n).Wait(ctx))

	_, err = publisher.ConsumerState(ctx, topology.Durable{Stream: topology.Notifications, Name: topology.ConsumerFirst})
	must(t, "publisher looks at the first attempts", err)
	must(t, "publisher trims", publisher.Purge(ctx, topology.Notifications, 1))
	for _, stream := range []string{topology.Attempts, topology.Failed} {
		r := publisher.NewReader(stream, "shares", bus.Position{})
		last, _, err := r.Tail(ctx)
		must(t, "publisher looks at a history", err)
		read := 0
		must(t, "publisher counts a history", r.ReadTo(ctx, last, func(jetstream.Msg, *jetstream.MsgMetadata) { read++ }))
		if read == 0 {
			t.Errorf("publisher counted nothing on %s", stream)
		}
		r.Close(ctx)
		_, err = publisher.Get(ctx, stream, topology.SubjectsOf(stream, "acme"), 1)
		must(t, "publisher looks for an account's oldest record", err)
		must(t, "publisher removes an account's oldest records", publisher.PurgeOldest(ctx, stream, topology.SubjectsOf(stream, "acme"), 1))
	}

	large := event.Event{ID: n.EventID, Account: "acme", Name: n.EventName, Body: []byte(`{"large":true}`)}
	n.Ref, err = bodies.NewStore(publisher, nil, 0).Put(ctx, &large)
	must(t, "publisher stores a body", err)
	n.EventSequence = 1
	for name, who := range map[string]*bus.Bus{"dispatcher": dispatcher, "monitor": monitor, "management": management} {
		body, err := bodies.Fetch(ctx, who, n)
		must(t, name+" reads a body", err)
		if string(body) != string(large.Body) {
			t.Errorf("%s read %s", name, body)
		}
	}
	sweeper := bodies.NewSweeper(publisher, zap.NewNop(), time.Hour)
	for want := range 2 { // the second look removes it
		removed, err := sweeper.Sweep(ctx)
		must(t, "publisher looks for bodies that nothing refers to", err)
		if removed != want {
			t.Errorf("look %d removed %d bodies", want+1, removed)
		}
	}
	for name, who := range map[string]*bus.Bus{"dispatcher": dispatcher, "monitor": monitor, "management": management} {
		if _, err := bodies.Fetch(ctx, who, n); !errors.Is(err, bodies.ErrGone) {
			t.Errorf("%s reads a body that is gone: %v", name, err)
		}
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.refused {
		t.Errorf("refused: %s", line)
	}
}

// right is what one user may do, as the comments of accounts.conf promise it. Streams of buckets are called
// KV_<bucket>.
type right struct {
	publish []string            // subjects
	create  []string            // streams it may create and update
	purge   []string            // streams it may purge
	remove  []string            // streams it may delete single messages of
	info    []string            // streams it may look at in addition to those it creates
	get     []string            // streams it may read single messages of
	lookUp  []string            // streams it may read the newest message of a subject of; in a cluster that is get
	consume map[string][]string // stream: consumers it may create, pull and delete; "*" for any other name
}

var (
	watches = []string{"KV_WEBHOOKS", "KV_SUSPENSIONS"}
	shares  = []string{"KV_SHARES", "KV_ACCOUNTS"}
)

func anyConsumer(streams ...string) map[string][]string {
	out := map[string][]string{}
	for _, s := range streams {
		out[s] = []string{"*"}
	}
	return out
}

func rights() map[string]right {
	crm := right{publish: []string{"crm.events.acme.crm_deal_created"}}

	publisher := right{
		publish: []string{"gancho.notifications.acme.id", "gancho.rejected.bad_json", "gancho.quarantine.CRM_EVENTS.reason", "gancho.accounts.acme.deferred", "gancho.held.acme.1.0", "gancho.bodies.acme.event.sum.1", "$KV.SHARES.deferred.acme", "$KV.SHARES.work", "$KV.LEASES.shares"},
		create:  []string{topology.Events, topology.Rejected, topology.Notifications, topology.Quarantine, topology.Held, topology.Bodies, "KV_SHARES"},
		remove:  []string{topology.Bodies},
		purge:   []string{topology.Notifications, topology.Attempts, topology.Failed},
		info:    slices.Concat([]string{topology.Attempts, topology.Failed, topology.Retries, topology.Parked, "KV_LEASES", "KV_ACCOUNTS"}, watches),
		get:     slices.Concat([]string{topology.Events, "KV_LEASES"}, watches, shares),
		lookUp:  []string{topology.Retries, topology.Parked, topology.Notifications, topology.Attempts, topology.Failed, topology.Held},
		consume: anyConsumer(slices.Concat(watches, shares)...),
	}
	publisher.consume[topology.Events] = []string{topology.ConsumerPublisher, "shares"}
	publisher.consume[topology.Attempts], publisher.consume[topology.Failed] = []string{"shares"}, []string{"shares", "bodies"}
	publisher.consume[topology.Bodies] = []string{"bodies"}

	dispatcher := right{
		publish: []string{
			"gancho.retries.at.acme.id", "gancho.retries.due.acme.webhook", "gancho.parked.acme.lane.webhook", "gancho.attempts.acme.id",
			"gancho.failed.acme.webhook.id", "gancho.quarantine.RETRIES.reason", "$KV.LEASES.acme.lane", "$KV.LATEST.acme.1", "$KV.PACES.acme.url", "$KV.SUSPENSIONS.key",
		},
		create:  []string{topology.Retries, topology.Parked, topology.Attempts, topology.Failed, topology.MaxDeliveries, "KV_LEASES", "KV_LATEST", "KV_PACES"},
		purge:   []string{topology.Retries, topology.Parked},
		remove:  []string{topology.Retries},
		info:    slices.Concat([]string{topology.Notifications, topology.Quarantine, topology.Bodies, topology.Events}, watches, shares),
		get:     slices.Concat([]string{topology.Bodies, topology.Events, topology.Notifications, topology.Retries, topology.Parked, topology.Attempts, topology.Failed, "KV_LEASES", "KV_LATEST", "KV_PACES"}, watches, shares),
		consume: anyConsumer(slices.Concat([]string{topology.Parked, "KV_LEASES"}, watches, shares)...),
	}
	dispatcher.consume[topology.Notifications] = []string{topology.ConsumerFirst}
	dispatcher.consume[topology.Retries] = []string{topology.ConsumerRetries}
	dispatcher.consume[topology.MaxDeliveries] = []string{topology.ConsumerMaxDeliveries}

	monitor := right{
		publish: []string{
			"gancho.webhooks.acme.webhook.suspended", "gancho.attempts.acme.id", "gancho.retries.at.acme.id",
			"$KV.SUSPENSIONS.key", "$KV.BOOKS.key", "$KV.LEASES.books", "$KV.SHARES.work", "gancho.numbers.slices",
		},
		create: []string{topology.WebhookStatus, topology.Commands, "KV_SUSPENSIONS", "KV_BOOKS"},
		purge:  []string{"KV_SUSPENSIONS"},
		remove: []string{topology.Retries},
		info:   append(topology.Streams(), "KV_WEBHOOKS", "KV_WEBHOOK_CLAIMS", "KV_REPLAYS", "KV_ENDED_SESSIONS", "KV_LEASES", "KV_LATEST", "KV_PACES", "KV_SHARES", "KV_ACCOUNTS", "KV_NOTICES", "KV_ERASURES"),
		get: append([]string{
			topology.WebhookStatus, topology.Events, topology.Notifications, topology.Retries, topology.Parked, topology.Attempts, topology.Failed, topology.Bodies, topology.Numbers, "KV_BOOKS", "KV_LEASES",
		}, watches...),
		consume: anyConsumer(watches...),
	}
	monitor.consume[topology.Attempts] = []string{topology.ConsumerMonitor, "books", "numbers"}
	monitor.consume[topology.Notifications] = []string{"books", "numbers"}
	monitor.consume[topology.Commands] = []string{topology.ConsumerCommands}

	payloads := []string{ // which an erasure looks through
		topology.Events, topology.Notifications, topology.Retries, topology.Parked, topology.Attempts, topology.Failed, topology.Bodies, topology.Rejected, topology.Quarantine,
	}
	management := right{
		publish: []string{
			"crm.events.acme.crm_deal_created", "gancho.notifications.acme.id", "gancho.attempts.acme.id", "gancho.suspensions.acme.lane", "gancho.audit.acme", "gancho.numbers.slices",
			"$KV.WEBHOOKS.key", "$KV.WEBHOOK_CLAIMS.key", "$KV.REPLAYS.key", "$KV.ENDED_SESSIONS.key", "$KV.ACCOUNTS.acme", "$KV.NOTICES.key", "$KV.ERASURES.key",
		},
		create: []string{topology.Audit, "KV_WEBHOOKS", "KV_WEBHOOK_CLAIMS", "KV_REPLAYS", "KV_ENDED_SESSIONS", "KV_ACCOUNTS", "KV_NOTICES", "KV_ERASURES"},
		purge:  []string{topology.Notifications, topology.Retries, topology.Parked},
		remove: payloads,
		info: []string{
			topology.Events, topology.Rejected, topology.Notifications, topology.Retries, topology.Parked, topology.Attempts, topology.Failed, topology.Quarantine, topology.WebhookStatus,
			topology.Commands, topology.Held, topology.Bodies, "KV_SUSPENSIONS", "KV_SHARES",
		},
		get:     slices.Concat(payloads, []string{topology.WebhookStatus, "KV_WEBHOOK_CLAIMS", "KV_REPLAYS", "KV_ENDED_SESSIONS", "KV_NOTICES", "KV_ERASURES"}, watches, shares),
		consume: anyConsumer(slices.Concat([]string{topology.Failed, topology.Held, topology.WebhookStatus, topology.Events, "KV_REPLAYS", "KV_ENDED_SESSIONS", "KV_NOTICES", "KV_ERASURES"}, watches, shares)...),
	}
	management.consume[topology.Audit] = []string{"*"}
	management.consume[topology.Attempts] = []string{"*", topology.ConsumerIndex}
	management.consume[topology.Notifications] = []string{"*", topology.ConsumerIndexPending}

	return map[string]right{
		userCRM: crm, userPublisher: publisher, userDispatcher: dispatcher, userMonitor: monitor, userManagement: management,
	}
}

// TestBrokerRefusesTheRest tries, as every user, every kind of operation on every stream, and every
// subject, and compares what the broker refused with rights.
func TestBrokerRefusesTheRest(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	all := rights()
	var streams, subjects []string
	durables := map[string][]string{} // of each stream
	for _, r := range all {
		streams = append(streams, r.create...)
		subjects = append(subjects, r.publish...)
		for stream, names := range r.consume {
			durables[stream] = append(durables[stream], names...)
		}
	}
	slices.Sort(streams)
	subjects = append(subjects, "crm.other", "gancho.other", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.RETRIES.dispatcher-retries",
		"$SYS.REQ.SERVER.PING", "_INBOX_dispatcher.forged", "_INBOX.forged", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES", "$JS.API.META.LEADER.STEPDOWN")
	slices.Sort(subjects)
	subjects = slices.Compact(subjects)

	tried := 0
	for user, r := range all {
		nc := b.connect(t, user)
		// publish reports whether the broker takes a message on subject.
		publish := func(subject string) bool {
			t.Helper()
			tried++
			b.mu.Lock()
			before := len(b.refused)
			b.mu.Unlock()
			must(t, "publish", nc.Publish(subject, nil))
			must(t, "flush", nc.Flush())
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.refused) == before
		}
		want := func(allowed bool, subject string) {
			t.Helper()
			if got := publish(subject); got != allowed {
				t.Errorf("%s may publish on %s: %v, want %v", user, subject, got, allowed)
			}
		}
		for _, s := range subjects {
			want(slices.Contains(r.publish, s), s)
		}
		for _, s := range streams {
			creates := slices.Contains(r.create, s)
			api := "$JS.API.STREAM."
			want(creates, api+"CREATE."+s)
			want(creates, api+"UPDATE."+s) // setting back what was edited
			want(creates || slices.Contains(r.info, s), api+"INFO."+s)
			want(slices.Contains(r.purge, s), api+"PURGE."+s)
			for _, verb := range []string{"DELETE", "SNAPSHOT", "RESTORE", "PEER.REMOVE", "LEADER.STEPDOWN"} {
				want(false, api+verb+"."+s)
			}
			want(slices.Contains(r.remove, s), api+"MSG.DELETE."+s)
			want(slices.Contains(r.get, s), "$JS.API.DIRECT.GET."+s+".some.subject")
			want(slices.Contains(r.get, s) || slices.Contains(r.lookUp, s), api+"MSG.GET."+s)
			// Consumers: all durables of the stream, and one of no service.
			for _, name := range append([]string{"other"}, durables[s]...) {
				if name == "*" {
					continue
				}
				mine := slices.Contains(r.consume[s], name)
				if !mine && slices.Contains(r.consume[s], "*") {
					mine = name == "other"
				}
				want(mine && !strings.HasPrefix(s, "KV_"), "$JS.API.CONSUMER.MSG.NEXT."+s+"."+name) // watches are pushed
				created := publish("$JS.API.CONSUMER.CREATE." + s + "." + name)
				filtered := publish("$JS.API.CONSUMER.CREATE." + s + "." + name + ".filter")
				if (created || filtered) != mine {
					t.Errorf("%s may create consumer %s on %s: %v or %v, want %v", user, name, s, created, filtered, mine)
				}
				if !mine {
					want(false, "$JS.API.CONSUMER.DELETE."+s+"."+name)
					want(false, "$JS.ACK."+s+"."+name+".1.1.1.1.1")
				}
				want(false, "$JS.API.CONSUMER.DURABLE.CREATE."+s+"."+name)
				want(false, "$JS.API.CONSUMER.PAUSE."+s+"."+name)
			}
		}

		follows := []string{"_INBOX_" + user + ".>"}
		if user == userCRM {
			follows = append(follows, "gancho.webhooks.>", "gancho.accounts.>")
		}
		others := []string{">", "crm.>", "gancho.>", "gancho.attempts.>", "gancho.webhooks.>", "gancho.accounts.>", "$JS.>", "$KV.>", "_INBOX.>", "_INBOX_*.>", "_INBOX_" + userOperator + ".>"}
		for other := range all {
			others = append(others, "_INBOX_"+other+".>")
		}
		for _, subject := range append(others, follows...) {
			b.mu.Lock()
			before := len(b.refused)
			b.mu.Unlock()
			tried++
			sub, err := nc.SubscribeSync(subject)
			must(t, "subscribe", err)
			must(t, "flush", nc.Flush())
			_ = sub.Unsubscribe()
			b.mu.Lock()
			if got, want := len(b.refused) == before, slices.Contains(follows, subject); got != want {
				t.Errorf("%s may subscribe to %s: %v, want %v", user, subject, got, want)
			}
			b.mu.Unlock()
		}
	}
	t.Logf("%d operations tried", tried)

	for name, where := range map[string]string{
		"no name":        "nats://" + b.srv.Addr().String(),
		"wrong password": "nats://crm:wrong@" + b.srv.Addr().String(),
		"unknown user":   "nats://root:12crm@" + b.srv.Addr().String(),
	} {
		nc, err := nats.Connect(where)
		if err == nil {
			nc.Close()
		}
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: got %v, want an authorization violation", name, err)
		}
	}
}

// TestRedisUsers checks deploy/redis/users.acl on a real server: each service does its work, and nothing else.
func TestRedisUsers(t *testing.T) {
	t.Parallel()
	server := redistest.StartShipped(t)
	monitor, management, health := server.As(redistest.UserMonitor), server.As(redistest.UserManagement), server.As(redistest.UserHealth)
	ctx := t.Context()

	store, err := suspension.NewStore(monitor, suspension.DefaultRules())
	must(t, "suspension store", err)
	key := suspension.Key{Account: "acme", URLKey: "0123456789abcdef0123456789abcdef"}
	_, err = store.Restore(ctx, nil)
	must(t, "monitor restores flags", err)
	_, err = store.SuspendByHand(ctx, suspension.Command{Key: key, At: time.Now()})
	must(t, "monitor suspends", err)
	_, err = store.Mass(ctx)
	must(t, "monitor counts", err)
	if flags, err := store.All(ctx); err != nil || len(flags) != 1 {
		t.Errorf("monitor lists flags: %d, %v; want 1", len(flags), err)
	}
	must(t, "monitor resumes", func() error {
		_, err := store.Resume(ctx, suspension.Command{Key: key, At: time.Now()})
		return err
	}())

	window, flag := "gancho:window:{acme:1}", "gancho:suspension:{acme:1}"
	log := "gancho:log:webhook"
	script := "return redis.call('SET', KEYS[1], 'x')"
	for _, c := range []struct {
		name    string
		client  *redis.Client
		args    []any
		allowed bool
	}{
		{"monitor writes a window", monitor, []any{"SET", window, "x"}, true},
		{"monitor writes a flag by script", monitor, []any{"EVAL", script, 1, flag}, true},
		{"monitor writes the log", monitor, []any{"SET", log, "x"}, false},
		{"monitor reads the log", monitor, []any{"ZRANGE", log, 0, -1}, false},
		{"monitor writes a key of nobody", monitor, []any{"SET", "gancho:other", "x"}, false},
		{"monitor writes the log by script", monitor, []any{"EVAL", script, 1, log}, false},
		{"monitor hides a key in a script", monitor, []any{"EVAL", "return redis.call('SET', '" + log + "', 'x')", 0}, false},
		{"monitor runs FLUSHALL in a script", monitor, []any{"EVAL", "return redis.call('FLUSHALL')", 0}, false},
		{"management writes the log", management, []any{"ZADD", log, 1, "x"}, true},
		{"management writes the log by script", management, []any{"EVAL", script, 1, log}, true},
		{"management reads a flag", management, []any{"GET", flag}, false},
		{"management writes a flag", management, []any{"SET", flag, "x"}, false},
		{"management deletes a flag", management, []any{"DEL", flag}, false},
		{"management renames a flag", management, []any{"RENAME", flag, log}, false},
		{"management writes a flag by script", management, []any{"EVAL", script, 1, flag}, false},
		{"health writes", health, []any{"SET", log, "x"}, false},
		{"health reads", health, []any{"GET", flag}, false},
	} {
		err := c.client.Do(ctx, c.args...).Err()
		if refused := err != nil && (strings.Contains(err.Error(), "NOPERM") || strings.Contains(err.Error(), "The user executing the script can't")); refused == c.allowed || (c.allowed && err != nil) {
			t.Errorf("%s: got %v, want allowed %v", c.name, err, c.allowed)
		}
	}
	for _, line := range []string{
		"FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET maxmemory 1", "DEBUG SLEEP 0", "SHUTDOWN", "SAVE", "BGREWRITEAOF",
		"REPLICAOF 127.0.0.1 1", "MONITOR", "ACL LIST", "ACL SETUSER x on", "CLIENT LIST", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1",
		"MODULE LIST", "SCRIPT FLUSH", "SCRIPT KILL", "FUNCTION LIST", "SWAPDB 0 1", "SELECT 1", "MIGRATE 127.0.0.1 1 k 0 1",
		"SUBSCRIBE x", "PUBLISH x y", "INFO", "SLOWLOG GET", "LATENCY RESET", "CLUSTER NODES", "SORT " + window,
	} {
		var command []any
		for word := range strings.FieldsSeq(line) {
			command = append(command, word)
		}
		for name, client := range map[string]*redis.Client{"monitor": monitor, "management": management} {
			err := client.Do(ctx, command...).Err()
			if err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "DEBUG command not allowed") {
				t.Errorf("%s may %s: %v", name, line, err)
			}
		}
	}
	for name, login := range map[string][2]string{
		"wrong password":  {redistest.UserMonitor, "wrong"},
		"no password":     {redistest.UserManagement, ""},
		"the placeholder": {redistest.UserMonitor, "{REDIS_PASSWORD_MONITOR}"},
	} {
		client := redis.NewClient(&redis.Options{Addr: server.Addr, Username: login[0], Password: login[1], MaxRetries: -1})
		t.Cleanup(func() { _ = client.Close() })
		if err := client.Ping(ctx).Err(); err == nil {
			t.Errorf("%s: Redis let it in", name)
		}
	}
}

// TestRedisStartNeedsPasswords: an empty password would let anyone in.
func TestRedisStartNeedsPasswords(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/bin/sh", filepath.Join("..", "..", "deploy", "redis", "start.sh"))
	cmd.Env = append(os.Environ(), "REDIS_PASSWORD_MONITOR=one", "REDIS_PASSWORD_MANAGEMENT=")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "REDIS_PASSWORD_MANAGEMENT is not set") {
		t.Errorf("start.sh without a password: %v\n%s", err, out)
	}
}
