package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/topology"
)

// TestReplySubjectsAreNoWayIn is row 69 of the bad inputs: whoever may publish chooses a reply subject, and the
// broker answers there in its own name, which no permission refuses. An answer sent to the broker's own
// interface must change nothing, and one sent to a stream of ours must lead to nothing.
func TestReplySubjectsAreNoWayIn(t *testing.T) {
	b := startBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	publisher := b.bus(t, userPublisher)
	must(t, "publisher's streams", publisher.Own(ctx, topology.Publisher, bustest.Limits()))
	operator, err := jetstream.New(b.connect(t, userOperator))
	must(t, "operator", err)
	crm := b.connect(t, userCRM)
	js, err := jetstream.New(crm)
	must(t, "crm", err)
	const subject = "crm.events.acme.crm_deal_created"
	for range 10 {
		_, err := js.Publish(ctx, subject, []byte("{}"))
		must(t, "publish", err)
	}
	// The acknowledgement of a stored message is {"stream":...,"seq":n}; a purge takes a seq too.
	replies := []string{
		"$JS.API.STREAM.PURGE.CRM_EVENTS", "$JS.API.STREAM.DELETE.CRM_EVENTS", "$JS.API.STREAM.UPDATE.CRM_EVENTS", "$JS.API.STREAM.CREATE.FORGED",
		"$JS.API.STREAM.MSG.DELETE.CRM_EVENTS", "$JS.API.STREAM.PURGE.NOTIFICATIONS", "gancho.notifications.acme.forged", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.X.Y",
		"$JS.ACK.CRM_EVENTS.publisher.1.1.1.1.0",
	}
	for _, reply := range replies {
		must(t, "publish with a reply", crm.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: []byte("{}")}))
	}
	last, err := js.Publish(ctx, subject, []byte("{}")) // behind them all
	must(t, "publish", err)
	for range 3 { // and what follows is behind their answers
		_, err := operator.AccountInfo(ctx)
		must(t, "account", err)
	}
	s, err := operator.Stream(ctx, topology.Events)
	must(t, "CRM_EVENTS", err)
	if state := s.CachedInfo().State; state.Msgs != last.Sequence || state.FirstSeq != 1 || state.Msgs < 10+1 {
		t.Errorf("CRM_EVENTS holds %d messages from %d of %d: an answer of the broker was taken for a request", state.Msgs, state.FirstSeq, last.Sequence)
	}
	for info := range operator.ListStreams(ctx).Info() {
		if info.Config.Name == "FORGED" {
			t.Error("a stream was created by an answer")
		}
	}
	// A stream takes the answer for a message. It has none of our headers, so nobody is told of it.
	first, err := lane.First(ctx, b.bus(t, userDispatcher), 10*time.Second)
	must(t, "first attempts", err)
	if n, err := first.Pull(ctx, 10, bus.Unbounded, func(d *lane.Delivery) { t.Errorf("an answer of the broker became a delivery: %+v", d.Notification) }); n > 0 || err != nil {
		t.Errorf("first attempts: %d, %v", n, err)
	}
	q, err := operator.Stream(ctx, topology.Quarantine)
	must(t, "QUARANTINE", err)
	if n := q.CachedInfo().State.Msgs; n > 1 {
		t.Errorf("QUARANTINE holds %d messages", n)
	}
}
