// Package share keeps one account from filling a store that all accounts use.
//
// Each account may hold a part of every store of work, ACCOUNT_SHARE of its limit, while other accounts exist. An
// account that is alone may hold all but a tenth, which stays free for the next one to come. A store without a limit
// has no shares. One event of an account is always admitted when the account holds nothing, however large it is, so
// every account makes progress.
//
// # The counts
//
// A notification is in one of NOTIFICATIONS, RETRIES and PARKED at a time and can move between them, so an account's
// work in all three together is held to its share of the smallest. Admitted work therefore finds room wherever it
// moves, and no delivery of an account waits for room because of the account itself. Acknowledged messages stay on
// NOTIFICATIONS until everything before them is acknowledged; the Meter counts those that it stored as well, against
// the share of NOTIFICATIONS alone. CRM_EVENTS keeps events for days and is counted by itself.
//
// # Where the counts come from
//
// The books (gancho/pkg/books) read the headers of NOTIFICATIONS and of the journal anyway and know every open
// notification, across restarts. Their keeper writes the largest accounts' open bytes into the bucket SHARES once a
// second, with the position of NOTIFICATIONS up to which they hold (Work). One publisher does the same for CRM_EVENTS
// (Kept). Every process adds its own bytes stored behind that position (Meter). So a count costs no message beyond
// those that the books read, is exact in a single process, and in several lags by the bytes that the others stored
// within a second.
//
// Counters of the processes that store and settle were the alternative. They would have to survive a crash of each of
// them and be summed over all, while the books already do both.
//
// When the books fall silent, work counts as ended once the dispatchers acknowledged it on NOTIFICATIONS, and the count
// of an account never exceeds the bytes in all stores together: a count that is too high corrects itself as the stores
// drain, so no account waits forever.
//
// # Being deferred
//
// An account over its share is deferred: its events are acknowledged on the publishers' shared consumer and stay in
// CRM_EVENTS, and a Deferral remembers where it stopped. One publisher goes on from there, oldest first, as room comes.
package share
