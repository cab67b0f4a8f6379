package lane_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

const ackWait = time.Second

// pull returns the next n deliveries of the lane.
func pull(t *testing.T, p *lane.Puller, n int) []*lane.Delivery {
	t.Helper()
	var got []*lane.Delivery
	for deadline := time.Now().Add(30 * time.Second); len(got) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("got %d deliveries, want %d", len(got), n)
		}
		if _, err := p.Pull(t.Context(), n-len(got), bus.Unbounded, func(d *lane.Delivery) { got = append(got, d) }); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

func TestNotifyIsStoredOnceAndUnchanged(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	n := bustest.Example(1)
	n.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for range 3 {
		if err := lane.Notify(b, n).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first, err := lane.First(t.Context(), b, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	d := pull(t, first, 1)[0]
	if d.NumDelivered != 1 || string(d.Body) != string(n.Body) || d.ID != n.ID || d.EventSequence != 1 || !d.EventTime.Equal(n.EventTime) || d.Traceparent != n.Traceparent {
		t.Errorf("got %+v", d.Notification)
	}
	d.Ack()
	if more, err := first.Pull(t.Context(), 1, bus.Unbounded, func(*lane.Delivery) {}); err != nil || more != 0 {
		t.Errorf("the same notification was stored again: %d, %v", more, err)
	}
	again := *n
	again.Send = 2 // a resend is a new message
	if err := lane.Notify(b, &again).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	pull(t, first, 1)
}

// TestHold: a notification that is held stays with its process for longer than the ack wait; one that is not held any
// more comes again. A message that the broker delivers again all the same is left alone while it is held.
func TestHold(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	first, err := lane.First(t.Context(), b, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if err := lane.Notify(b, bustest.Example(i)).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	held := pull(t, first, 2)
	for i, wait := range []time.Duration{ackWait, time.Hour} { // the second is not kept in time
		if !held[i].Hold(wait) {
			t.Fatalf("delivery %d was refused", i)
		}
	}
	for range 2 {
		switch d := pull(t, first, 1)[0]; {
		case d.ID == held[0].ID:
			t.Fatal("a notification that is kept was delivered again")
		case d.Hold(ackWait):
			t.Fatal("a notification is held twice")
		}
	}
	held[1].Ack()
	held[0].Abandon()
	if d := pull(t, first, 1)[0]; d.ID != held[0].ID || !d.Hold(ackWait) || !d.Ours() {
		t.Errorf("after the first was abandoned %s came", d.ID)
	}
}

func TestRetriesCountToFive(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	retries, err := lane.Retries(t.Context(), b, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	exhausted, err := lane.Exhausted(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	n := bustest.Example(1)
	n.AttemptsDone, n.Moves = 1, 1
	for range 2 { // repeated after a crash, it is scheduled once
		if err := lane.Schedule(t.Context(), b, n, time.Now().Add(50*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= 5; i++ {
		d := pull(t, retries, 1)[0]
		if d.NumDelivered != i || d.AttemptsDone != 1 {
			t.Fatalf("delivery %d: got NumDelivered %d, AttemptsDone %d", i, d.NumDelivered, d.AttemptsDone)
		}
		d.NakAfter(10 * time.Millisecond)
	}
	var x *lane.Retry
	for deadline := time.Now().Add(30 * time.Second); x == nil && time.Now().Before(deadline); {
		if more, err := retries.Pull(t.Context(), 1, bus.Unbounded, func(*lane.Delivery) {}); err != nil || more != 0 {
			t.Fatalf("a sixth delivery: %d, %v", more, err)
		}
		if err := exhausted.Pull(t.Context(), func(got *lane.Retry) error { x = got; return lane.Remove(t.Context(), b, got) }); err != nil {
			t.Fatal(err)
		}
	}
	if x == nil || x.ID != n.ID {
		t.Fatalf("the exhausted message was not reported: %+v", x)
	}
	if _, err := b.Get(t.Context(), topology.Retries, "", x.Sequence); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestForgedMessages: rows 61, 62, 65 and 71 of the bad inputs. None becomes a delivery.
func TestForgedMessages(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	js := s.JetStream()
	good := func() nats.Header {
		n := bustest.Example(1)
		return nats.Header{
			"Gancho-Schema": {"1"}, "Gancho-Account": {n.Account}, "Gancho-Event-Name": {n.EventName}, "Gancho-Event-Id": {n.EventID},
			"Gancho-Webhook-Id": {n.WebhookID}, "Gancho-Notification-Id": {n.ID}, "Gancho-Send": {"1"},
		}
	}
	set := func(key, value string) nats.Header { h := good(); h[key] = []string{value}; return h }
	forged := map[string]nats.Header{
		"61 random bytes":              {},
		"62 attempts 7":                set("Gancho-Attempts-Done", "7"),
		"62 attempts -1":               set("Gancho-Attempts-Done", "-1"),
		"62 attempts quoted":           set("Gancho-Attempts-Done", `"1"`),
		"62 send 0":                    set("Gancho-Send", "0"),
		"65 id of another webhook":     set("Gancho-Notification-Id", uuid.NewString()),
		"account that is none":         set("Gancho-Account", "a.b"),
		"webhook that is no UUID":      set("Gancho-Webhook-Id", "../x"),
		"event name that is none":      set("Gancho-Event-Name", "deal"),
		"schema that is no number":     set("Gancho-Schema", "x"),
		"replay that is no UUID":       set("Gancho-Replay", "x y"),
		"71 header of 60 KB, no ids":   {"X": {string(make([]byte, 60_000))}},
		"71 invalid bytes as an id":    set("Gancho-Event-Id", "\xff\xfe\x00\x1b[2J"),
		"71 invalid bytes as a name":   set("Gancho-Event-Name", "crm_deal_\xff"),
		"71 invalid bytes as a number": set("Gancho-Send", "1\x00"),
		"as large as the broker takes": {},
	}
	body := func(name string) []byte {
		if name == "as large as the broker takes" {
			return make([]byte, 2<<20-64)
		}
		return []byte(name)
	}
	for name, h := range forged {
		if name == "71 header of 60 KB, no ids" {
			h["X"] = []string{fmt.Sprintf("%060000d", 1)}
		}
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "gancho.notifications.acme.x", Header: h, Data: body(name)}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	headerless(t, s, "gancho.notifications.acme.x")
	newer := good()
	newer["Gancho-Schema"] = []string{"999"} // row 63 waits for a newer version
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "gancho.notifications.acme.x", Header: newer}); err != nil {
		t.Fatal(err)
	}
	if err := lane.Notify(b, bustest.Example(2)).Wait(t.Context()); err != nil { // behind them all
		t.Fatal(err)
	}
	first, err := lane.First(t.Context(), b, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	if d := pull(t, first, 1)[0]; d.ID != bustest.Example(2).ID {
		t.Errorf("a forged message became the delivery %+v", d.Notification)
	}
	q, err := js.Stream(t.Context(), topology.Quarantine)
	if err != nil {
		t.Fatal(err)
	}
	const malformed = 1
	if n := q.CachedInfo().State.Msgs; n != uint64(len(forged)+malformed) {
		t.Errorf("quarantined: got %d, want %d", n, len(forged)+malformed)
	}
	// The one of a newer version is neither set aside nor lost: it waits on RETRIES, as it is.
	waiting, err := js.Stream(t.Context(), topology.Retries)
	if err != nil {
		t.Fatal(err)
	}
	m, err := waiting.GetLastMsgForSubject(t.Context(), "gancho.retries.>")
	if err != nil {
		t.Fatalf("what only a newer version knows waits nowhere: %v", err)
	}
	for key, want := range newer {
		if m.Header.Get(key) != want[0] {
			t.Errorf("%s = %q, want %q", key, m.Header.Get(key), want[0])
		}
	}
	// Settled: nothing of it all comes again.
	c, err := js.Consumer(t.Context(), topology.Notifications, topology.ConsumerFirst)
	if err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "all is settled but the good one, which is still held", func() bool {
		left, err := c.Info(t.Context())
		return err == nil && left.NumPending == 0 && left.NumAckPending <= 1
	})
}

// headerless stores a message whose header block is none: no client of NATS writes that, so it is done by hand.
func headerless(t *testing.T, s *bustest.Server, subject string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const block, body = "NATS/1.0\r\n\xff\xfe no colon here\r\n: nameless\r\n\r\n", "{}"
	if _, err := fmt.Fprintf(c, "CONNECT {\"headers\":true,\"verbose\":false}\r\nHPUB %s %d %d\r\n%s%s\r\nPING\r\n", subject, len(block), len(block)+len(body), block, body); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		switch line := lines.Text(); {
		case line == "PONG":
			return
		case strings.HasPrefix(line, "-ERR"):
			t.Fatal(line)
		}
	}
	t.Fatal("the broker closed the connection")
}

func TestDrainsDoNotOverlap(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	n := bustest.Example(1)
	for i := range 5 {
		n.Moves = i
		if err := lane.Park(b, n, "lane").Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	backlogs, err := lane.Backlogs(t.Context(), b, "")
	if err != nil || len(backlogs) != 1 || backlogs[0] != (lane.Backlog{Account: "acme", Lane: "lane", WebhookID: n.WebhookID, Messages: 5}) {
		t.Fatalf("backlogs: got %+v, %v", backlogs, err)
	}
	all, err := lane.OpenDrain(t.Context(), b, "acme", "lane", "*", 2, ackWait)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lane.OpenDrain(t.Context(), b, "acme", "lane", n.WebhookID, 2, ackWait); !errors.Is(err, lane.ErrBusy) {
		t.Errorf("an overlapping drain: got %v, want ErrBusy", err)
	}
	var order []int
	take := func() {
		if _, err := all.Take(t.Context(), 5, func(d *lane.Delivery) { order = append(order, d.Moves); d.Ack() }); err != nil {
			t.Fatal(err)
		}
	}
	for len(order) < 5 {
		take()
	}
	for i, moves := range order {
		if moves != i {
			t.Fatalf("order: got %v", order)
		}
	}
	for empty := false; !empty; { // the last ack may still be on its way
		if empty, err = all.Empty(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := all.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.OldestParked(t.Context(), b, "acme", "lane", "*"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("something is left: %v", err)
	}
}
