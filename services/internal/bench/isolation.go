package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/client"
	"gancho/services/internal/testsystem"
)

const (
	isolationURLs = 20
	isolationBad  = 6
	isolationRun  = 10 * time.Second
	isolationRuns = 5

	// known is how long after the API's answer an event met every new webhook, see fresh.
	known = 100 * time.Millisecond
)

// isolation publishes events at a fixed rate to 20 URLs, by turns with all of them healthy and with six of
// them hanging or failing, and prints the ratio of the healthy ones' p99: the median of five pairs.
func (b *bench) isolation(name, bad string, rate int) {
	var calm, troubled []report
	for range isolationRuns {
		calm = append(calm, b.isolationRun("ok", rate, isolationRun))
		b.idle()
		troubled = append(troubled, b.isolationRun(bad, rate, isolationRun))
		b.idle()
	}
	compare(name, calm, troubled)
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
func (b *bench) isolationRun(kind string, rate int, lasts time.Duration) report {
	const eventName = "crm_product_updated"
	var hooks []string
	for i := range isolationURLs {
		path := "ok"
		if i < isolationBad {
			path = kind
		}
		hooks = append(hooks, b.register(eventName, fmt.Sprintf("http://%s/%s/%s/%d", b.target, path, eventName, i)))
	}
	time.Sleep(known)
	b.reset()
	events := int(lasts.Seconds()) * rate
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

// slow publishes 500 events/s for 10 s to one URL that takes 4.9 s, with healthy ones around it.
func (b *bench) slow(name string) { b.among(name, "slow", 1, 5000, 500) }

// drip publishes an event a second for 10 s to 500 URLs that drip their answers, with healthy ones around them.
func (b *bench) drip(name string) { b.among(name, "drip", 500, 10, 1) }

// among publishes events at a rate to so many URLs while 20 healthy ones get 20/s: by turns the many answer at once and
// as bad says. Both runs have the same traffic, so the ratio is the price that the healthy ones pay for the bad ones.
// The price of the traffic itself on this machine is printed too: p99 without it. Where the URLs are many, each run has
// new ones, without a history.
func (b *bench) among(name, bad string, urls, events, rate int) {
	const badEvent = "crm_source_created"
	run := 0
	among := func(kind string) (r report, sent, parked int) {
		if urls > 1 {
			run++
		}
		var hooks []string
		for i := range urls {
			hooks = append(hooks, b.register(badEvent,
				fmt.Sprintf("http://%s/%s/%s/%d/%d", b.target, kind, badEvent, run, i)))
		}
		time.Sleep(known)
		before := b.count(kind)
		go b.publishAt(badEvent, events, rate)
		r = b.isolationRun("ok", 20, isolationRun)
		b.idleEvents()
		sent, parked = b.count(kind)-before, b.waiting("PARKED")
		for _, id := range hooks {
			b.remove(id)
		}
		b.idle()
		return r, sent, parked
	}
	var alone, quick, troubled []report
	sent, parked := 0, 0
	for range isolationRuns {
		alone = append(alone, b.isolationRun("ok", 20, isolationRun))
		b.idle()
		r, _, _ := among("back")
		quick = append(quick, r)
		r, sent, parked = among(bad)
		troubled = append(troubled, r)
	}
	compare(name, quick, troubled)
	fmt.Printf("%30s without their traffic p99 %.1f ms (%.1f); at the end of the "+
		"last run %d of %d were sent, %d parked\n",
		"", median(each(alone, p99)), median(each(alone, calmP99)), sent, urls*events, parked)
}

func p99(r report) float64     { return r.P99 }
func calmP99(r report) float64 { return r.CalmP99 }

func each(runs []report, of func(report) float64) (out []float64) {
	for _, r := range runs {
		out = append(out, of(r))
	}
	return out
}

// compare prints the median p99 of the runs and of their pairs' ratios: of all requests, and of those that came while
// the machine was not held up.
func compare(name string, calm, troubled []report) {
	fmt.Printf("%s\n", name)
	for _, m := range []struct {
		what string
		of   func(report) float64
	}{{"p99", p99}, {"p99, machine not held up", calmP99}} {
		a, t := each(calm, m.of), each(troubled, m.of)
		var ratios []float64
		for i := range a {
			ratios = append(ratios, t[i]/a[i])
		}
		fmt.Printf("%30s all healthy %6.1f ms, next to them %6.1f ms; ratio %.2f (of %d: %s)\n",
			m.what, median(a), median(t), median(ratios), len(ratios), strings.Join(format(ratios), " "))
	}
	share := 0.0
	for _, r := range append(slices.Clone(calm), troubled...) {
		share += float64(r.Calm) / float64(r.Requests) / float64(2*len(calm))
	}
	fmt.Printf("%30s of %.0f %% of the requests\n", "", 100*share)
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

// idle waits until nothing of deleted webhooks is parked: the notifications are cancelled as they come up. Those that
// are scheduled for later are cancelled in their time.
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
			if c, err := s.Consumer(context.Background(), "publisher"); err == nil && c.CachedInfo().NumPending == 0 &&
				c.CachedInfo().NumAckPending == 0 {
				return
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
}

func (b *bench) must(err error) {
	if err != nil {
		b.f.Fatalf("%v", err)
	}
}

// register creates a webhook and returns its id.
func (b *bench) register(eventName, url string) string {
	name, method := "bench", http.MethodPost
	created, err := b.client.CreateWebhook(context.Background(), client.Change{
		Name: &name, EventName: &eventName, Method: &method, URL: &url,
	})
	b.must(err)
	return created.Value.ID
}

func (b *bench) remove(id string) { b.must(b.client.DeleteWebhook(context.Background(), id)) }

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
		if _, err := b.js.PublishAsync("crm.events."+testsystem.Account+"."+eventName, []byte(body),
			jetstream.WithMsgID(fmt.Sprintf("%s:%d:%d", eventName, now, i)),
			jetstream.WithStallWait(30*time.Second)); err != nil {
			b.f.Fatalf("publish: %v", err)
		}
	}
	<-b.js.PublishAsyncComplete()
}

// waitFor waits until the receiver has counted so many requests.
func (b *bench) waitFor(want int) report {
	for deadline := time.Now().Add(3 * time.Minute); b.count("ok") < want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.f.Fatalf("%d of %d delivered after 3 minutes", b.count("ok"), want)
		}
	}
	return b.report()
}
