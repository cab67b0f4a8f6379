// Package notices notifies owners of the troubles of their webhooks, by e-mail and by a request to a URL.
//
// It follows WEBHOOK_STATUS. Each change is counted in the bucket NOTICES, in the record of its webhook and kind, and
// only then acknowledged. A record holds the changes not reported yet and the notice that is on its way: to which
// addresses, how often it was tried, when it is tried again. So there is at most one notice for a webhook, kind and
// hour, changes within the hour are reported together when it is over, and after a restart everything goes on where it
// was. Records are written by compare-and-set: of all replicas one sends a notice.
//
// A notice is sent again only where it is not known whether it arrived: the process or the broker stopped between the
// answer of the mail server and the record. The request to a URL is a notification like any other, to what
// webhook.Notice makes: dispatchers sign, guard, retry and log it, and the duplicate window keeps it single.
//
// Deliveries never wait for a notice: nothing of theirs reads these records.
package notices
