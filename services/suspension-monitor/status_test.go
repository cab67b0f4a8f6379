package monitor

import (
	"testing"
	"time"

	"gancho/pkg/suspension"
	"gancho/pkg/webhook"
)

// TestUntil: a step says when the URL is tried next; nothing is due once it is active again.
func TestUntil(t *testing.T) {
	t.Parallel()
	flag := suspension.Flag{Until: time.Now()}
	for event, due := range map[suspension.Event]bool{
		suspension.EventAtRisk: true, suspension.EventSuspended: true, suspension.EventProbing: true, suspension.EventResumed: false,
	} {
		if c := change(suspension.Transition{Event: event, Flag: flag}, &webhook.Webhook{}); (c.Until != nil) != due {
			t.Errorf("%s: until = %v", event, c.Until)
		}
		if c := change(suspension.Transition{Event: event}, &webhook.Webhook{}); c.Until != nil {
			t.Errorf("%s of a URL that is not tried again: until = %v", event, c.Until)
		}
	}
}
