// Package bus is the engine on NATS JetStream that all services share: the connection, publishing that waits for the
// broker's acknowledgement, consumers that never hold more than they asked for, buckets, leases, reading, backups, and
// the watch over streams and settings. It knows nothing of webhooks: the packages journal, lane, eventstream, registry
// and suspension/... give its messages their meaning, and topology their names.
//
// Guarantees:
//
//   - A publish returns nil only after the broker stored the message. Without a connection it repeats until the context
//     ends; the message id (or the expected sequence) makes the repetition harmless.
//   - A message is acknowledged only by its handler. When a process dies, the broker delivers its messages again after
//     the consumer's ack wait.
//   - Streams and consumers are created by their owner when they are missing, and never changed in a way that loses
//     data. All others wait for them, so services start in any order.
//   - The client reconnects for ever.
//
// A message goes to the broker at once and alone; messages that have to wait for a broker that syncs each to disk go in
// atomic batches: see writer.
package bus
