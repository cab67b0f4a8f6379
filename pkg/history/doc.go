// Package history keeps one account's records from pushing out those of others, in the streams ATTEMPTS and FAILED.
//
// At its limit the broker drops the oldest message of a stream, whosever it is. Before that, the keeper removes the
// oldest records of the accounts that hold more than their share: above nine tenths of the limit, those that are the
// furthest above their share first, until the stream is down to 85 % of it or none of them is above its share. An
// account gives up an eighth of its share more than it has to, so that removing is seldom; it never gives up more. It
// writes on as before: nothing of it is deferred or refused.
//
// # What is guaranteed
//
// An account within its share loses nothing to one above it, as long as all of those within hold together at most nine
// tenths of the limit less the shares of those above, and no more than a tenth of the limit is written between two
// looks. Where they hold more, or more is written, the loss ends there: they keep the limit less those shares and what
// is written between two looks, however long and however fast the others write (TestOthersKeepTheirs). What accounts
// within their shares hold together above the limit ages out as always, the oldest of all of them first.
//
// # Retention
//
// Once a minute, the records of an account that are older than its operator wants (share.Settings) are removed.
// Dispatchers and books read a notification whose records are gone as one that was not attempted yet.
//
// # The counts
//
// While a stream holds less than three quarters of its limit, its size is all that is looked at, once a second. Above
// that the headers of all its messages are read once, then those that come. A count needs five bytes of memory a
// record.
//
// # Removing
//
// The broker removes by subject and number to keep: purging a thousand of an account's records costs it about as much
// as deleting a hundred of them one by one, but the stream takes no message meanwhile. So each purge removes as many as
// take about a tenth of a second, and the stream is left alone for as long in between. Removing twice does no harm: the
// second time there is nothing to remove.
package history
