package main

import (
	"fmt"
	"time"

	"gancho/services/internal/testsystem"
)

// crash kills a process with SIGKILL while events go to ten webhooks as fast as they can, and starts it again at once.
// It prints the longest time without a request, when the last one came, how many requests came twice, and how many were
// lost.
func (b *bench) crash(name string, victim func(*testsystem.System) *testsystem.Process) {
	const eventName, webhooks, events = "crm_contact_updated", 10, 3000
	if !b.crashed {
		for i := range webhooks {
			b.register(eventName, fmt.Sprintf("http://%s/ok/%s/%d", b.target, eventName, i))
		}
		b.crashed = true
	}
	b.reset()
	published := make(chan struct{})
	go func() {
		defer close(published)
		b.publishAt(eventName, events, 0)
	}()
	const want = events * webhooks
	for b.count("ok") < want/3 {
		time.Sleep(5 * time.Millisecond)
	}
	p := victim(b.system)
	p.Kill()
	killed := time.Now()
	p.Start()
	b.system.Ops(p) // it has started
	r := b.report()
	for r.Distinct < want && time.Since(killed) < time.Minute {
		time.Sleep(100 * time.Millisecond)
		r = b.report()
	}
	<-published
	b.settle()
	time.Sleep(5 * time.Second) // duplicates may come late
	r = b.report()
	fmt.Printf("%-28s longest pause %.1f s, all delivered %.1f s after the kill, %d duplicates, %d lost\n",
		name, time.Duration(r.Pause).Seconds(), time.Duration(r.Newest-killed.UnixNano()).Seconds(), r.Requests-r.Distinct, want-r.Distinct)
}
