package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/services/internal/lab"
)

const (
	isolationURLs = 20
	isolationBad  = 6
	isolationRun  = 10 * time.Second
	isolationRuns = 5
)

// isolation publishes events at a fixed rate to 20 URLs, by turns with all of them healthy and with six of
// them hanging or failing, and prints the ratio of the healthy ones' p99: the median of five pairs.
func (b *bench) isolation(name, bad string, rate int) {
	var ratios, calm, troubled []float64
	for range isolationRuns {
		a := b.isolationRun("ok", rate)
		b.idle()
		t := b.isolationRun(bad, rate)
		b.idle()
		calm, troubled, ratios = append(calm, a.P99), append(troubled, t.P99), append(ratios, t.P99/a.P99)
	}
	fmt.Printf("%-44s p99 all healthy %6.1f ms, beside them %6.1f ms; ratio %.2f (of %d: %s)\n",
		name, median(calm), median(troubled), median(ratios), isolationRuns, strings.Join(format(ratios), " "))
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func format(v []float64) (out []string) {
	for _, x := range v {
		out = append(out, fmt.Sprintf("%.2f", x))
	}
	return out
}

// isolationRun is one run; the first six URLs behave as kind says (ok, hang or fail).
func (b *bench) isolationRun(kind string, rate int) report {
	const eventName = "crm_product_updated"
	var hooks []string
	for i := range isolationURLs {
		path := "ok"
		if i < isolationBad {
			path = kind
		}
		hooks = append(hooks, b.register(eventName, fmt.Sprintf("http://%s/%s/%s/%d", b.target, path, eventName, i)))
	}
	b.reset()
	events := int(isolationRun.Seconds()) * rate
	b.publishAt(eventName, events, rate)
	healthy := isolationURLs - isolationBad
	if kind == "ok" {
		healthy = isolationURLs
	}
	r := b.waitFor(events * healthy)
	for _, id := range hooks {
		b.remove(id)
	}
	return r
}

// slow sends 500 events/s for 10 s to one URL that takes 4.9 s to answer, beside 20 healthy ones at 20/s.
func (b *bench) slow(name string) {
	const slowEvent, eventName = "crm_source_created", "crm_product_updated"
	var calm, troubled, ratios []float64
	sent, parked := 0, 0
	for range isolationRuns {
		a := b.isolationRun("ok", 20)
		b.idle()
		id := b.register(slowEvent, fmt.Sprintf("http://%s/slow/%s/0", b.target, slowEvent))
		before := b.count("slow")
		go b.publishAt(slowEvent, 5000, 500)
		t := b.isolationRun("ok", 20)
		b.idleEvents()
		sent, parked = b.count("slow")-before, b.waiting("PARKED")
		b.remove(id)
		b.idle()
		calm, troubled, ratios = append(calm, a.P99), append(troubled, t.P99), append(ratios, t.P99/a.P99)
	}
	fmt.Printf("%-44s p99 without it  %6.1f ms, beside it %6.1f ms; ratio %.2f (of %d: %s); at the end of the last run %d of 5000 were sent, %d parked\n",
		name, median(calm), median(troubled), median(ratios), isolationRuns, strings.Join(format(ratios), " "), sent, parked)
}

// waiting is how many messages of the stream are not settled.
func (b *bench) waiting(stream string) (n int) {
	s, err := b.js.Stream(context.Background(), stream)
	if err != nil {
		return 0
	}
	if stream != "NOTIFICATIONS" {
		return int(s.CachedInfo().State.Msgs) //nolint:gosec // a count
	}
	if c, err := s.Consumer(context.Background(), "dispatcher"); err == nil {
		n = int(c.CachedInfo().NumPending) + c.CachedInfo().NumAckPending //nolint:gosec // a count
	}
	return n
}

// idle waits until nothing of deleted webhooks is parked: it is cancelled as it comes up. What is scheduled for
// later is, in its time.
func (b *bench) idle() {
	for range 2400 {
		if b.waiting("PARKED")+b.waiting("NOTIFICATIONS") == 0 {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	b.settle()
}

// idleEvents waits until every event is fanned out.
func (b *bench) idleEvents() {
	for range 400 {
		s, err := b.js.Stream(context.Background(), "CRM_EVENTS")
		if err == nil {
			if c, err := s.Consumer(context.Background(), "publisher"); err == nil && c.CachedInfo().NumPending == 0 && c.CachedInfo().NumAckPending == 0 {
				return
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// register creates a webhook and returns its id.
func (b *bench) register(eventName, url string) string {
	answer := b.post("/crm/v2/webhooks", map[string]any{"name": "bench", "event_name": eventName, "http_method": "POST", "url": url})
	var created struct{ Data struct{ ID string } }
	if err := json.Unmarshal(answer, &created); err != nil {
		b.f.Fatalf("register: %v", err)
	}
	return created.Data.ID
}

func (b *bench) remove(id string) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodDelete, b.system.APIURL+"/crm/v2/webhooks/"+id, nil)
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	req.Header.Set("Authorization", "Bearer "+lab.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// publishAt publishes events at a rate (0: as fast as the broker takes them) and returns when they are stored.
func (b *bench) publishAt(eventName string, events, rate int) {
	padding := strings.Repeat("x", 800)
	began := time.Now()
	for i := range events {
		if rate > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		now := time.Now().UnixNano()
		body := fmt.Sprintf(`{"event_name":%q,"document":{"id":"67900a6e%016d","sent":%d,"name":%q},"event_timestamp":"2026-01-21T20:58:22.000Z","transaction_uuid":"%d-%d"}`,
			eventName, i, now, padding, now, i)
		if _, err := b.js.PublishAsync("crm.events."+lab.Account+"."+eventName, []byte(body), jetstream.WithMsgID(fmt.Sprintf("%s:%d:%d", eventName, now, i)), jetstream.WithStallWait(30*time.Second)); err != nil {
			b.f.Fatalf("publish: %v", err)
		}
	}
	<-b.js.PublishAsyncComplete()
}

// waitFor waits until the receiver has counted so many requests.
func (b *bench) waitFor(want int) (r report) {
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if r = b.report(); r.Requests >= want {
			return r
		}
		if time.Now().After(deadline) {
			b.f.Fatalf("%d of %d delivered after 3 minutes", r.Requests, want)
		}
	}
}
