package publisher

import (
	"fmt"
	"strings"
	"testing"

	"gancho/pkg/bodies"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

func largeBody(i, size int) string {
	return fmt.Sprintf(`{"event_name":"crm_deal_created","transaction_uuid":"t-%d","text":%q}`, i, strings.Repeat("x", size))
}

// bytes returns how many bytes a stream holds.
func (r *rig) bytes(stream string) int {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	return int(s.CachedInfo().State.Bytes)
}

// TestLargeFanOutStoresTheBodyOnce: 1 MiB to 1,000 webhooks is stored once.
func TestLargeFanOutStoresTheBodyOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const many = 1000
	r.manyWebhooks("acme", many)
	event := largeBody(1, 1<<20-200)
	r.publish("crm.events.acme.crm_deal_created", event, nil)
	r.start()
	all := r.stored(topology.Notifications)
	if len(all) != many {
		t.Fatalf("got %d notifications, want %d", len(all), many)
	}
	if got := r.bytes(topology.Bodies) + r.bytes(topology.Notifications); got > 2<<20 {
		t.Errorf("%d bytes are stored", got)
	}
	b := r.broker.Connect("reader")
	for _, m := range []int{0, many - 1} {
		n, err := notification.Decode(all[m].Header, all[m].Data)
		if err != nil || n.Ref == nil {
			t.Fatalf("notification %d: %+v, %v", m, n.Ref, err)
		}
		if got, err := bodies.Fetch(t.Context(), b, &n); err != nil || string(got) != event {
			t.Errorf("notification %d: %d bytes, %v", m, len(got), err)
		}
	}
	if got := r.counter("gancho_large_bodies_total", "once"); got != 1 {
		t.Errorf("%v bodies stored once", got)
	}
}

// TestBodiesWithoutRoom: without room on BODIES, notifications carry the body. So do those of small events, and of
// events for one webhook.
func TestBodiesWithoutRoom(t *testing.T) {
	t.Parallel()
	l := bustest.Limits()
	l.BodiesMaxBytes = 100_000
	r := newRigWith(t, l)
	r.webhook("acme", "*", webhook.Active)
	r.webhook("acme", "*", webhook.Active)
	r.webhook("globex", "*", webhook.Active)
	for _, body := range []string{largeBody(0, 200_000), largeBody(1, bodies.Above-200), largeBody(2, bodies.Above)} {
		r.publish("crm.events.acme.crm_deal_created", body, nil)
	}
	r.publish("crm.events.globex.crm_deal_created", largeBody(3, 50_000), nil)
	r.start()
	referred := 0
	for _, m := range r.stored(topology.Notifications) {
		n, err := notification.Decode(m.Header, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case n.Ref != nil:
			referred++
		case len(m.Data) == 0:
			t.Error("a notification has no body at all")
		}
	}
	if got := len(r.stored(topology.Bodies)); got != 1 || referred != 2 {
		t.Errorf("%d bodies, %d references; want 1 and 2", got, referred)
	}
	if got := r.counter("gancho_large_bodies_total", "copied_full") + r.counter("gancho_large_bodies_total", "copied_share"); got != 1 {
		t.Errorf("%v large bodies without room", got)
	}
}
