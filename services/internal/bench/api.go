package main

import (
	"container/heap"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/services/internal/testsystem"
)

const (
	apiBusy     = 100 // webhooks with many notifications; the others share the rest
	apiRequests = 300 // of each kind
	apiClients  = 2   // at once
	// apiDocuments is how many events a document has, and apiPerEvent how many notifications an event.
	apiDocuments, apiPerEvent = 5, 4
	// operatorToken may ask for the usage of all accounts.
	operatorToken = "bench-token-of-an-operator"
)

// api loads b.load.webhooks webhooks of one account and b.load.attempts attempts, and measures how long the API and the
// console take to list, filter and show them. The worst case is one account: with many, each has less to
// look through. The webhooks go straight into their bucket, the attempts into the journal as the dispatcher
// writes them; management indexes them itself.
func (b *bench) api(string) {
	ctx := context.Background()
	for _, p := range append([]*testsystem.Process{b.system.Publisher, b.system.Monitor}, b.system.Dispatchers...) {
		p.Kill() // they have nothing to do, and would read all of it
	}
	store, err := bus.Connect(bus.Config{URL: b.system.NATSURL}, "bench", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	defer store.Close()

	began := time.Now()
	hooks := b.loadWebhooks()
	fmt.Printf("%d webhooks of one account stored in %.1f s\n", len(hooks), time.Since(began).Seconds())
	began = time.Now()
	l := &loader{b: b, bus: store, hooks: hooks}
	l.events()
	fmt.Printf("%d events of %d documents stored in %.1f s\n", len(l.eventIDs), len(l.eventIDs)/apiDocuments, time.Since(began).Seconds())
	began = time.Now()
	l.run(ctx)
	stored := time.Since(began)
	b.indexed()
	fmt.Printf("%d attempts of %d notifications in the journal in %.1f s, all indexed after %.1f s\n", l.attempts,
		l.notifications, stored.Seconds(), time.Since(began).Seconds())

	took, memory := b.restart()
	fmt.Printf("management with them: ready %.2f s after its start, %d MiB at most; broker %d MiB\n", took.Seconds(),
		memory>>20, b.system.Broker.PeakMemory()>>20)

	v := newVisitor(b)
	fmt.Printf("\n%-58s %9s %9s %9s %9s\n", fmt.Sprintf("%d requests each, %d at a time", apiRequests, apiClients),
		"p50 ms", "p99 ms", "max ms", "KB")
	worst := 0.0
	for _, page := range apiPages(l) {
		worst = max(worst, v.measure(page))
	}
	fmt.Printf("slowest p99 %.1f ms; management %d MiB at most\n\n", worst, b.system.Management.PeakMemory()>>20)
	b.rebuild(ctx, l)
}

// loadWebhooks stores webhooks as management does, a little older with each number.
func (b *bench) loadWebhooks() []*webhook.Webhook {
	keys, _, err := seal.Load(filepath.Join(b.dir, "encryption.key"))
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	began := time.Now().UTC().Truncate(time.Millisecond)
	events := []webhook.Pattern{
		"crm_deal_created", "crm_deal_*", "crm_contact_updated", "crm_organization_created", "crm_task_*",
	}
	names := []string{"Deals to the warehouse", "Contact sync", "Billing", "New leads to the call centre", "Data lake"}
	_, secret := delivery.NewSecret()
	hooks := make([]*webhook.Webhook, b.load.webhooks)
	for i := range hooks {
		w := &webhook.Webhook{
			ID: uuid.NewString(), Account: testsystem.Account, Name: fmt.Sprintf("%s %05d", names[i%len(names)], i),
			EventName: events[i%len(events)], Method: "POST",
			URL: fmt.Sprintf("https://hooks-%d.example.com/crm/%05d", i%500, i), Status: webhook.Active,
			CreatedAt: began.Add(-time.Duration(i) * time.Second), UpdatedAt: began, Version: 1,
		}
		if i%50 == 7 {
			w.Status = webhook.Disabled
		}
		w.URLKey = webhook.URLKey(w.URL)
		w.Secrets = []webhook.Secret{{Sealed: keys.Seal(secret, w.SealContext("secret"))}}
		value, err := registry.Sign(keys, w)
		if err != nil {
			b.f.Fatalf("%v", err)
		}
		if _, err := b.js.PublishAsync("$KV."+topology.BucketWebhooks+"."+w.Key(), value); err != nil {
			b.f.Fatalf("store webhook: %v", err)
		}
		hooks[i] = w
	}
	<-b.js.PublishAsyncComplete()
	return hooks
}

// loader writes the journal of notifications that have been on their way over the last 20 hours, in the order
// in which it would have happened.
type loader struct {
	b     *bench
	bus   *bus.Bus
	hooks []*webhook.Webhook

	eventIDs []string // of the events on CRM_EVENTS, in their order

	attempts, notifications int
	sample                  []string // ids of notifications with several attempts
	waiting                 dueHeap
	unsettled               []*sent
}

// sent is a notification on its way through the loader.
type sent struct {
	hook    *webhook.Webhook
	id      string
	number  int       // of its event
	due     time.Time // its next attempt
	done    int
	last    int // how many attempts it has in the end
	ends    notification.State
	started *journal.Started // of its newest record, nil when that is stored
	record  *notification.Record
}

// dueHeap has the notification that is due first at its top.
type dueHeap []*sent

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push adds x.
func (h *dueHeap) Push(x any) {
	if s, ok := x.(*sent); ok {
		*h = append(*h, s)
	}
}

// Pop takes the last.
func (h *dueHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// transaction and document name those of the n-th event.
func transaction(n int) string { return fmt.Sprintf("transaction-%d", n) }
func document(n int) string    { return fmt.Sprintf("document-%d", n/apiDocuments) }

// loaded is the name of the events. No webhook matches it any more, as after a change of them: a webhook that does, and
// has no notification of an event, is looked for at the broker, and no installation has thousands of those.
const loaded = "crm_product_created"

// events stores the events of the notifications, one for some of them.
func (l *loader) events() {
	const name = loaded
	subject := event.Subject(testsystem.Account, name)
	for n := range max(1, l.b.load.attempts/2/apiPerEvent) {
		body := fmt.Appendf(nil, `{"event_name":%q,"transaction_uuid":%q,"document":{"id":%q,"name":"Padaria Sol","amount_total":%d}}`,
			name, transaction(n), document(n), n)
		if _, err := l.b.js.PublishAsync(subject, body); err != nil {
			l.b.f.Fatalf("store event: %v", err)
		}
		l.eventIDs = append(l.eventIDs, event.ID(testsystem.Account, name, transaction(n)+"/"+document(n)))
	}
	<-l.b.js.PublishAsyncComplete()
}

// inFlight is how many records are published before the oldest must be stored.
const inFlight = 2000

func (l *loader) run(ctx context.Context) {
	began := time.Now().Add(-20 * time.Hour)
	next := l.notification(began)
	for l.attempts < l.b.load.attempts {
		s := next
		if len(l.waiting) > 0 && l.waiting[0].due.Before(next.due) {
			s = l.waiting[0]
			heap.Pop(&l.waiting)
		} else {
			next = l.notification(began)
		}
		for s.started != nil { // in the order in which they were started
			l.settleOldest(ctx)
		}
		s.done++
		s.record = l.record(s)
		s.started = journal.Start(l.bus, s.record)
		l.attempts++
		if l.unsettled = append(l.unsettled, s); len(l.unsettled) > inFlight {
			l.settleOldest(ctx)
		}
		if s.done < s.last {
			s.due = s.due.Add(retryDelays[s.done-1])
			heap.Push(&l.waiting, s)
		} else if s.last >= 3 && l.notifications%50 == 0 {
			l.sample = append(l.sample, s.id)
		}
	}
	for len(l.unsettled) > 0 {
		l.settleOldest(ctx)
	}
}

var retryDelays = []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}

// settleOldest waits until the record that was started first is stored.
func (l *loader) settleOldest(ctx context.Context) {
	s := l.unsettled[0]
	l.unsettled = l.unsettled[1:]
	sequence, err := s.started.Wait(ctx)
	if err != nil {
		l.b.f.Fatalf("write the journal: %v", err)
	}
	s.started, s.record.Sequence = nil, sequence
}

// notification makes the n-th: of ten, six are delivered at once, two after a failure or two, one fails six
// times, one waits for a retry. Six of ten belong to the busy webhooks.
func (l *loader) notification(began time.Time) *sent {
	n := l.notifications
	l.notifications++
	s := &sent{number: n % len(l.eventIDs), ends: notification.Delivered, last: 1}
	if n%10 < 6 {
		s.hook = l.hooks[len(l.hooks)-1-scatter(n, apiBusy)]
	} else {
		s.hook = l.hooks[scatter(n, len(l.hooks)-apiBusy)]
	}
	s.id = uuid.NewSHA1(uuid.MustParse(s.hook.ID), binary.BigEndian.AppendUint64(nil, uint64(n))).String() //nolint:gosec // a count
	// about two attempts each
	s.due = began.Add(time.Duration(float64(20*time.Hour) * float64(n) / float64(l.b.load.attempts/2)))
	switch scatter(n+1, 10) {
	case 0, 1:
		s.last = 2 + scatter(n+2, 2)
	case 2:
		s.last, s.ends = notification.MaxAttempts, notification.PermanentlyFailed
	case 3:
		s.last, s.ends = 3+scatter(n+2, 3), notification.Retrying
	}
	return s
}

// scatter spreads n over 0 to below-1, the same in every run.
func scatter(n, below int) int {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, n)
	return int(h.Sum32()) % below
}

func (l *loader) record(s *sent) *notification.Record {
	number, at := s.done, s.due
	if at.After(time.Now()) {
		at = time.Now()
	}
	a := &notification.Attempt{
		Number: number, Send: 1, StartedAt: at.UTC(), Outcome: notification.OutcomeFailed, Reason: delivery.Status5xx,
		HTTPStatus: 503, DurationMS: 41.7,
		Phases: notification.PhasesMS{DNS: 1.2, Connect: 9.8, TLS: 18.1, FirstByte: 12.1},
		RequestHeaders: map[string]string{
			"Content-Type": "application/json", "User-Agent": "Gancho/1.0", "Gancho-Event": loaded,
			"Gancho-Attempt": fmt.Sprint(number),
			"webhook-id":     s.id, "webhook-timestamp": fmt.Sprint(at.Unix()), "webhook-signature": "***",
		},
		ResponseHeaders: map[string]string{
			"Content-Type": "text/html; charset=utf-8", "Server": "nginx", "Date": at.UTC().Format(http.TimeFormat),
		},
		ResponseBody: "<html><head><title>503 Service Temporarily Unavailable</title></head><body><center><h1>503 " +
			"Service Temporarily Unavailable</h1></center></body></html>",
	}
	r := &notification.Record{
		Kind: notification.KindAttempt, At: at.Add(42 * time.Millisecond).UTC(), Account: s.hook.Account,
		WebhookID: s.hook.ID, NotificationID: s.id, EventID: l.eventIDs[s.number],
		EventName: loaded, EventSequence: uint64(s.number) + 1, URLKey: s.hook.URLKey, URLHost: webhook.URLHost(s.hook.URL), //nolint:gosec // a count
		Send: 1, AttemptsDone: number,
		State: notification.Retrying, Reason: string(a.Reason), NextAttemptAt: time.Now().Add(2 * time.Hour).UTC(),
		Attempt: a,
	}
	switch {
	case s.done > 2:
		r.Follow(s.record)
	case s.done > 1: // the dispatcher does not read the record before a first retry
		r.Previous = s.record.Sequence
	}
	if number == s.last && s.ends != notification.Retrying {
		r.State, r.NextAttemptAt = s.ends, time.Time{}
		if s.ends == notification.Delivered {
			r.Reason, a.Outcome, a.Reason, a.HTTPStatus = "", notification.OutcomeDelivered, "", 200
			a.ResponseHeaders["Content-Type"], a.ResponseBody = "application/json", `{"ok":true}`
		}
	}
	return r
}

// indexed waits until management has read the journal and the events to their end.
func (b *bench) indexed() {
	b.read(topology.Events, topology.ConsumerIndexEvents)
	b.read(topology.Attempts, topology.ConsumerIndex)
}

func (b *bench) read(stream, consumer string) {
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s, err := b.js.Stream(context.Background(), stream)
		if err != nil {
			b.f.Fatalf("%v", err)
		}
		c, err := s.Consumer(context.Background(), consumer)
		if err == nil && c.CachedInfo().NumPending == 0 && c.CachedInfo().NumAckPending == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.f.Fatalf("the index has not read all of %s after 5 minutes", stream)
		}
	}
}

// restart starts management again and returns how long it took to be ready, and the most memory it needed.
func (b *bench) restart() (took time.Duration, memory int64) {
	b.system.Management.Kill()
	began := time.Now()
	b.system.Management.Start()
	b.system.WaitReady()
	return time.Since(began), b.system.Management.PeakMemory()
}

// rebuild empties Redis and measures until the index is whole again.
func (b *bench) rebuild(ctx context.Context, l *loader) {
	o, err := redis.ParseURL(b.redisURL)
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	client := redis.NewClient(o)
	defer client.Close()
	used := func() string {
		m := regexp.MustCompile(`used_memory_human:(\S+)`).FindStringSubmatch(client.Info(ctx, "memory").Val())
		return m[1]
	}
	v := newVisitor(b)
	list := "/crm/v2/webhooks/" + l.hooks[len(l.hooks)-1].ID + "/notifications"
	before := used()
	if err := client.FlushAll(ctx).Err(); err != nil {
		b.f.Fatalf("%v", err)
	}
	began := time.Now()
	answers, partial, slowest := 0, 0, time.Duration(0)
	for {
		asked := time.Now()
		var page struct{ Partial bool }
		if err := json.Unmarshal(v.get(list), &page); err != nil {
			b.f.Fatalf("%v", err)
		}
		slowest = max(slowest, time.Since(asked))
		answers++
		if page.Partial {
			partial++
		} else if partial > 0 {
			break
		}
		if time.Since(began) > 3*time.Minute {
			b.f.Fatalf("the index is not whole after 3 minutes; %d answers were partial", partial)
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Printf("after FLUSHALL the index was whole in %.1f s; %d of %d lists meanwhile said \"partial\", the slowest "+
		"took %.0f ms; Redis held %s before and %s after\n",
		time.Since(began).Seconds(), partial, answers, float64(slowest.Microseconds())/1000, before, used())
}

// apiPage is one kind of request.
type apiPage struct {
	name string
	path func(i int) string // of the i-th request
}

func apiPages(l *loader) []apiPage {
	fixed := func(path string) func(int) string { return func(int) string { return path } }
	busy := func(i int) string { return l.hooks[len(l.hooks)-1-i%apiBusy].ID }
	quiet := func(i int) string { return l.hooks[i*331%(len(l.hooks)-apiBusy)].ID }
	numbered := func(i int) int { return i * 7919 % len(l.eventIDs) }
	sampled := func(i int) string { return l.sample[i*7919%len(l.sample)] }
	from := url.QueryEscape(time.Now().Add(-3 * time.Hour).UTC().Format(time.RFC3339))
	api := func(path func(int) string, rest string) func(int) string {
		return func(i int) string { return "/crm/v2/webhooks/" + path(i) + rest }
	}
	return []apiPage{
		{"API webhooks, 25", fixed("/crm/v2/webhooks")},
		{"API webhooks, 200 on a page far behind", func(i int) string {
			return fmt.Sprintf("/crm/v2/webhooks?page[size]=200&page[number]=%d", 1+i*37%500)
		}},
		{"API one webhook", api(quiet, "")},
		{"API notifications of a busy webhook, 25", api(busy, "/notifications")},
		{"API notifications of a busy webhook, 200", api(busy, "/notifications?page[size]=200")},
		{"API ... state=permanently_failed, 200", api(busy, "/notifications?page[size]=200&state=permanently_failed")},
		{"API ... state=retrying, of the last 3 hours, 25", api(busy, "/notifications?state=retrying&from="+from)},
		{"API ... state=cancelled (none)", api(busy, "/notifications?state=cancelled")},
		{"API notifications of a quiet webhook", api(quiet, "/notifications")},
		{"API notifications of the account, 25", fixed("/crm/v2/notifications")},
		{"API ... state=permanently_failed, 200", fixed("/crm/v2/notifications?page[size]=200&state=permanently_failed")},
		{"API ... state=cancelled (none)", fixed("/crm/v2/notifications?state=cancelled")},
		{"API ... state=retrying of a name, of the last 3 hours, 25", fixed("/crm/v2/notifications?state=retrying&event_name=" + loaded + "&from=" + from)},
		{"API ... of a busy webhook, state=delivered, 25", func(i int) string { return "/crm/v2/notifications?state=delivered&webhook_id=" + busy(i) }},
		{"API ... of a document", func(i int) string { return "/crm/v2/notifications?document_id=" + document(numbered(i)) }},
		{"API ... of a transaction", func(i int) string { return "/crm/v2/notifications?transaction_uuid=" + transaction(numbered(i)) }},
		{"API ... of an event", func(i int) string { return "/crm/v2/notifications?event_id=" + l.eventIDs[numbered(i)] }},
		{"API one event", func(i int) string { return "/crm/v2/events/" + l.eventIDs[numbered(i)] }},
		{"API events of a document", func(i int) string { return "/crm/v2/events?document_id=" + document(numbered(i)) }},
		{"API events of a transaction", func(i int) string { return "/crm/v2/events?transaction_uuid=" + transaction(numbered(i)) }},
		{"API events of a name and time, 25", fixed("/crm/v2/events?event_name=" + loaded + "&from=" + from)},
		{"API events of a name (none)", fixed("/crm/v2/events?event_name=crm_task_deleted")},
		{"API stats of a busy webhook, hours of a day", api(busy, "/stats")},
		{"API stats of a busy webhook, minutes of 3 hours", api(busy, "/stats?step=1m&from="+from)},
		{"API usage of all accounts, hours of a day", fixed("/crm/v2/usage")},
		{"API usage of an account, minutes of 3 hours", fixed("/crm/v2/usage?step=1m&account_id=" + testsystem.Account + "&from=" + from)},
		{"API one notification", func(i int) string { return "/crm/v2/notifications/" + sampled(i) }},
		{"console webhooks", fixed("/webhooks")},
		{"console webhooks, the last pages", func(i int) string { return fmt.Sprintf("/webhooks?page=%d", 4000-i%5) }},
		{
			"console webhooks that match a word",
			func(i int) string { return fmt.Sprintf("/webhooks?q=centre+%d", i%10) },
		},
		{"console webhooks, all of them busy", fixed("/webhooks?q=999")},
		{"console a busy webhook", func(i int) string { return "/webhooks/" + busy(i) }},
		{
			"console a busy webhook, its failures",
			func(i int) string { return "/webhooks/" + busy(i) + "?state=permanently_failed" },
		},
		{"console a quiet webhook", func(i int) string { return "/webhooks/" + quiet(i) }},
		{"console one notification", func(i int) string { return "/notifications/" + sampled(i) }},
		{"console permanent failures", fixed("/failures")},
		{
			"console permanent failures of a busy webhook",
			func(i int) string { return "/failures?webhook_id=" + busy(i) },
		},
		{"console numbers of the account", fixed("/numbers")},
		{"console one event", func(i int) string { return "/events/" + l.eventIDs[numbered(i)] }},
		{"console live tail (the page)", fixed("/tail")},
	}
}

// visitor asks the API with a token and the console with a session.
type visitor struct {
	b      *bench
	client *http.Client
}

func newVisitor(b *bench) *visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	v := &visitor{b, &http.Client{Jar: jar, Transport: &http.Transport{MaxIdleConnsPerHost: apiClients}}}
	v.do(http.MethodPost, "/sign-in", strings.NewReader(url.Values{"token": {testsystem.Token}}.Encode()))
	return v
}

func (v *visitor) get(path string) []byte { return v.do(http.MethodGet, path, nil) }

func (v *visitor) do(method, path string, body io.Reader) []byte {
	req, err := http.NewRequestWithContext(context.Background(), method, v.b.system.APIURL+path, body)
	if err != nil {
		v.b.f.Fatalf("%v", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", v.b.system.APIURL)
	}
	switch {
	case strings.HasPrefix(path, "/crm/v2/usage"):
		req.Header.Set("Authorization", "Bearer "+operatorToken)
	case strings.HasPrefix(path, "/crm/"):
		req.Header.Set("Authorization", "Bearer "+testsystem.Token)
	}
	resp, err := v.client.Do(req)
	if err != nil {
		v.b.f.Fatalf("%v", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || strings.HasSuffix(resp.Request.URL.Path, "/sign-in") {
		v.b.f.Fatalf("%s %s: %s %v %.300s", method, path, resp.Status, err, answer)
	}
	return answer
}

// measure prints how long one kind of request takes and returns the 99th percentile in milliseconds.
func (v *visitor) measure(p apiPage) float64 {
	took := make([]time.Duration, apiRequests)
	size := 0
	jobs := make(chan int)
	var clients sync.WaitGroup
	for range apiClients {
		clients.Go(func() {
			for i := range jobs {
				began := time.Now()
				body := v.get(p.path(i))
				took[i] = time.Since(began)
				if i == 0 {
					size = len(body)
				}
			}
		})
	}
	for i := range took {
		jobs <- i
	}
	close(jobs)
	clients.Wait()
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	p99 := ms(took[len(took)*99/100])
	fmt.Printf("%-58s %9.1f %9.1f %9.1f %9.1f\n", p.name, ms(took[len(took)/2]), p99, ms(took[len(took)-1]),
		float64(size)/1000)
	return p99
}
