package main

import (
	"fmt"
	"strings"
	"time"

	"gancho/pkg/service"
	"gancho/pkg/topology"
)

// purposes of the streams.
var purposes = map[string]string{
	topology.Events:        "what the CRM published; replays read it",
	topology.Rejected:      "what cannot be an event, with the reason",
	topology.Notifications: "first attempts to make",
	topology.Retries:       "retries, scheduled and due",
	topology.Parked:        "what waits for its URL or webhook",
	topology.Attempts:      "the journal: every step of every notification",
	topology.Failed:        "payloads of permanent failures",
	topology.Quarantine:    "messages that could not be handled",
	topology.MaxDeliveries: "the broker's notes on used-up deliveries",
	topology.WebhookStatus: "status events for the CRM",
	topology.Commands:      "suspend and resume by hand",
	topology.Audit:         "who changed what: one record for each change over the API and the console",
	topology.Held:          "which webhooks each event was held back from, to be counted",
	topology.Bodies:        "bodies of large events, once for all their notifications",
	topology.Numbers:       "what was counted, slice by slice",
	topology.Usage:         "hours of that, by account",
}

// streams returns the table of streams with the defaults of their settings.
func streams() string {
	var limits topology.Limits
	service.Load(&limits, nil)
	var b strings.Builder
	b.WriteString("\n| stream | holds | subjects | kept | owner |\n| --- | --- | --- | --- | --- |\n")
	for _, owner := range []topology.Owner{topology.Publisher, topology.Dispatcher, topology.Monitor, topology.Management} {
		for _, s := range owner.Streams(limits) {
			kept := "until acknowledged"
			switch {
			case s.MaxAge == 24*time.Hour:
				kept = "1 day"
			case s.MaxAge > 24*time.Hour:
				kept = fmt.Sprintf("%.0f days", s.MaxAge.Hours()/24)
			case s.MaxAge > 0:
				kept = s.MaxAge.String()
			case s.Name == topology.Bodies:
				kept = "while a notification refers to them"
			case s.Name == topology.Notifications:
				kept = "until acknowledged, and then for " + limits.DuplicateWindow.Truncate(time.Minute).String()
			}
			fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s |\n", s.Name, purposes[s.Name], strings.Join(s.Subjects, "`, `"), strings.TrimSuffix(kept, "0s"), owner)
		}
	}
	b.WriteByte('\n')
	return b.String()
}
