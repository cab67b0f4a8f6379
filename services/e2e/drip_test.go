package e2e

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/event"
)

// drips answers with head at once, then with text at one byte a second, over and over, until the sender gives up. open
// is how many answers it is giving.
func drips(head, text string, open *atomic.Int64) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) {
		c, sent, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		open.Add(1)
		defer open.Add(-1)
		gone := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, sent) // until the sender closes
			close(gone)
		}()
		_, _ = io.WriteString(c, head)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := 0; ; i = (i + 1) % len(text) {
			_, _ = io.WriteString(c, text[i:i+1])
			select {
			case <-gone:
				return
			case <-tick.C:
			}
		}
	}
}

// TestDrippingURLsDoNotHoldUpOthers is T12: 500 URLs of one account, more than there are places, accept requests and
// drip their answers, a byte a second: status lines, headers, or bodies. The notifications of webhooks of the same
// account that have answered before, and another account's, published behind all of theirs, arrive while they drip.
func TestDrippingURLsDoNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	const (
		urls, events, healthy    = 500, 10, 5
		places                   = 128 // half of them for first attempts
		otherAccount, otherToken = "other", "test-token-of-other"
	)
	s := newSystem(t, fmt.Sprint("MAX_IN_FLIGHT=", places), "ATTEMPT_TIMEOUT=2s", "API_TOKENS="+account+":"+token+","+otherAccount+":"+otherToken)
	var open, bodies, unhindered, most atomic.Int64 // unhindered: healthy requests that came while answers dripped; most: how many did then
	line := newReceiver(t, drips("", "HTTP/1.1 200 OK, and more of it ", &open))
	headers := newReceiver(t, drips("HTTP/1.1 200 OK\r\n", "Set-Cookie: a\r\n", &open))
	body := newReceiver(t, drips("HTTP/1.1 200 OK\r\n\r\n", "x", &bodies))
	good := newReceiver(t, func(http.ResponseWriter, string) {
		n := open.Load()
		if n > 0 {
			unhindered.Add(1)
		}
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
	})
	type told struct {
		account string
		hook    hook
		txs     []string
	}
	var hooks []told
	for i := range healthy {
		hooks = append(hooks, told{account, s.register(dealCreated, fmt.Sprintf("%s/own/%d", good.URL, i)), nil})
	}
	s.token = otherToken
	for i := range healthy {
		hooks = append(hooks, told{otherAccount, s.register(dealCreated, fmt.Sprintf("%s/%d", good.URL, i)), nil})
	}
	publish := func() {
		own, other := s.publishAs(account), s.publishAs(otherAccount)
		for i := range hooks {
			tx := own
			if hooks[i].account == otherAccount {
				tx = other
			}
			hooks[i].txs = append(hooks[i].txs, tx)
		}
	}
	publish()
	s.Until("the healthy ones have their first", func() bool { return good.total() == len(hooks) })
	unhindered.Store(0)
	s.token = token
	kinds := []*receiver{line, headers, line, headers, body}
	for i := range urls {
		s.register(dealCreated, fmt.Sprintf("%s/%d", kinds[i%len(kinds)].URL, i))
	}
	for range events {
		publish()
	}
	asked := func() int { return line.total() + headers.total() + body.total() }
	s.Until("the healthy ones have all", func() bool {
		arrived := good.total()
		if n := asked(); n > 5*urls {
			t.Fatalf("%d requests went to dripping URLs while %d of %d came to the healthy ones", n, arrived, len(hooks)*(1+events))
		}
		return arrived >= len(hooks)*(1+events)
	})
	parked := s.parked()
	t.Logf("before the last healthy request %d went to dripping URLs, at most %d open; %d of %d notifications parked", asked(), most.Load(), parked, urls*events)
	if n := unhindered.Load(); n < int64(len(hooks)*events/2) {
		t.Errorf("%d of %d healthy requests came while answers dripped, want most of them", n, len(hooks)*events)
	}
	if n := most.Load(); n >= places/2 {
		t.Errorf("%d answers dripped at once, all there is room for at first attempts", n)
	}
	if parked < urls*events/2 {
		t.Errorf("%d of %d dripping notifications are parked, want most of them", parked, urls*events)
	}
	for _, h := range hooks {
		if s.token = token; h.account == otherAccount {
			s.token = otherToken
		}
		for _, tx := range h.txs {
			id := event.NotificationID(eventID(h.account, dealCreated, tx), uuid.MustParse(h.hook.ID))
			if n := s.waitAll([]string{id}, "delivered")[0]; len(n.Attempts) != 1 {
				t.Errorf("healthy notification %s was tried %d times", id, len(n.Attempts))
			}
		}
	}

	// What drips ends by the timeout, but for bodies: the status decides.
	s.token = token
	for rc, want := range map[*receiver]string{line: "failed timeout", headers: "failed timeout", body: "delivered "} {
		looked := 0
		for id := range rc.snapshot() {
			if looked++; looked > 5 {
				break
			}
			var n note
			s.Until("notification "+id+" was tried", func() bool { n = s.notification(id); return len(n.Attempts) > 0 })
			if got := n.Attempts[0].Outcome + " " + n.Attempts[0].Reason; got != want {
				t.Errorf("notification %s: %s, want %s", id, got, want)
			}
		}
		if looked == 0 {
			t.Errorf("no request to be %s", want)
		}
	}
	d := s.Dispatchers[0]
	resp, err := http.Get(s.Ops(d) + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var routines int
	if _, err := fmt.Fscanf(resp.Body, "goroutine profile: total %d", &routines); err != nil {
		t.Fatal(err)
	}
	memory := d.PeakMemory() >> 20
	t.Logf("the dispatcher has %d goroutines and took %d MiB", routines, memory)
	if routines > 5*urls { // two for each URL of which something is parked
		t.Errorf("the dispatcher has %d goroutines", routines)
	}
	if memory > 256 && !raceEnabled {
		t.Errorf("the dispatcher took %d MiB", memory)
	}
}
