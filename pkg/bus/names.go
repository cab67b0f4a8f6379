package bus

import (
	"cmp"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Streams.
const (
	Events        = "CRM_EVENTS"
	Rejected      = "REJECTED_EVENTS"
	Notifications = "NOTIFICATIONS"
	Retries       = "RETRIES"
	Parked        = "PARKED"
	Attempts      = "ATTEMPTS"
	Failed        = "FAILED"
	Quarantine    = "QUARANTINE"
	MaxDeliveries = "MAX_DELIVERIES"
	WebhookStatus = "WEBHOOK_STATUS"
	Commands      = "SUSPENSION_COMMANDS"
)

// inBatches are the streams whose messages may be stored in atomic batches.
var inBatches = []string{Notifications, Attempts, Parked}

// Buckets.
const (
	BucketWebhooks    = "WEBHOOKS"
	BucketSuspensions = "SUSPENSIONS"
	BucketLeases      = "LEASES"
	BucketReplays     = "REPLAYS"
	BucketBooks       = "BOOKS"
)

// Durable consumers.
const (
	ConsumerPublisher     = "publisher"            // on CRM_EVENTS
	ConsumerFirst         = "dispatcher"           // on NOTIFICATIONS: first attempts
	ConsumerRetries       = "dispatcher-retries"   // on RETRIES
	ConsumerMaxDeliveries = "dispatcher-exhausted" // on MAX_DELIVERIES
	ConsumerMonitor       = "suspension-monitor"   // on ATTEMPTS
	ConsumerCommands      = "suspension-commands"  // on SUSPENSION_COMMANDS
	ConsumerIndex         = "management-index"     // on ATTEMPTS
	ConsumerIndexPending  = "management-pending"   // on NOTIFICATIONS
)

// Headers of our messages. Header names are written as they stand here; the broker keeps their case.
const (
	headerSchema       = "Gancho-Schema"
	headerAccount      = "Gancho-Account"
	headerEventName    = "Gancho-Event-Name"
	headerEventID      = "Gancho-Event-Id"
	headerEventSeq     = "Gancho-Event-Sequence"
	headerEventTime    = "Gancho-Event-Time"
	headerWebhookID    = "Gancho-Webhook-Id"
	headerNotification = "Gancho-Notification-Id"
	headerSend         = "Gancho-Send"
	headerAttemptsDone = "Gancho-Attempts-Done"
	headerHop          = "Gancho-Hop"
	headerJournal      = "Gancho-Journal"
	headerReplay       = "Gancho-Replay"
	headerTraceparent  = "traceparent"
	headerWaited       = "Gancho-Waited" // how often it waited for a newer version

	headerReason  = "Gancho-Reason"
	headerSubject = "Gancho-Subject"
)

// EventHeadroom is how much larger than EVENT_MAX_BYTES a stored event may be for its headers: the broker
// counts both together, and an event of exactly the limit must pass with the longest Nats-Msg-Id that is
// recommended, a traceparent and the headers of CloudEvents.
const EventHeadroom = 1 << 10

// BrokerHeadroom is by how much the broker's max_payload must exceed EVENT_MAX_BYTES for our headers.
const BrokerHeadroom = 64 << 10

// Limits are what operators can set of the streams. Ages must be the same in every service that has them.
type Limits struct {
	// Replicas of every stream: 1 on a single broker, 3 in a cluster.
	Replicas int `env:"STREAM_REPLICAS" envDefault:"1" oneof:"1 3 5" range:"1..5"`
	// EventMaxBytes is the largest event. The broker's max_payload must exceed it by 64 KiB.
	EventMaxBytes int `env:"EVENT_MAX_BYTES" envDefault:"1048576" range:"1024..67108864"`
	// EventsMaxAge is how long events are kept; it bounds how far back a replay or a resend of a delivered notification can go.
	EventsMaxAge time.Duration `env:"EVENTS_MAX_AGE" envDefault:"168h" range:"1m..8760h"`
	// LogMaxAge is how long attempts, permanent failures and status events are kept.
	LogMaxAge time.Duration `env:"LOG_MAX_AGE" envDefault:"720h" range:"1m..8760h"`
	// DuplicateWindow is how long the same event published again is recognised.
	DuplicateWindow time.Duration `env:"DUPLICATE_WINDOW" envDefault:"10m" range:"1s..24h"`
	// StoreMaxBytes is how much disk the streams may take together on each server; each gets a share of it as its limit. 0: what the broker grants the account, divided by STREAM_REPLICAS; no limit where it names none.
	StoreMaxBytes int64 `env:"STORE_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// EventsMaxBytes limits CRM_EVENTS; above it the CRM is refused. 0: 30 % of STORE_MAX_BYTES.
	EventsMaxBytes int64 `env:"EVENTS_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// NotificationsMaxBytes limits NOTIFICATIONS; above it events wait in CRM_EVENTS. 0: 15 % of STORE_MAX_BYTES.
	NotificationsMaxBytes int64 `env:"NOTIFICATIONS_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// RetriesMaxBytes is how large RETRIES may grow before no first attempts are made until it shrank; the stream itself has no limit. 0: 15 % of STORE_MAX_BYTES.
	RetriesMaxBytes int64 `env:"RETRIES_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// ParkedMaxBytes limits PARKED; above it what should be parked stays where it is. 0: 15 % of STORE_MAX_BYTES.
	ParkedMaxBytes int64 `env:"PARKED_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// AttemptsMaxBytes limits ATTEMPTS, the journal; above it the oldest records go before LOG_MAX_AGE. 0: 15 % of STORE_MAX_BYTES.
	AttemptsMaxBytes int64 `env:"ATTEMPTS_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
	// FailedMaxBytes limits FAILED; above it the oldest payloads go before LOG_MAX_AGE. 0: 5 % of STORE_MAX_BYTES.
	FailedMaxBytes int64 `env:"FAILED_MAX_BYTES" envDefault:"0" range:"0..1000000000000000"`
}

// maxBytes returns a stream's limit, 0 for none. What is not named has 1 % of the disk.
func (l Limits) maxBytes(stream string) int64 {
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
	}
	return cmp.Or(given, l.StoreMaxBytes/100*share)
}

// direct reports whether any server that holds a stream may answer reads. Of several, one that lags behind
// would: it says "not found" of a webhook or a record that the leader has acknowledged, and a notification
// would be cancelled for a webhook that is there. Then the leader alone answers.
func (l Limits) direct() bool { return l.Replicas <= 1 }

// Owner is a service that creates streams and buckets.
type Owner string

// The owners.
const (
	Publisher  Owner = "publisher"
	Dispatcher Owner = "dispatcher"
	Monitor    Owner = "suspension-monitor"
	Management Owner = "management"
)

// Streams returns the configuration of the owner's streams.
//
// NOTIFICATIONS keeps by limits, not as a work queue: under sync_interval always an ack then syncs nothing
// (85,000 instead of 2,700 acks/s measured), message ids survive a broker restart, and the log can read it.
// Its owner purges what is acknowledged and older than the duplicate window. RETRIES holds schedules, which
// forbid Discard New, so it has no size limit: Discard Old would lose messages.
func (o Owner) Streams(l Limits) []jetstream.StreamConfig {
	window := min(l.DuplicateWindow, l.EventsMaxAge, l.LogMaxAge)
	limits := func(name string, age time.Duration, subjects ...string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: name, Subjects: subjects, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
			MaxAge: age, MaxBytes: l.maxBytes(name), Discard: jetstream.DiscardOld, Replicas: l.Replicas, AllowDirect: l.direct(),
			Duplicates: min(window, cmp.Or(age, window)), AllowAtomicPublish: slices.Contains(inBatches, name),
		}
	}
	work := func(name string, subjects ...string) jetstream.StreamConfig {
		c := limits(name, 0, subjects...)
		c.Retention = jetstream.WorkQueuePolicy
		return c
	}
	switch o {
	case Publisher:
		events := limits(Events, l.EventsMaxAge, "crm.events.>")
		events.MaxMsgSize = int32(l.EventMaxBytes + EventHeadroom) //nolint:gosec // EVENT_MAX_BYTES is at most 64 MiB
		events.Discard = jetstream.DiscardNew
		notifications := limits(Notifications, 0, "gancho.notifications.*.*")
		notifications.Discard = jetstream.DiscardNew
		return []jetstream.StreamConfig{
			events, notifications,
			limits(Rejected, 30*24*time.Hour, "gancho.rejected.*"),
			limits(Quarantine, 30*24*time.Hour, "gancho.quarantine.>"),
		}
	case Dispatcher:
		retries := work(Retries, "gancho.retries.at.*.*", "gancho.retries.due.*.*.*")
		retries.AllowMsgSchedules, retries.AllowRollup, retries.MaxBytes = true, true, 0
		parked := work(Parked, "gancho.parked.*.*.*")
		parked.Discard = jetstream.DiscardNew
		parked.MaxConsumers = 10_000
		return []jetstream.StreamConfig{
			retries, parked,
			limits(Attempts, l.LogMaxAge, "gancho.attempts.*.*"),
			limits(Failed, l.LogMaxAge, "gancho.failed.*.*.*"),
			limits(MaxDeliveries, 7*24*time.Hour, "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>"),
		}
	case Monitor:
		return []jetstream.StreamConfig{
			limits(WebhookStatus, min(l.LogMaxAge, 30*24*time.Hour), "gancho.webhooks.*.*.*"),
			limits(Commands, 24*time.Hour, "gancho.suspensions.*.*"),
		}
	case Management:
		return nil
	}
	return nil
}

// bucketPrefix before a bucket's name makes the name of its stream.
const bucketPrefix = "KV_"

// Buckets returns the configuration of the streams of the owner's buckets: what nats.go makes of a key-value
// bucket, but for direct.
func (o Owner) Buckets(l Limits) []jetstream.StreamConfig {
	kv := func(name, what string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: bucketPrefix + name, Description: what, Subjects: []string{"$KV." + name + ".>"}, MaxMsgsPerSubject: 1,
			Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, Duplicates: 2 * time.Minute, Replicas: l.Replicas,
			AllowRollup: true, DenyDelete: true, AllowDirect: l.direct(),
		}
	}
	switch o {
	case Dispatcher:
		leases := kv(BucketLeases, "which dispatcher drains a URL's parked notifications")
		leases.MaxAge, leases.Duplicates = LeaseTTL, LeaseTTL
		return []jetstream.StreamConfig{leases}
	case Monitor:
		return []jetstream.StreamConfig{
			kv(BucketSuspensions, "suspended URLs, as dispatchers see them"),
			kv(BucketBooks, "what became of every notification: the books and their latest report"),
		}
	case Management:
		return []jetstream.StreamConfig{
			kv(BucketWebhooks, "registered webhooks"),
			kv(BucketClaims, "which webhook has an account's event name and URL"),
			kv(BucketReplays, "replay jobs"),
		}
	case Publisher:
		return nil
	}
	return nil
}

func subjectNotification(account, id string) string {
	return "gancho.notifications." + account + "." + id
}
func subjectRetryAt(account, id string) string { return "gancho.retries.at." + account + "." + id }
func subjectRetryDue(account, webhook, id string) string {
	return "gancho.retries.due." + account + "." + webhook + "." + id
}
func subjectAttempts(account, id string) string { return "gancho.attempts." + account + "." + id }
func subjectFailed(account, webhook, id string) string {
	return "gancho.failed." + account + "." + webhook + "." + id
}

func subjectParked(account, lane, webhook string) string {
	return "gancho.parked." + account + "." + lane + "." + webhook
}
