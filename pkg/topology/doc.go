// Package topology names the parts of the broker that Gancho uses and says how each is configured: streams, buckets,
// durable consumers, subjects and headers.
//
// Each stream and bucket has one Owner, the service that creates it. The owner's limits come from the operator; see
// Limits. A notification has one subject in NOTIFICATIONS, ATTEMPTS and FAILED, so its last record is one direct read
// and a write on top of that record is one compare-and-set. This costs the broker about 0.28 KB of memory for each
// notification it keeps (measured with 300,000) and no speed.
package topology
