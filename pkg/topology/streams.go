package topology

import (
	"cmp"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/event"
)

// Owner is a service that creates streams and buckets.
type Owner string

// The owners.
const (
	Publisher  Owner = "publisher"
	Dispatcher Owner = "dispatcher"
	Monitor    Owner = "suspension-monitor"
	Management Owner = "management"
)

// Owners returns all owners, in the order in which notifications pass through their streams.
func Owners() []Owner { return []Owner{Publisher, Dispatcher, Monitor, Management} }

// LeaseTTL is how long a key of the bucket LEASES lives unless it is renewed: work whose process died goes on within 5
// s.
const LeaseTTL = 4 * time.Second

// pacesMaxAge is how long a key of the bucket PACES is kept: much longer than a minute, after which it means nothing.
const pacesMaxAge = 5 * time.Minute

// InBatches reports whether the stream takes atomic batches.
func InBatches(stream string) bool {
	return stream == Notifications || stream == Attempts || stream == Parked || stream == Held
}

// Streams returns the configuration of the owner's streams.
//
// NOTIFICATIONS keeps by limits, not as a work queue: under sync_interval always an ack then syncs nothing
// (85,000 instead of 2,700 acks/s measured), message ids survive a broker restart, and the log can read it.
// Its owner purges messages that are acknowledged and older than the duplicate window. BODIES has no age either: its
// owner removes what nothing refers to. RETRIES holds schedules, which forbid Discard New, so it has no size limit
// unless the broker demands one: Discard Old would lose messages.
func (o Owner) Streams(l Limits) []jetstream.StreamConfig {
	window := min(l.DuplicateWindow, l.EventsMaxAge, l.LogMaxAge)
	limits := func(name string, age time.Duration, subjects ...string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: name, Description: Description(name), Subjects: subjects, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
			MaxAge: age, MaxBytes: l.MaxBytes(name), Discard: jetstream.DiscardOld, Replicas: l.Replicas, AllowDirect: l.direct(),
			Duplicates: min(window, cmp.Or(age, window)), AllowAtomicPublish: InBatches(name),
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
		events.MaxMsgSize = int32(l.EventMaxBytes + event.Headroom) //nolint:gosec // EVENT_MAX_BYTES is at most 64 MiB
		events.Discard = jetstream.DiscardNew
		notifications := limits(Notifications, 0, "gancho.notifications.*.*")
		notifications.Discard = jetstream.DiscardNew
		bodies := limits(Bodies, 0, SubjectBody("*", "*", "*", "*"))
		bodies.Discard = jetstream.DiscardNew
		return []jetstream.StreamConfig{
			events, notifications,
			limits(Rejected, 30*24*time.Hour, "gancho.rejected.*"),
			limits(Quarantine, 30*24*time.Hour, "gancho.quarantine.>"),
			limits(Held, 48*time.Hour, SubjectsHeld("*")),
			bodies,
		}
	case Dispatcher:
		retries := work(Retries, "gancho.retries.at.*.*", "gancho.retries.due.*.*.*")
		retries.AllowMsgSchedules, retries.AllowRollup, retries.MaxBytes = true, true, l.retriesStreamMaxBytes()
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
			limits(WebhookStatus, min(l.LogMaxAge, 30*24*time.Hour), "gancho.webhooks.*.*.*", "gancho.accounts.*.*"),
			limits(Commands, 24*time.Hour, "gancho.suspensions.*.*"),
		}
	case Management:
		audit := limits(Audit, auditMaxAge, SubjectAudit("*"))
		audit.MaxMsgsPerSubject = auditPerAccount
		return []jetstream.StreamConfig{
			audit,
			limits(Numbers, 48*time.Hour, SubjectNumbers),
			limits(Usage, 400*24*time.Hour, SubjectUsageMark, SubjectUsage("*")),
		}
	}
	return nil
}

// Buckets returns the configuration of the streams of the owner's buckets: what nats.go makes of a key-value
// bucket, but for direct.
func (o Owner) Buckets(l Limits) []jetstream.StreamConfig {
	kv := func(name, what string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: BucketPrefix + name, Description: what, Subjects: []string{"$KV." + name + ".>"}, MaxMsgsPerSubject: 1,
			Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, Duplicates: 2 * time.Minute, Replicas: l.Replicas,
			AllowRollup: true, DenyDelete: true, AllowDirect: l.direct(), MaxBytes: l.bucketMaxBytes(),
		}
	}
	switch o {
	case Dispatcher:
		leases := kv(BucketLeases, "which dispatcher drains a URL's parked notifications")
		leases.MaxAge, leases.Duplicates = LeaseTTL, LeaseTTL
		latest := kv(BucketLatest, "the latest event of each document that was delivered, for webhooks that skip stale notifications")
		latest.MaxAge, latest.Discard, latest.MaxBytes = l.LogMaxAge, jetstream.DiscardOld, l.MaxBytes(BucketPrefix+BucketLatest)
		paces := kv(BucketPaces, "up to when the requests of each URL with a limit per minute are planned")
		paces.MaxAge, paces.MaxBytes = pacesMaxAge, l.pacesMaxBytes()
		return []jetstream.StreamConfig{leases, latest, paces}
	case Monitor:
		return []jetstream.StreamConfig{
			kv(BucketSuspensions, "suspended URLs, as dispatchers see them"),
			kv(BucketBooks, "what became of every notification: the books and their latest report"),
		}
	case Management:
		ended := kv(BucketEndedSessions, "sessions of the console that were ended before their time")
		ended.MaxAge, ended.AllowRollup = EndedSessionsMaxAge, false
		webhooks := kv(BucketWebhooks, "registered webhooks")
		webhooks.AllowRollup, webhooks.MaxMsgsPerSubject = false, WebhooksHistory
		webhooks.Metadata = map[string]string{RecordsKey: RecordsAuthenticated}
		answers := kv(BucketIdempotency, "answers to requests with an Idempotency-Key, sealed")
		answers.MaxAge = 24 * time.Hour
		return []jetstream.StreamConfig{
			answers,
			ended,
			webhooks,
			kv(BucketClaims, "which webhook has an account's event name and URL"),
			kv(BucketReplays, "replay jobs"),
			kv(BucketAccounts, "what operators set for accounts"),
			kv(BucketNotices, "notices to owners about their webhooks' troubles"),
			kv(BucketErasures, "jobs that erase events"),
		}
	case Publisher:
		return []jetstream.StreamConfig{kv(BucketShares, "what accounts hold of the stores, and whose events are deferred")}
	}
	return nil
}

// Streams returns the names of all streams, owner by owner.
func Streams() []string {
	var all []string
	for _, o := range Owners() {
		for _, cfg := range o.Streams(Limits{}) {
			all = append(all, cfg.Name)
		}
	}
	return all
}

// Durable is a durable consumer and its stream.
type Durable struct{ Stream, Name string }

// Durables returns all durable consumers except the drains of PARKED, which come and go.
func Durables() []Durable {
	return []Durable{
		{Events, ConsumerPublisher},
		{Events, ConsumerIndexEvents},
		{Notifications, ConsumerFirst},
		{Notifications, ConsumerIndexPending},
		{Retries, ConsumerRetries},
		{MaxDeliveries, ConsumerMaxDeliveries},
		{Attempts, ConsumerMonitor},
		{Attempts, ConsumerIndex},
		{Commands, ConsumerCommands},
		{WebhookStatus, ConsumerNotices},
	}
}

// Backup returns the streams of a complete backup, those of buckets included, in the order in which to copy them.
//
// The order follows the messages: while everything runs, a copy finds a message at its old place, its new one, or both.
// The services recognise a message that comes twice. BODIES comes after all that refers to it. The books come first
// because they read on from their position and so find messages that moved backwards. Leases and paces are left out:
// they expire within seconds and minutes.
func Backup() []string {
	all := []string{
		BucketPrefix + BucketBooks, Events, Notifications, Parked, Retries, Attempts, Failed, Bodies, Rejected, Quarantine,
		MaxDeliveries, WebhookStatus, Commands, Audit, Held, Numbers, Usage,
	}
	for _, o := range Owners() {
		for _, kv := range o.Buckets(Limits{}) {
			if name := kv.Name; name != BucketPrefix+BucketLeases && name != BucketPrefix+BucketPaces && name != BucketPrefix+BucketBooks {
				all = append(all, name)
			}
		}
	}
	return all
}
