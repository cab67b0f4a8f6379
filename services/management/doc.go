// Package management serves the API: webhooks, the fate of notifications, resends and events over HTTP.
//
// It owns the registry of webhooks and keeps nothing else that could be lost: notifications are read from the
// journal, suspensions from the suspension-monitor's bucket, and the index of recent notifications in Redis
// is rebuilt from the journal. Any number of replicas may run; none of them has a special role.
//
// # Guarantees for clients
//
//   - An answer of success means that the change is stored by the broker, and that the next request to this
//     replica sees it. Other processes see it within milliseconds.
//   - Of two clients that change the same webhook at once, both changes are merged, or with If-Match one gets
//     412. Of two that register the same account, event and URL at once, one gets 409 (see package webhooks).
//   - Without Redis everything works but the list of notifications of a webhook, which answers 503.
//   - While the broker is down every call answers 503 with Retry-After; nothing is half done.
package management
