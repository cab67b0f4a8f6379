// Package index finds the recent notifications of a webhook, newest first. JetStream can read neither
// backwards nor by webhook, so Redis holds, for each webhook, its notifications and the fields that a list shows
// of them: ids, times, states, statuses, journal sequences, never what events or answers hold. Everything else
// comes from the journal.
//
// The rows are here because each record that is read at random costs the broker 3 to 4 ms of its processor:
// it loads a block of 8 MiB. A page of 25 took 15 ms, one of 200 took 100 to 800, with 1,000,000 records.
//
// Lists over an account come from postings: a line of 60 bytes for each record and of 44 for each event, appended to
// strings in Redis (see posting). A process that is asked about an account reads its postings into memory, and only
// the postings appended since at the next question (see view); any combination of filters is then a look at each entry,
// a few ms for a million.
//
// # Keys
//
//	gancho:log:<webhook>        sorted set: notification id (16 bytes) by 8 x the time it was first seen (ms) + state
//	gancho:log:<webhook>:rows   hash: the same ids; a row begins with its rank, 8 x sequence of the newest
//	                            record + state, in hexadecimal
//	gancho:log:<webhook>:fates  sorted set: those of the same ids that were not delivered, by the time they were
//	                            first seen (ms); 2^43 is added while they have not failed
//	gancho:log:failures:<account>
//	                            sorted set: permanent failures (notification and webhook id, 32 bytes) by their
//	                            rank; its state says whether it was sent again
//	gancho:log:webhooks         sorted set: webhooks, and failures:<account>, by their last entry's time
//	gancho:log:n:<account>:<block>, gancho:log:e:<account>:<block>
//	                            strings: postings of notifications and of events, by 65,536 sequences of the stream
//	gancho:log:n:<account>      sorted set: the account's blocks; likewise gancho:log:e:<account>
//	gancho:log:n:accounts       sorted set: accounts by their newest block
//	gancho:log:n:low            hash: up to which block an account's postings were dropped
//	gancho:log:generation       names one life of the postings, see update
//	gancho:log:e:floor, gancho:log:e:target, gancho:log:e:seen
//	                            as below, of the events
//	gancho:log:delivered        sorted set: webhooks by the time of their last delivery (ms)
//	gancho:log:floor3           everything in the journal from this sequence on is in the index
//	gancho:log:target           and needs to be from this one on
//	gancho:log:seen             sorted set: processes by the newest sequence each has written
//
// # Order and repetition do not matter
//
// A time only ever falls, a rank only ever rises (one script writes both). Records may therefore be written
// twice, out of order, and by several processes at once: the result is the same. That is why replicas can
// share the work, and why the past can be read backwards. One exception: read backwards, a failure that was
// sent again since comes back into its account's set; the journal then says so, and it is not shown.
//
// # Losses and recovery
//
// Nothing that matters: a Redis that is down, empty or behind is filled again from the journal, newest first,
// in chunks; lists say "partial" until then. One replica does it (a lock in Redis); when it dies, another goes
// on where it was. At most rebuildRecords and rebuildEvents are read back. Older ones, and those dropped for
// want of room, are looked for in the streams when they are asked for.
//
// # Size
//
// At most perWebhook notifications of a webhook, perAccount failures of an account, and a bound over all (see
// Config): the webhooks that were quiet longest are dropped first. Of postings the oldest go first. What an account has
// above a fifth of either goes before others'. Redis also holds the suspensions, so the index must not fill it.
// Measured with Redis 7.0: 278 bytes an entry in sets of 1,000, 195 in sets of 100; of those that were not delivered
// 398 and 227. Feeding costs 17 to 24 µs a record, decoding it included (BenchmarkFeed; 100 and 2,000 webhooks in a
// batch of 2,000).
package index
