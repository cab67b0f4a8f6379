package topology

// descriptions say what streams and durable consumers are for, to people who list them. Buckets have theirs in Buckets.
var descriptions = map[string]string{
	Events:        "events of the CRM as it published them",
	Rejected:      "messages that cannot be events, with the reason",
	Notifications: "notifications before their first attempt, and those not yet known to be settled",
	Retries:       "notifications that wait for a retry: by schedule, then due",
	Parked:        "notifications of URLs that are suspended or over their share, and of disabled webhooks",
	Attempts:      "the journal: one record for each attempt and each change of a notification's state",
	Failed:        "permanently failed notifications, kept to be sent again",
	Quarantine:    "messages that could not be handled, with the reason",
	MaxDeliveries: "the broker's reports of notifications that it delivers no more; a dispatcher puts them right",
	WebhookStatus: "what happened to webhooks and accounts, for the CRM",
	Held:          "which webhooks an event was held back from by their conditions, to be counted",
	Audit:         "who changed what: a record of each change by API, console or operator",
	Numbers:       "counts of events, notifications, attempts and what was held back, slice by slice",
	Bodies:        "bodies of large events, once for all notifications that refer to them",
	Usage:         "hours of these counts, by account",
	Commands:      "suspensions and resumptions by hand, for the suspension-monitor",

	ConsumerPublisher:     "the publishers: turns events into notifications",
	ConsumerFirst:         "the dispatchers: first attempts",
	ConsumerRetries:       "the dispatchers: retries that are due; max_deliver is their number",
	ConsumerMaxDeliveries: "the dispatchers: notifications that the broker delivers no more",
	ConsumerMonitor:       "the suspension-monitor: counts failures and successes",
	ConsumerCommands:      "the suspension-monitor: suspends and resumes by hand",
	ConsumerIndex:         "management: lists notifications by their states",
	ConsumerIndexPending:  "management: lists notifications before their first attempt",
	ConsumerNotices:       "management: sends owners notices about their webhooks",
	ConsumerIndexEvents:   "management: finds events by transaction and document",
}

// Description returns the purpose of a stream or durable consumer, "" when the name is not one of ours.
func Description(name string) string { return descriptions[name] }
