// Package books accounts for every notification: each send that was opened has ended, or a message still carries it.
// A send with neither an end nor a message has been lost, and is found, counted and named.
//
// # The ledger
//
// A send is opened by its message on NOTIFICATIONS, and its journal records on ATTEMPTS give its state. The ledger
// reads the headers of both streams in order, each message once, and holds the open sends only (134 bytes each,
// measured with a million); of those that ended it keeps counts. It reads NOTIFICATIONS up to its end before it reads
// the journal up to where that ended earlier, so the opening of a send always comes before its records. A record of an
// unknown send opens it: the message was removed before it was read.
//
// So matched = delivered + permanently_failed + cancelled + pending + retrying + parked + unaccounted holds
// by construction, and the question is which of the open ones are real.
//
// # The audit
//
// An open send is real while one message carries it. Whoever moves one stores it at its new place before it
// settles the old one, so looking in the order of the way finds every live one:
//
//   - on NOTIFICATIONS: its sequence is above those that the dispatchers have settled without gaps;
//   - on PARKED: the broker counts the messages of each webhook;
//   - on RETRIES: every message, scheduled or due, has the notification's id in its subject.
//
// After that the ledger reads on, so that sends that ended in between are closed. Sends that changed in the last few
// seconds are left for the next audit. Of the rest, those of a webhook that are neither on NOTIFICATIONS nor on RETRIES
// must be on PARKED; if there are fewer messages than that, PARKED is searched for their ids. A missing send is
// compared with its newest journal record (an event that came again after the duplicate window opens a send that had
// ended: it is counted as a duplicate), and is unaccounted when two audits in a row miss it. A send without any record,
// opened before the oldest record that its account still has, may have had one: where records were removed from the
// journal before the books read them, such a send has ended and counts as unread. It is never taken for one that was
// not sent. With the default period that takes less than a minute.
//
// Counting alone would not do: between two messages that were moved and not yet settled, one that is lost
// does not show.
//
// # Restarts
//
// One process at a time keeps the books, under a lease. It stores a checkpoint (both positions, the counts,
// the open sends) in the bucket BOOKS, and the next process reads on from there, so no restart
// loses a count. A process that was frozen and wakes up cannot store over a newer checkpoint. Without one,
// or with a broken one, the books start again from the present content of the streams. When no one kept the books
// for longer than the duplicate window, messages may be gone from NOTIFICATIONS; those that have records are
// known from them, and how many have none is shown as unread: late duplicates, or lost.
package books
