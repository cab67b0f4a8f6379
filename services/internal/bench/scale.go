package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/services/internal/testsystem"
)

// scales are the scenarios of growth, for the page on sizing. Each has a system of its own.
var scales = []struct {
	name string
	env  []string
	run  func(*bench)
}{
	{"scale: dispatchers", []string{"MAX_IN_FLIGHT=64"}, (*bench).dispatchers},
	{"scale: webhooks", nil, (*bench).webhooks},
	{"scale: parked", nil, (*bench).parked},
	{"scale: large events", nil, (*bench).large},
}

// scale runs those whose name holds only.
func scale(f *fatal, bin, dir, only string, env []string, load load) {
	for _, s := range scales {
		if strings.Contains(s.name, only) {
			fmt.Println(s.name)
			b := newBench(f, bin, dir, "default", append(slices.Clone(env), s.env...))
			b.load = load
			s.run(b)
			b.stop()
			fmt.Println()
		}
	}
}

// dispatchers sends to 20 URLs that answer after 100 ms with 1, 2 and 4 dispatchers of 64 places each, of
// which 32 are for first attempts: places and not processors are the limit.
func (b *bench) dispatchers() {
	const urls, eventName = 20, "crm_product_updated"
	for i := range urls {
		b.register(eventName, fmt.Sprintf("http://%s/lag/%s/%d", b.target, eventName, i))
	}
	b.publishAt(eventName, 50, 0) // every URL's share has grown then, connections are open
	b.waitFor(50 * urls)
	one := 0.0
	for _, n := range []int{1, 2, 4} {
		for len(b.system.Dispatchers) < n {
			b.system.AddDispatcher()
		}
		b.settle()
		b.reset()
		cpu := func() (sum time.Duration) {
			for _, p := range b.system.Dispatchers {
				sum += p.CPU()
			}
			return sum
		}
		before, events := cpu(), 100*n
		b.publishAt(eventName, events, 0)
		r := b.waitFor(events * urls)
		rate := float64(r.Requests) / (float64(r.Last-r.First) / 1e9)
		b.settle()
		if n == 1 {
			one = rate
		}
		fmt.Printf("%d dispatchers: %6.0f deliveries/s, %.2f of one; CPU s per 10,000 of all dispatchers %.2f\n",
			n, rate, rate/one, (cpu()-before).Seconds()*10_000/float64(r.Requests))
	}
}

// webhooks measures one webhook's latency at 200 events/s among many of other accounts, and the memory that the
// services need to know them all.
func (b *bench) webhooks() {
	const eventName = "crm_deal_created"
	ctx := context.Background()
	id := b.register(eventName, fmt.Sprintf("http://%s/ok/%s/0", b.target, eventName))
	keys, _, err := seal.Load(filepath.Join(b.dir, "encryption.key"))
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	bucket, err := b.js.KeyValue(ctx, topology.BucketWebhooks)
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	entry, err := bucket.Get(ctx, testsystem.Account+"."+id)
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	w, err := webhook.Decode(entry.Value())
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	stored := 1
	for n := 1_000; n <= b.load.webhooks; n *= 10 {
		for ; stored < n; stored++ {
			other := *w
			other.ID, other.Account = uuid.NewString(), fmt.Sprint("account-", stored%2000)
			other.URL = fmt.Sprintf("https://receiver-%d.example.com/hooks/crm", stored)
			value, err := registry.Sign(keys, &other)
			if err != nil {
				b.f.Fatalf("%v", err)
			}
			if _, err := b.js.PublishAsync("$KV."+topology.BucketWebhooks+"."+other.Key(), value); err != nil {
				b.f.Fatalf("%v", err)
			}
		}
		<-b.js.PublishAsyncComplete()
		for _, p := range b.system.Services() {
			p.Kill()
		}
		began := time.Now()
		for _, p := range b.system.Services() {
			p.Start()
		}
		b.system.WaitReady()
		took := time.Since(began)
		b.publishAt(eventName, 200, 200) // warm
		b.settle()
		b.reset()
		b.publishAt(eventName, 1000, 200)
		r := b.waitFor(1000)
		fmt.Printf("%6d webhooks: p50 %.1f ms, p99 %.1f ms; all services ready %.1f s after a start; peak MiB", n,
			r.P50, r.P99, took.Seconds())
		for _, p := range b.processes() {
			fmt.Printf(" %s %d", p.Name, p.PeakMemory()>>20)
		}
		fmt.Println()
		b.settle()
	}
	b.disk()
}

// parked measures one webhook's latency at 200 events/s before and while many notifications are parked for
// another URL, then while those are released.
func (b *bench) parked() {
	const healthy, waiting, runs = "crm_deal_created", "crm_task_created", 5
	b.register(healthy, fmt.Sprintf("http://%s/ok/%s/0", b.target, healthy))
	id := b.register(waiting, fmt.Sprintf("http://%s/back/%s/0", b.target, waiting))
	_, err := b.client.SuspendWebhook(context.Background(), id)
	b.must(err)
	b.publishAt(healthy, 1000, 200) // warm, and the flag is known everywhere
	b.settle()
	measure := func(what string) {
		var p50, p99 []float64
		for range runs {
			b.reset()
			b.publishAt(healthy, 2000, 200)
			r := b.waitFor(2000)
			p50, p99 = append(p50, r.P50), append(p99, r.P99)
		}
		fmt.Printf("%-28s p50 %5.1f ms, p99 %5.1f ms (of %d: %s)\n", what, median(p50), median(p99), runs,
			strings.Join(format(p99), " "))
	}
	measure("none parked")
	began := time.Now()
	b.publishAt(waiting, b.load.parked, 0)
	b.reach(b.load.parked, "parked", func() int { return b.waiting("PARKED") })
	fmt.Printf("%d parked in %.0f s\n", b.load.parked, time.Since(began).Seconds())
	b.settle()
	time.Sleep(15 * time.Second) // the aftermath of the load is over: checkpoints, the books
	b.cpu()
	before := time.Now()
	measure(fmt.Sprintf("%d parked", b.load.parked))
	fmt.Print("processors used meanwhile, %:")
	for _, p := range b.processes() {
		fmt.Printf(" %s %.1f", p.Name, 100*(p.CPU()-b.last[p.Name]).Seconds()/time.Since(before).Seconds())
	}
	fmt.Print("\npeak MiB:")
	for _, p := range b.processes() {
		fmt.Printf(" %s %d", p.Name, p.PeakMemory()>>20)
	}
	fmt.Println()
	_, err = b.client.ResumeWebhook(context.Background(), id)
	b.must(err)
	began = time.Now()
	b.reset()
	b.publishAt(healthy, 2000, 200)
	r := b.waitFor(2000)
	fmt.Printf("while they are released      p50 %5.1f ms, p99 %5.1f ms\n", r.P50, r.P99)
	b.reach(b.load.parked, "released", func() int { return b.count("back") })
	fmt.Printf("%d released in %.0f s\n", b.load.parked, time.Since(began).Seconds())
	b.disk()
}

// reach waits until want are done.
func (b *bench) reach(want int, done string, count func() int) {
	for deadline := time.Now().Add(30 * time.Minute); count() < want; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.f.Fatalf("%d of %d are %s after half an hour", count(), want, done)
		}
	}
}

// disk prints the bytes that the streams hold for each message, after events of 1 KiB went to one webhook each.
func (b *bench) disk() {
	fmt.Print("bytes on disk for each message:")
	for _, name := range []string{
		topology.Events, topology.Notifications, topology.Attempts,
		"KV_" + topology.BucketWebhooks,
	} {
		s, err := b.js.Stream(context.Background(), name)
		if err != nil {
			b.f.Fatalf("%v", err)
		}
		if state := s.CachedInfo().State; state.Msgs > 0 {
			fmt.Printf(" %s %d", name, state.Bytes/state.Msgs)
		}
	}
	fmt.Println()
}

// large publishes 100 events of the largest size, 1 MiB, as fast as the broker takes them to 20 webhooks: ten that
// answer at once, five that hang and five that fail. It prints what memory each process needs at most for that.
func (b *bench) large() {
	const eventName, events, size = "crm_product_updated", 100, 1 << 20
	kinds := []string{"ok", "ok", "hang", "fail"}
	for i := range 20 {
		b.register(eventName, fmt.Sprintf("http://%s/%s/%s/%d", b.target, kinds[i%len(kinds)], eventName, i))
	}
	b.reset()
	began := time.Now()
	for i := range events {
		body := fmt.Sprintf(`{"event_name":%q,"document":{"id":"67900a6e%016d","sent":%d,"name":"`, eventName, i,
			time.Now().UnixNano())
		end := fmt.Sprintf(`"},"event_timestamp":"2026-01-21T20:58:22.000Z","transaction_uuid":"large-%d"}`, i)
		body += strings.Repeat("x", size-len(body)-len(end)) + end
		if _, err := b.js.Publish(context.Background(), "crm.events."+testsystem.Account+"."+eventName,
			[]byte(body)); err != nil {
			b.f.Fatalf("publish: %v", err)
		}
	}
	r := b.waitFor(10 * events)
	fmt.Printf("%d events of 1 MiB to 20 webhooks: the ten good ones had all after %.1f s\n", events,
		time.Duration(r.Last-began.UnixNano()).Seconds())
	time.Sleep(15 * time.Second) // those that hang and fail go on being tried
	for _, p := range b.processes() {
		limit := ""
		if m, ok := memory[p.Name]; ok {
			limit = fmt.Sprintf(" of %d MiB (mem_limit)", m.hard)
		}
		fmt.Printf("%30s at most %d MiB%s\n", p.Name, p.PeakMemory()>>20, limit)
	}
}
