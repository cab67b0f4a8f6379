package revocation

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/topology"
)

// TestEndedStaysEnded: a session that was ended is so for every replica, those that start later included, and
// whatever is written at its key afterwards.
func TestEndedStaysEnded(t *testing.T) {
	t.Parallel()
	server := bustest.Start(t)
	server.Topology(bustest.Limits())
	replica := func() (*List, context.CancelFunc) {
		b := server.Connect("management")
		bucket, err := b.Bucket(t.Context(), topology.BucketEndedSessions)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		l := New(bucket)
		go func() { _ = l.Run(ctx) }()
		<-l.Loaded()
		return l, stop
	}
	one, stop := replica()
	other, _ := replica()
	tail, leave := other.While(t.Context(), "session")
	defer leave()
	untouched, leave := other.While(t.Context(), "another")
	defer leave()
	if one.Ended("session") || tail.Err() != nil {
		t.Fatal("a new session has ended")
	}
	if err := one.End(t.Context(), "session"); err != nil {
		t.Fatal(err)
	}
	<-tail.Done() // the other replica's tail
	if !one.Ended("session") || !other.Ended("session") || other.Ended("another") || untouched.Err() != nil {
		t.Error("the wrong session has ended")
	}
	stop()

	nc, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []nats.Header{{}, {"KV-Operation": {"DEL"}}, {"KV-Operation": {"PURGE"}}} {
		if _, err := js.PublishMsg(&nats.Msg{Subject: "$KV." + topology.BucketEndedSessions + "." + key("session"), Header: header}); err != nil {
			t.Fatal(err)
		}
		if late, _ := replica(); !late.Ended("session") {
			t.Errorf("after %v the session is good again", header)
		}
	}
	if _, err := js.PublishMsg(&nats.Msg{Subject: "$KV." + topology.BucketEndedSessions + "." + key("x"), Header: nats.Header{"Nats-Rollup": {"all"}}}); err == nil {
		t.Error("the bucket can be emptied by one message")
	}
	if err := one.End(t.Context(), "session"); err != nil {
		t.Errorf("ended twice: %v", err)
	}
}
