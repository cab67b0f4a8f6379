// Package suspension decides which destination URLs are set aside because they
// always fail, and keeps that decision in Redis.
//
// # The rule
//
// The unit is a Key: one account and one normalised URL. A URL fulfils the rule
// when, within the sliding Rules.Window, it had at least Rules.MinFailures
// failures and no success, with at least Rules.MinSpan between the first and
// the last of them. One success empties the window. At half of MinFailures the
// URL is at risk: a warning goes out once until the window has been empty again,
// with the time at which the URL will be suspended if it fails on at this rate.
//
//	active    -> suspended   the rule is fulfilled, or by hand
//	suspended -> probing     Flag.Until has come and a dispatcher makes a probe
//	probing   -> suspended   the probe failed: a new Trip, twice as long
//	probing   -> active      the probe succeeded: resumed
//	any       -> active      resumed by hand, or the webhook was changed
//
// A URL that fulfils the rule is watched for Rules.Settle (1s to 5s) and then
// suspended if it still does. The pause is there for the guard: while at least
// 20 URLs and more than 5 % of those active in the last 15 minutes fulfil the
// rule, nothing is suspended automatically, since the fault is probably on our
// side. Without it the first 19 of a mass failure would be suspended before the
// twentieth is seen. Those suspended in the last 15 minutes count too, until
// they work again.
//
// # How long
//
// The first suspension lasts Rules.Duration, and each failed probe doubles
// that, up to Rules.MaxDuration; every length varies by 10 % and never exceeds
// the maximum. Flag.Trips counts. After a successful probe the count is
// remembered and shrinks by one for each spell without a suspension that is as
// long as the last one was (without its jitter). So a URL that is suspended
// again at once goes on where it was, and one that behaved starts afresh.
// A resume by hand forgets the count.
//
// After a resume there is a grace period without a setting of its own: the
// window starts empty; failures that ended before the resume, or that the
// journal holds before the probe's record, do not count; so it takes
// MinFailures new failures over MinSpan to suspend the URL again. With MinSpan
// at its default of a minute a flapping receiver cannot change state more than
// once a minute, and one that succeeds now and then is never suspended.
//
// A suspension by hand has no end: no probe is made and only Resume ends it.
//
// # Results that come twice, late or out of order
//
// Observations carry their journal sequence. A window remembers the highest
// one of a failure and of a success, so a batch that is processed again counts
// nothing again. The price: of two monitors that hold batches with failures of
// one URL, the one with the older batch counts nothing if it comes second. The
// error is always on the side of fewer suspensions. A success empties the
// window even if the journal holds later failures that were counted before it.
//
// A success of a URL without a window leaves no trace, as healthy URLs must
// cost nothing, unless it is more than 5 seconds old: then monitors are behind,
// and failures from before it may still come.
//
// A probe's result counts only for the trip it names. When a trip ends, its
// name ends with it.
//
// # Who decides
//
// A machine, written in Go and free of clocks and sockets, makes every step of
// a URL; Redis holds its state. The Store reads the state of many URLs in one
// round trip, lets their machines decide, and writes the results in another: a
// short script sets a URL's window and suspension together if both are still as
// they were read. If not, it returns them, and the machine decides again. So
// every step happens once, with any number of monitors.
//
// # The guard counts accounts
//
// No account counts for more than half of the failing or of the active URLs,
// rounded up. So the dead URLs of one customer are suspended and stop no other
// suspension, however many they are.
//
// # What survives
//
// Losing Redis loses the windows (rebuilt from the next failures), the past of
// resumed URLs, and the flags, which come back from their copies in the bucket
// SUSPENSIONS by Restore. Store.Lost, Beat and ErrLost report the loss. While
// Redis is down nothing can be suspended or resumed, and every method returns
// an error within about a second.
//
// Redis can also come back with a state that is a second old. Beat reports
// that by ErrStale, and Reconcile lets the newer of two records win: flags are
// ordered by their time and trips, and a flag carries the revision of the
// bucket's entry that was known when it was decided, so a later deletion wins
// over it. A flag that is only missing in Redis is not resumed.
//
// A warning is published by the call that made it and not stored, so a crash at
// that moment can lose it. Suspensions and resumes are not lost: the monitor
// compares its copies with Store.All when it starts.
//
// # Size and speed
//
// Measured with Redis 7.0 and go-redis 9.23 on two cores shared by both:
//
//   - A URL with one failure takes 200 bytes, a window with every bucket in use
//     376 (MEMORY USAGE, account of 18 characters), a suspended URL 440 and its
//     window 152. A healthy one takes nothing but its share of two HyperLogLogs.
//   - BenchmarkMonitors, 10,000 URLs in batches of 500: with 5 % of them failing
//     1.4 µs of processor time a result in Redis and 4.1 in the monitor, with
//     all failing 11.4 and 17.0; 170,000 and 38,000 results/s. Scripts that
//     decide in Redis took 1.7 and 3.7, and 18.6 and 10.6; 227,000 and 39,000
//     results/s. At 5,000 results/s a monitor and Redis take 3 to 14 % of a core
//     either way, and the part that all monitors share is a third smaller.
//   - With three monitors on the same URLs, 1.7 and 4.3 µs, and 13.5 and 17.5
//     when all fail; 174,000 and 35,000 results/s together. Scripts that decide
//     in Redis reached 327,000 and 55,000: throughput alone speaks for them.
//
// The window is one JSON string rather than a hash of buckets: it is read and
// written whole, it is smaller, and earlier versions read it.
package suspension
