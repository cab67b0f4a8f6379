// Package index finds the recent notifications of a webhook, newest first. JetStream can read neither
// backwards nor by webhook, so Redis holds, for each webhook, which notifications it had: ids, times and
// journal sequences, never contents. What a notification is about and in which state it is comes from the
// journal.
//
// # Keys
//
//	gancho:log:<webhook>        sorted set: notification id (16 bytes) by the time it was first seen (ms)
//	gancho:log:<webhook>:last   sorted set: the same ids by 8 x sequence of the newest record + state
//	gancho:log:webhooks         sorted set: webhooks by their last entry's time
//	gancho:log:floor            everything in the journal from this sequence on is in the index
//	gancho:log:target           and needs to be from this one on
//	gancho:log:seen             the newest sequence that is in the index
//
// # Order and repetition do not matter
//
// A time only ever falls (ZADD LT), a sequence only ever rises (ZADD GT). Records may therefore be written
// twice, out of order, and by several processes at once: the result is the same. That is why replicas can
// share the work, and why the past can be read backwards.
//
// # What is lost and how it comes back
//
// Nothing that matters: a Redis that is away, empty or behind is filled again from the journal, newest first,
// in chunks; lists say "partial" meanwhile. One replica does it (a lock in Redis); when it dies, another goes
// on where it was. At most rebuildRecords are read back: what is older than that and has not been touched
// since is not listed any more, though still to be found by its id.
//
// # Size
//
// At most perWebhook notifications of a webhook, and a bound over all (see Config): the webhooks that were
// quiet longest are dropped first. Redis also holds the suspensions, so the index must not fill it.
// Measured with Redis 7.0: 253 bytes an entry in sets of 1,000, 59 in sets of 100. Feeding costs 17 to 24 µs a
// record, decoding it included (BenchmarkFeed; 100 and 2,000 webhooks in a batch of 2,000).
package index
