// Package bus is how the services talk: all names of streams, subjects, consumers and buckets, publishing
// that waits for the broker's acknowledgement, and consuming that never holds more than was asked for. It
// is the only package that knows NATS.
//
// What it guarantees:
//
//   - A publish returns nil only after the broker stored the message. While the broker is away it is tried
//     again until the context ends; the message id (or the expected sequence) makes the repetition harmless.
//   - A message is acknowledged only by its handler. A process that dies leaves it to be delivered again
//     after the consumer's ack wait.
//   - Streams and consumers are created by their owner when they are missing and never changed in a way
//     that loses data. Everyone else waits for them, so services start in any order.
//   - A connection is never given up: the client reconnects for ever.
//
// Messages go to the broker at once and alone, and in atomic batches where it syncs each to disk and they would
// wait for that: see writer.
//
// One notification has one subject in NOTIFICATIONS, ATTEMPTS and FAILED, so its last record is one direct
// read and writing on top of it is one compare-and-set. That costs the broker about 0.28 KB of memory for
// each notification kept (measured with 300,000) and no speed.
package bus
