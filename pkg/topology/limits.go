package topology

import (
	"cmp"
	"time"
)

// BrokerHeadroom is the number of bytes by which the broker's max_payload must exceed EVENT_MAX_BYTES, for headers.
const BrokerHeadroom = 64 << 10

// Limits are the settings of streams that operators choose. Every service must have the same ages.
type Limits struct {
	// Replicas of every stream: 1 on a single broker, 3 in a cluster.
	Replicas int `env:"STREAM_REPLICAS" envDefault:"1" oneof:"1 3 5" range:"1..5"`
	// EventMaxBytes is the largest event. The broker's max_payload must exceed it by 64 KiB.
	EventMaxBytes int `env:"EVENT_MAX_BYTES" envDefault:"1048576" range:"1024..67108864"`
	// EventsMaxAge is how long events are kept; it bounds how far back a replay or a resend of a delivered notification
	// can go.
	EventsMaxAge time.Duration `env:"EVENTS_MAX_AGE" envDefault:"168h" range:"1m..8760h"`
	// LogMaxAge is how long attempts, permanent failures and status events are kept.
	LogMaxAge time.Duration `env:"LOG_MAX_AGE" envDefault:"720h" range:"1m..8760h"`
	// DuplicateWindow is how long the same event published again is recognised.
	DuplicateWindow time.Duration `env:"DUPLICATE_WINDOW" envDefault:"10m" range:"1s..24h"`
	// StoreMaxBytes is how much disk the streams may take together on each server; each gets a share of it as its
	// limit. 0: the broker's grant to the account, divided by STREAM_REPLICAS; no limit where it grants without one.
	StoreMaxBytes int64 `env:"STORE_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// EventsMaxBytes limits CRM_EVENTS; above it the CRM is refused. 0: 30 % of STORE_MAX_BYTES.
	EventsMaxBytes int64 `env:"EVENTS_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// NotificationsMaxBytes limits NOTIFICATIONS; above it events wait in CRM_EVENTS. 0: 15 % of STORE_MAX_BYTES.
	NotificationsMaxBytes int64 `env:"NOTIFICATIONS_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// RetriesMaxBytes is how large RETRIES may grow before the accounts that hold the most of it make no first attempts
	// until it has shrunk; at twice this size no account does. The stream itself has no limit. 0: 15 % of
	// STORE_MAX_BYTES.
	RetriesMaxBytes int64 `env:"RETRIES_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// ParkedMaxBytes limits PARKED; above it notifications that should be parked move to RETRIES and come back. 0: 15 %
	// of STORE_MAX_BYTES.
	ParkedMaxBytes int64 `env:"PARKED_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// AttemptsMaxBytes limits ATTEMPTS, the journal; above it the oldest records go before LOG_MAX_AGE, those of
	// accounts over ACCOUNT_SHARE first. 0: 15 % of STORE_MAX_BYTES.
	AttemptsMaxBytes int64 `env:"ATTEMPTS_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// FailedMaxBytes limits FAILED; above it the oldest payloads go before LOG_MAX_AGE, those of accounts over
	// ACCOUNT_SHARE first. 0: 5 % of STORE_MAX_BYTES.
	FailedMaxBytes int64 `env:"FAILED_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// BodiesMaxBytes limits BODIES; above it each notification of a large event carries the body itself. 0: 5 % of
	// STORE_MAX_BYTES.
	BodiesMaxBytes int64 `env:"BODIES_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// BucketMaxBytes limits each bucket; above it changes are refused. 0: no limit, or 0.4 % of
	// STORE_MAX_BYTES (PACES half of that) with MAX_BYTES_EVERYWHERE.
	BucketMaxBytes int64 `env:"BUCKET_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// MaxBytesEverywhere gives every bucket and RETRIES a limit too, for hosted brokers that demand one. RETRIES drops
	// its oldest messages at four times RETRIES_MAX_BYTES, far above where it stops growing. CRM_EVENTS then has 16 %,
	// RETRIES_MAX_BYTES 4 % and BODIES 3 % of STORE_MAX_BYTES.
	MaxBytesEverywhere bool `env:"MAX_BYTES_EVERYWHERE" envDefault:"false"`
}

// MaxBytes returns the limit of a stream in bytes, 0 for none. Streams without a share of their own get 1 % of the
// disk.
func (l Limits) MaxBytes(stream string) int64 {
	given, share := int64(0), int64(1)
	switch stream {
	case Events:
		given, share = l.EventsMaxBytes, 30
	case Notifications:
		given, share = l.NotificationsMaxBytes, 15
	case Retries:
		given, share = l.RetriesMaxBytes, 15
	case Parked:
		given, share = l.ParkedMaxBytes, 15
	case Attempts:
		given, share = l.AttemptsMaxBytes, 15
	case Failed:
		given, share = l.FailedMaxBytes, 5
	case Bodies:
		given, share = l.BodiesMaxBytes, 5
	}
	if l.MaxBytesEverywhere { // room for the limits that are there besides
		switch stream {
		case Events:
			share = 16
		case Retries:
			share = 4
		case Bodies:
			share = 3
		}
	}
	return cmp.Or(given, l.StoreMaxBytes/100*share)
}

// retriesStreamMaxBytes is max_bytes of the stream RETRIES. No first attempts are made above half of it, so that only
// notifications in flight and on their way out of PARKED can still come. Should it be reached all the same, the books
// find the dropped retries and restore them from their events.
func (l Limits) retriesStreamMaxBytes() int64 {
	if !l.MaxBytesEverywhere {
		return 0
	}
	return 4 * l.MaxBytes(Retries)
}

// bucketMaxBytes is max_bytes of each bucket.
func (l Limits) bucketMaxBytes() int64 {
	if !l.MaxBytesEverywhere {
		return l.BucketMaxBytes
	}
	return cmp.Or(l.BucketMaxBytes, l.StoreMaxBytes/250)
}

// pacesMaxBytes is max_bytes of the bucket PACES, which holds little for minutes.
func (l Limits) pacesMaxBytes() int64 {
	if l.MaxBytesEverywhere && l.BucketMaxBytes == 0 {
		return l.bucketMaxBytes() / 2
	}
	return l.bucketMaxBytes()
}

// MaxMessage returns the largest size of a message in bytes when events have at most eventMaxBytes.
func MaxMessage(eventMaxBytes int) int { return eventMaxBytes + BrokerHeadroom }

// direct reports whether any server that holds a stream may answer reads. With several replicas a server that lags
// behind would answer "not found" for a webhook or a record that the leader has acknowledged, and its notification
// would be cancelled. Only the leader answers then.
func (l Limits) direct() bool { return l.Replicas <= 1 }
