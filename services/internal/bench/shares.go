package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/services/internal/testsystem"
)

// greedy is the account that attacks the shared stores, and its token.
const (
	greedy      = "greedy"
	greedyToken = "test-token-of-greedy"

	// sharesRun is how long one side of a pair lasts: 2,000 first attempts.
	sharesRun = 5 * time.Second
)

// small limits make an attack a matter of seconds; the share of each store is the part that counts.
var small = []string{
	"API_TOKENS=" + testsystem.Account + ":" + testsystem.Token + "," + greedy + ":" + greedyToken,
	"NOTIFICATIONS_MAX_BYTES=16777216", "RETRIES_MAX_BYTES=8388608", "PARKED_MAX_BYTES=4194304",
	"EVENTS_MAX_BYTES=134217728",
	"MAX_IN_FLIGHT_BYTES=16777216",
}

// attacks are the ways in which one account can fill a shared store. repel ends each of them.
var attacks = []struct {
	name  string
	begin func(b *bench)
}{
	{"shares: PARKED filled by webhooks suspended by hand", func(b *bench) {
		for i := range 4 {
			b.attack("POST", "/crm/v2/webhooks/"+b.hook("ok", i)+"/suspend", nil)
		}
		b.flood(1500, 8<<10)
	}},
	{"shares: RETRIES filled by receivers that fail", func(b *bench) {
		for i := range 2 {
			b.hook("fail", i)
		}
		b.flood(24, 1000<<10)
	}},
	{"shares: NOTIFICATIONS filled by healthy receivers", func(b *bench) {
		for i := range 10 {
			b.hook("back", i)
		}
		b.flood(120, 50<<10)
	}},
	{"shares: CRM_EVENTS filled over HTTP without a webhook", func(b *bench) {
		body := padded(1000 << 10)
		for i := range 160 {
			if b.attack("POST", "/crm/v2/events/crm_task_created", body(i)) == http.StatusTooManyRequests {
				break
			}
		}
	}},
	{"shares: memory filled by receivers that hang", func(b *bench) {
		for i := range 20 {
			b.hook("hang", i)
		}
		b.flood(6, 1000<<10)
	}},
}

// shares measures the first attempts of another account by turns without and with each attack, and prints the ratio of
// their p99: the median of five pairs. Each attack has a system of its own.
func shares(f *fatal, bin, dir, only string, env []string) {
	for _, a := range attacks {
		if !strings.Contains(a.name, only) {
			continue
		}
		b := newBench(f, bin, dir, "default", append(slices.Clone(small), env...))
		var calm, attacked []report
		began := time.Now()
		for i := range isolationRuns {
			calm = append(calm, b.isolationRun("ok", 20, sharesRun))
			b.idle()
			a.begin(b)
			attacked = append(attacked, b.isolationRun("ok", 20, sharesRun))
			b.repel()
			b.idle()
			fmt.Printf("%30s pair %d of %d: p99 %.1f ms, under attack %.1f ms\n", "", i+1, isolationRuns, p99(calm[i]), p99(attacked[i]))
		}
		compare(a.name, calm, attacked)
		fmt.Printf("%30s took %s\n", "", time.Since(began).Round(time.Second))
		b.stop()
	}
}

// attack is one API call of the greedy account, with the body as it stands; it returns the status.
func (b *bench) attack(method, path string, body []byte) int {
	status, _ := b.call(greedyToken, method, path, body)
	return status
}

func (b *bench) call(token, method, path string, body []byte) (int, []byte) {
	req, err := http.NewRequestWithContext(context.Background(), method, b.system.APIURL+path, bytes.NewReader(body))
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		b.f.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, answer
}

// hook registers a webhook of the greedy account for its events and returns its id.
func (b *bench) hook(kind string, i int) string {
	body := fmt.Sprintf(`{"data":{"event_name":"crm_task_created","url":"http://%s/%s/greedy/%d"}}`, b.target, kind, i)
	status, answer := b.call(greedyToken, http.MethodPost, "/crm/v2/webhooks", []byte(body))
	var created struct{ Data struct{ ID string } }
	if err := json.Unmarshal(answer, &created); err != nil || status != http.StatusCreated {
		b.f.Fatalf("register: %d %s", status, answer)
	}
	return created.Data.ID
}

// repel ends an attack: the greedy account's webhooks go, and with them the notifications that wait for them.
func (b *bench) repel() {
	_, answer := b.call(greedyToken, http.MethodGet, "/crm/v2/webhooks?page[size]=200", nil)
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal(answer, &list); err != nil {
		b.f.Fatalf("list: %s", answer)
	}
	for _, w := range list.Data {
		b.attack(http.MethodDelete, "/crm/v2/webhooks/"+w.ID, nil)
	}
	b.idleEvents()
}

// padded returns events of about that size, each with a transaction of its own.
func padded(size int) func(i int) []byte {
	padding := strings.Repeat("x", size)
	began := time.Now().UnixNano()
	return func(i int) []byte {
		return fmt.Appendf(nil, `{"event_name":"crm_task_created","document":{"name":%q},"transaction_uuid":"greedy-%d-%d"}`, padding, began, i)
	}
}

// flood publishes events of the greedy account as fast as the broker takes them.
func (b *bench) flood(events, size int) {
	time.Sleep(known)
	body := padded(size)
	for i := range events {
		if _, err := b.js.PublishAsync("crm.events."+greedy+".crm_task_created", body(i),
			jetstream.WithStallWait(30*time.Second)); err != nil {
			b.f.Fatalf("publish: %v", err)
		}
	}
	<-b.js.PublishAsyncComplete()
}
