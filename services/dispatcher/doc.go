// Package dispatcher makes the requests: it takes notifications from their lanes, decides each one, and
// stores the next message.
//
// # Lanes
//
// First attempts run off NOTIFICATIONS and never share a consumer with retries, because the broker sends
// redeliveries before new messages. A failed one moves to RETRIES as a scheduled message; there the broker's
// delivery count is the number of the retry and its limit of five is the limit of retries. One that must wait
// for its URL (suspended, over its limit) or its webhook (disabled) moves to PARKED, carrying its used
// attempts, and is taken out again by one drain per URL.
//
// # What decides
//
// The journal. A first delivery is trusted as it comes, which keeps the way of a healthy notification free
// of look-ups; every other delivery is compared with the notification's last record (see notification.Resume). Every
// record is written on top of the one before it, so a dispatcher that was frozen in mid-attempt and wakes
// up later can neither record a second outcome nor end a notification twice. A record also carries those before it
// when they were at hand, so that a history is read at once (see notification.Record.Follow); nothing is decided by
// the records it carries.
//
// # Crashes
//
// The broker hands a notification to another dispatcher when this one is silent about it for bus.AckWait; it is kept
// until it is settled, however long its attempt takes (see bus.Hold). A dispatcher that was silent for so long, because
// it was frozen or cut off, makes no request for the notifications that it held. At most mostUnrecorded attempts are
// answered and not recorded at any time: a crash repeats those (see unrecorded).
//
// decide.go holds a notification's whole way; admit.go the one gate before an attempt; settle.go the writes and their
// failures; record.go the journal record and the log line; limiter.go the slots; pace.go the
// moments of URLs with a limit per minute; unrecorded.go the attempts that the journal does not know yet; drain.go the
// way out of PARKED.
//
// # Isolation
//
// A dispatcher asks the broker for no more than it has free places, and a place is held only by a request
// in flight, a move (a millisecond), or a short wait in memory that the URL's own speed justifies (see
// limiter). Everything else is parked. This wait is the one departure from "sent at once or moved at once":
// without it a burst to a fast receiver took a detour over PARKED for every notification beyond its limit.
// Retries are not exposed to it more than others, because a delivery that a crash burns is put right from
// the journal.
package dispatcher
