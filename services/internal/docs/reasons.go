package main

import (
	"fmt"
	"strings"

	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/suspension"
	"gancho/pkg/webhook"
)

// word is one entry of a closed list.
type word struct{ name, meaning, action string }

// list is a closed list of words. words holds one entry for each of closed, in its order.
type list struct {
	title, about   string
	first, actions string // headings of the first and the last column; no last column when empty
	closed         []string
	words          []word
}

func names[T ~string](values ...T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// lists are all closed lists. Their words come from the code; a test fails when a word is not explained.
func lists() []list {
	return []list{
		{
			title: "States of a notification",
			about: "`state` of a notification. Each send ends in exactly one of the last three, never in two, never in none. A resend or a replay opens a new send, which begins at `pending` again.",
			first: "state", actions: "what happens next", closed: names(notification.States()...), words: []word{
				{string(notification.Pending), "the first attempt has not been made yet", "it is made at once, normally within a second"},
				{string(notification.Retrying), "an attempt failed; the next one is scheduled or under way", "`next_attempt_at` says when; `explain` says why"},
				{string(notification.Parked), "it waits outside the lanes; `reason` says for what. No attempt is used up", "it is released by itself, oldest first, when the reason is gone"},
				{string(notification.Delivered), "a receiver answered with a 2xx in time", "nothing; it can be resent"},
				{string(notification.PermanentlyFailed), "six attempts failed, or it ended without them: see `reason`", "nothing by itself; it can be resent while its payload is kept (`LOG_MAX_AGE`)"},
				{string(notification.Cancelled), "its webhook was deleted first, or, with the reason `superseded`, it waited and a later event of its document was delivered meanwhile, or, with the reason `" + notification.ReasonErased + "`, its event was erased ([privacy.md](privacy.md))", "nothing; it cannot be resent. One that had ended when its event was erased keeps its state and has this reason"},
			},
		},
		{
			title: "Why an attempt failed",
			about: "`reason` of an attempt, and of a notification that is `retrying` or `permanently_failed`; the same words are in the API, the logs, the metrics and the console. Every failure is treated alike: it uses up one of the six attempts. The last two are reasons of notifications only: they end one that has attempts left.",
			first: "reason", actions: "what the webhook's owner can do", closed: names(delivery.Reasons()...), words: []word{
				{string(delivery.Timeout), "no status line and headers within 5 s (`ATTEMPT_TIMEOUT`), counted from the start of the attempt: name look-up, connection, TLS and sending included. The receiver may have processed the request", "answer 2xx first and work afterwards; ignore a `webhook-id` that was processed before"},
				{string(delivery.DNS), "the host's name was not found, or its name servers fail", "correct the host or its DNS entries"},
				{string(delivery.Connect), "the connection was refused, unreachable, or lost before the first byte of an answer (the request may have arrived)", "start the receiver; open its firewall for Gancho's addresses"},
				{string(delivery.TLS), "the TLS handshake failed: the certificate is expired, for another name or not from a known authority, the receiver speaks nothing newer than TLS 1.1, or TLS 1.2 without ECDHE; the attempt's `detail` has the cause", "renew the certificate and send its whole chain; offer TLS 1.3, or TLS 1.2 with ECDHE (operators: `EGRESS_TLS_LEGACY`)"},
				{string(delivery.Redirect), "a 3xx; redirects are not followed", "register the address that the redirect names. Google Apps Script answers every `POST` with a 302 to an address that works once: put a small relay before it that answers 2xx itself (a Cloud Function, or n8n's Webhook node) and calls the script"},
				{string(delivery.Status1xx), "101 Switching Protocols", "answer with a 2xx"},
				{string(delivery.Status4xx), "a 4xx other than 429", "look at the answer's body in the attempt; 401 and 403: set the webhook's `auth_header` and `auth_key`; 404 and 405: correct `url` or `http_method`"},
				{string(delivery.Status5xx), "a 5xx", "look at the receiver's log; `Retry-After` postpones the next attempt by up to 1 h (`MAX_RETRY_AFTER`)"},
				{string(delivery.RateLimited), "429", "send `Retry-After`: it is honoured; the number of requests in flight is halved anyway"},
				{string(delivery.BlockedAddress), "the host's address is not publicly routable, or its port is not open; nothing was sent", "use a public address and port 443 or 8443; operators: `EGRESS_ALLOW_CIDRS`, `EGRESS_ALLOW_PORTS`"},
				{string(delivery.BadResponse), "the answer is not HTTP, breaks off inside its headers, or has a status outside 100 to 599. Malformed headers after a good status line do not matter over HTTP/1.1", "check what listens on that port"},
				{string(delivery.HeaderLimit), "the answer's headers are larger than 64 KiB", "send fewer or shorter headers"},
				{string(delivery.InternalError), "Gancho could not make the attempt, or could not handle the notification and set it aside (stream `QUARANTINE`)", "tell the operators; then resend"},
				{string(delivery.ExpiredWhileSuspended), "its URL stayed suspended for longer than 7 days (`PARKED_MAX_AGE`)", "repair the receiver, resume the webhook, then resend or replay"},
			},
		},
		{
			title: "Why a notification is parked",
			about: "`reason` of a notification that is `parked`. Waiting uses no attempt.",
			first: "reason", actions: "when it goes on", closed: []string{notification.Suspended, notification.Disabled, notification.Saturated}, words: []word{
				{notification.Suspended, "its URL is suspended", "when a probe succeeds, `POST .../resume` is called, or the webhook is changed; after 7 days (`PARKED_MAX_AGE`) it ends as `expired_while_suspended`"},
				{notification.Disabled, "its webhook is disabled by its owner", "when the owner sets `status` to `active`; it does not expire"},
				{notification.Saturated, "its URL has as many requests in flight as it answers well at a time, or has had as many in a minute as `max_per_minute` allows, or its account holds so much of RETRIES that its first attempts wait", "by itself, oldest first, as the receiver answers or the account's retries shrink; it does not expire"},
			},
		},
		{
			title: "Why a notification is cancelled",
			about: "`reason` of a notification that is `cancelled`; none when its webhook was deleted. One whose event was erased has `erased`.",
			first: "reason", actions: "what the webhook's owner can do", closed: []string{notification.Superseded}, words: []word{
				{notification.Superseded, "its webhook has `stale` set to `skip`, it waited, and a later event of the same document was delivered meanwhile; `explain` names that event", "nothing: the receiver has the newer state. Set `stale` to `send` to get every event"},
			},
		},
		{
			title: "States of a webhook",
			about: "`status` of a webhook.",
			first: "status", actions: "how it is left", closed: []string{string(webhook.Active), string(suspension.Suspended), string(webhook.Disabled)}, words: []word{
				{string(webhook.Active), "events are matched and sent", ""},
				{string(suspension.Suspended), "its URL is set aside; `suspension` says since when, until when and why. Events are matched, their notifications parked", "a successful probe, `POST .../resume`, or any change of the webhook"},
				{string(webhook.Disabled), "set by its owner with `PUT {\"data\":{\"status\":\"disabled\"}}`. New events are not matched; notifications on their way are parked", "`PUT {\"data\":{\"status\":\"active\"}}`"},
			},
		},
		{
			title: "Why a URL is suspended",
			about: "`suspension.reason` of a webhook, and `reason` of the events `suspended`, `probing` and `resumed`.",
			first: "reason", actions: "how it ends", closed: []string{suspension.ReasonAlwaysFailing, suspension.ReasonByHand}, words: []word{
				{suspension.ReasonAlwaysFailing, "within 10 min it had at least 20 failures, no success, and at least 1 min between the first and the last (`SUSPENSION_*`); `evidence` has the numbers", "a probe at `until` succeeds; each failed one doubles the time, from 5 min up to 6 h"},
				{suspension.ReasonByHand, "a call of `POST .../suspend`", "only `POST .../resume` or a changed URL; no probes are made"},
			},
		},
		{
			title: "Status events",
			about: "Published on `gancho.webhooks.<account_id>.<webhook_id>.<event>` (stream `WEBHOOK_STATUS`), one for each webhook of the URL, so that the CRM can tell the owner.",
			first: "event", closed: append(names(suspension.EventAtRisk, suspension.EventSuspended, suspension.EventProbing, suspension.EventResumed), "permanent_failure"), words: []word{
				{string(suspension.EventAtRisk), "half of the failures that lead to a suspension are reached (`reason` `always_failing`), sent once until the URL works again; or 20 answers in a row were 401 or 403 (`reason` `credentials_refused`: it refuses our credentials), sent once until another answer comes. `until` is when it would be suspended at this rate", ""},
				{string(suspension.EventSuspended), "the URL is suspended; `until` is when it is tried again, null after a suspension by hand", ""},
				{string(suspension.EventProbing), "the oldest parked notification is being sent to find out", ""},
				{string(suspension.EventResumed), "the URL is active again; parked notifications are released", ""},
				{"permanent_failure", "notifications of this webhook failed for good; at most one event per webhook and minute, `evidence` names the first of them", ""},
			},
		},
		{
			title: "Why an event is rejected",
			about: "Header `Gancho-Reason` of a message on the stream `REJECTED_EVENTS`, which keeps its bytes for 30 days; HTTP ingest answers with the same words as `code`. A rejected event never holds up the next one. An event that is too large is refused by the broker (over HTTP: 413), so it is never acknowledged.",
			first: "reason", actions: "what the CRM has to change", closed: names(event.Reasons()...), words: []word{
				{string(event.BadSubject), "the subject is not `crm.events.<account_id>.<event_name>`", "account: 1 to 64 of `A-Za-z0-9_-`; event: `crm_<entity>_<action>`, `a-z0-9_`, at most 64"},
				{string(event.NotObject), "the body is empty, JSON but not an object, or larger than `EVENT_MAX_BYTES`", "send one JSON object, not larger"},
				{string(event.BadJSON), "the body is not one well-formed JSON value", "no byte order mark, nothing after the closing brace, nested at most 10,000 deep"},
				{string(event.EventNameMismatch), "`event_name` of the body, or the header `ce-type`, is not the name in the subject", "make them equal, or leave `event_name` out"},
				{string(event.BadTransactionUUID), "`transaction_uuid` is not a string of 1 to 128 of `A-Za-z0-9_-`", "correct it, or leave it out"},
			},
		},
	}
}

// reasons returns the page of closed lists.
func reasons() string {
	var b strings.Builder
	b.WriteString("# Words with a fixed meaning\n\nEach list is closed: the API, the logs, the metrics and the console use these words and no others. " +
		"A new word is announced in the changelog.\n\n<!-- Written by `go run ./services/internal/docs`; change services/internal/docs/reasons.go instead. -->\n")
	for _, l := range lists() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", l.title, l.about)
		if l.actions == "" {
			fmt.Fprintf(&b, "| %s | meaning |\n| --- | --- |\n", l.first)
		} else {
			fmt.Fprintf(&b, "| %s | meaning | %s |\n| --- | --- | --- |\n", l.first, l.actions)
		}
		for _, w := range l.words {
			fmt.Fprintf(&b, "| `%s` | %s |", w.name, w.meaning)
			if l.actions != "" {
				fmt.Fprintf(&b, " %s |", w.action)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
