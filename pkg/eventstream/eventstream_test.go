package eventstream_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
)

// TestEventSize: the largest event passes with all headers the CRM may set, a larger one is refused by the broker.
func TestEventSize(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	limits := bustest.Limits()
	limits.EventMaxBytes = 4096
	s.Topology(limits)
	js := s.JetStream()
	account, name, tx := strings.Repeat("a", 64), "crm_"+strings.Repeat("b", 29)+"_"+strings.Repeat("c", 30), strings.Repeat("d", 128)
	m := &nats.Msg{Subject: event.Subject(account, name), Data: bytes.Repeat([]byte("e"), limits.EventMaxBytes), Header: nats.Header{
		event.HeaderMsgID: {account + ":" + name + ":" + tx}, event.HeaderTraceparent: {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		event.HeaderCEID: {tx}, event.HeaderCEType: {name}, "ce-source": {"https://crm.example.com/" + account}, "ce-specversion": {"1.0"},
		"ce-time": {"2026-01-21T20:58:22.000Z"}, "content-type": {"application/json"},
	}}
	if _, err := js.PublishMsg(t.Context(), m); err != nil {
		t.Errorf("an event of the limit: %v", err)
	}
	m = &nats.Msg{Subject: m.Subject, Data: bytes.Repeat([]byte("e"), limits.EventMaxBytes+event.Headroom+1)}
	if _, err := js.PublishMsg(t.Context(), m); err == nil {
		t.Error("an event above the limit was stored")
	}
}
