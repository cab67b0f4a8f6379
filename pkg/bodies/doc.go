// Package bodies stores the bytes of a large event once, on the stream BODIES, however many webhooks it is for. The
// event's notifications carry a notification.Reference instead, wherever they move.
//
// # Storing
//
// The publisher stores the body before the first notification that refers to it (Store), on a subject of its own. Where
// an answer is lost the broker recognises the repetition. An event that comes again later stores its body again, and
// either copy will do. Where BODIES has no room, the account has its share of it, or the broker does not answer in
// time, the notifications carry the body themselves, as those of small events do: a full BODIES holds up nothing.
//
// # Reading
//
// Fetch checks the bytes against the reference's length and SHA-256. It takes them from BODIES, or else from the event
// in CRM_EVENTS. A body that is in neither is ErrGone: it was erased, or the streams were purged. After any other error
// the notification comes again, and no attempt is used up.
//
// # Removing
//
// BODIES has no age, because no time is long enough: a disabled webhook's notifications are parked for as long as it is
// disabled, and a stopped dispatcher leaves them where they are. A publisher removes what nothing refers to (Sweeper).
// It looks through the accounts that have a body, and only those: at their messages on NOTIFICATIONS that are not
// settled, and all on RETRIES, PARKED and FAILED.
//
// A message is stored at its next place before it leaves the one before. A notification can therefore hide from one
// look by moving from a place that was not looked at yet to one that was. A body is removed only after two looks in a
// row, minutes apart, found no reference to it. It is removed by its sequence: an event that stores it again meanwhile
// has a copy of its own, which is younger than the first of the looks. Who takes a reference from a place that the
// sweeper does not look at, such as a settled message on NOTIFICATIONS, uses Inline.
package bodies
