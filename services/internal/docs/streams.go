package main

import (
	"fmt"
	"strings"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/service"
)

// purposes of the streams.
var purposes = map[string]string{
	bus.Events:        "what the CRM published; replays read it",
	bus.Rejected:      "what cannot be an event, with the reason",
	bus.Notifications: "first attempts to make",
	bus.Retries:       "retries, scheduled and due",
	bus.Parked:        "what waits for its URL or webhook",
	bus.Attempts:      "the journal: every step of every notification",
	bus.Failed:        "payloads of permanent failures",
	bus.Quarantine:    "messages that could not be handled",
	bus.MaxDeliveries: "the broker's notes on used-up deliveries",
	bus.WebhookStatus: "status events for the CRM",
	bus.Commands:      "suspend and resume by hand",
}

// streams returns the table of streams with the defaults of their settings.
func streams() string {
	var limits bus.Limits
	service.Load(&limits, nil)
	var b strings.Builder
	b.WriteString("\n| stream | holds | subjects | kept | owner |\n| --- | --- | --- | --- | --- |\n")
	for _, owner := range []bus.Owner{bus.Publisher, bus.Dispatcher, bus.Monitor, bus.Management} {
		for _, s := range owner.Streams(limits) {
			kept := "until acknowledged"
			switch {
			case s.MaxAge == 24*time.Hour:
				kept = "1 day"
			case s.MaxAge > 24*time.Hour:
				kept = fmt.Sprintf("%.0f days", s.MaxAge.Hours()/24)
			case s.MaxAge > 0:
				kept = s.MaxAge.String()
			case s.Name == bus.Notifications:
				kept = "until acknowledged, and then for " + limits.DuplicateWindow.Truncate(time.Minute).String()
			}
			fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s |\n", s.Name, purposes[s.Name], strings.Join(s.Subjects, "`, `"), strings.TrimSuffix(kept, "0s"), owner)
		}
	}
	b.WriteByte('\n')
	return b.String()
}
