package topology

import (
	"strconv"
	"time"
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
	Audit         = "AUDIT"
	Held          = "HELD"
	Numbers       = "NUMBERS"
	Usage         = "USAGE"
	Bodies        = "BODIES"
)

// Buckets.
const (
	BucketWebhooks    = "WEBHOOKS"
	BucketSuspensions = "SUSPENSIONS"
	BucketLeases      = "LEASES"
	BucketReplays     = "REPLAYS"
	BucketBooks       = "BOOKS"
	BucketShares      = "SHARES"
	BucketAccounts    = "ACCOUNTS"
	BucketIdempotency = "IDEMPOTENCY"
	// BucketClaims maps an account's event name and URL to the webhook that holds them. Creating a key there keeps two
	// replicas from registering the same webhook twice.
	BucketClaims = "WEBHOOK_CLAIMS"
	// BucketEndedSessions holds the sessions of the console that were ended before their time.
	BucketEndedSessions = "ENDED_SESSIONS"
	// BucketLatest holds the latest event of each document that webhooks got which skip stale notifications.
	BucketLatest = "LATEST"
	// BucketPaces holds, of each URL with a limit per minute, up to when its requests are planned.
	BucketPaces = "PACES"
	// BucketNotices holds the notices about webhooks' troubles that owners got, and those still to be sent.
	BucketNotices = "NOTICES"
	// BucketErasures holds the jobs that erase events.
	BucketErasures = "ERASURES"
)

// WebhooksHistory is how many entries the bucket WEBHOOKS keeps of each key: a process that starts finds the last good
// record behind later ones that are not management's.
const WebhooksHistory = 64

// RecordsKey is where the metadata of the bucket WEBHOOKS say, with RecordsAuthenticated, that all its records are
// authenticated.
const (
	RecordsKey           = "gancho.records"
	RecordsAuthenticated = "authenticated"
)

// auditMaxAge is how long the records of changes are kept.
const auditMaxAge = 400 * 24 * time.Hour

// auditPerAccount is how many of them an account keeps: its own push out its own.
const auditPerAccount = 200_000

// EndedSessionsMaxAge is how long the end of a session is kept: longer than any session lasts.
const EndedSessionsMaxAge = 25 * time.Hour

// BucketPrefix followed by a bucket's name is the name of its stream.
const BucketPrefix = "KV_"

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
	ConsumerIndexEvents   = "management-events"    // on CRM_EVENTS
	ConsumerNotices       = "management-notices"   // on WEBHOOK_STATUS
)

// Headers of messages that are set aside: the reason, and the subject they had.
const (
	HeaderReason  = "Gancho-Reason"
	HeaderSubject = "Gancho-Subject"
)

// Subjects of all messages of a kind.
const (
	SubjectsEvents     = "crm.events.>"
	SubjectNumbers     = "gancho.numbers.slices"
	SubjectUsageMark   = "gancho.usage.mark"
	SubjectsParked     = "gancho.parked.>"
	SubjectsRetriesDue = "gancho.retries.due.>"
)

// SubjectNotification returns the subject of a notification in NOTIFICATIONS.
func SubjectNotification(account, id string) string {
	return "gancho.notifications." + account + "." + id
}

// SubjectRetryAt returns the subject in RETRIES of a notification that waits for its time.
func SubjectRetryAt(account, id string) string { return "gancho.retries.at." + account + "." + id }

// SubjectRetryDue returns the subject in RETRIES of a notification whose time has come.
func SubjectRetryDue(account, webhook, id string) string {
	return "gancho.retries.due." + account + "." + webhook + "." + id
}

// SubjectHeld returns the subject in HELD of a part of the webhooks that an event was held back from. It names the
// event by its place in CRM_EVENTS and holds nothing of its content.
func SubjectHeld(account string, sequence uint64, part int) string {
	return "gancho.held." + account + "." + strconv.FormatUint(sequence, 10) + "." + strconv.Itoa(part)
}

// SubjectsHeld returns the subjects in HELD of an account; "*" stands for all accounts.
func SubjectsHeld(account string) string { return "gancho.held." + account + ".*.*" }

// SubjectBody returns the subject in BODIES of an event's bytes, by their SHA-256 and length; "*" stands for all.
func SubjectBody(account, event, sha256, length string) string {
	return "gancho.bodies." + account + "." + event + "." + sha256 + "." + length
}

// SubjectUsage returns the subject of an account's hours in USAGE.
func SubjectUsage(account string) string { return "gancho.usage.hours." + account }

// SubjectAttempts returns the subject of a notification's journal records in ATTEMPTS.
func SubjectAttempts(account, id string) string { return "gancho.attempts." + account + "." + id }

// SubjectAudit returns the subject of the records of an account's changes in AUDIT; "*" stands for all accounts.
func SubjectAudit(account string) string { return "gancho.audit." + account }

// SubjectFailed returns the subject of a permanently failed notification in FAILED.
func SubjectFailed(account, webhook, id string) string {
	return "gancho.failed." + account + "." + webhook + "." + id
}

// SubjectsOf returns the subjects of all of an account's records in a history, ATTEMPTS or FAILED.
func SubjectsOf(stream, account string) string {
	if stream == Failed {
		return SubjectFailed(account, "*", "*")
	}
	return SubjectAttempts(account, "*")
}

// SubjectParked returns the subject of a webhook's notifications in one lane of PARKED.
func SubjectParked(account, lane, webhook string) string {
	return "gancho.parked." + account + "." + lane + "." + webhook
}
