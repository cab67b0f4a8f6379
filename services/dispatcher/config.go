package dispatcher

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/egress"
	"gancho/pkg/notification"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/topology"
)

// Config of the dispatcher.
type Config struct {
	Service  service.Config
	Bus      bus.Config
	Limits   topology.Limits
	Delivery delivery.Config
	Egress   egress.Config

	// RetryDelays are the waits before each of the five retries, exactly five, not descending.
	RetryDelays []time.Duration `env:"RETRY_DELAYS" envDefault:"10s,1m,5m,30m,2h" range:"100ms..24h"`
	// RetryJitter spreads each delay by this fraction to both sides, so that failed notifications are not all retried
	// at once.
	RetryJitter float64 `env:"RETRY_JITTER" envDefault:"0.2" range:"0..0.9"`
	// MaxRetryAfter is the longest wait a receiver's Retry-After header can ask for.
	MaxRetryAfter time.Duration `env:"MAX_RETRY_AFTER" envDefault:"1h" range:"0s..24h"`
	// MaxInFlight is how many requests this dispatcher has open at once; a hanging one costs about 53 KB. Half is kept
	// for first attempts; receivers that take a second or more have at most a quarter, and so has one account while
	// others have traffic too.
	MaxInFlight int `env:"MAX_IN_FLIGHT" envDefault:"2048" range:"8..100000"`
	// MaxInFlightBytes is about how many bytes of events the dispatcher has in memory at once; with events that large
	// it has fewer than MAX_IN_FLIGHT open. Accounts and slow receivers have the same parts of it. At least four times
	// the largest event and 64 KiB.
	MaxInFlightBytes int64 `env:"MAX_IN_FLIGHT_BYTES" envDefault:"335544320" range:"1048576..1000000000000"`
	// MaxInFlightPerURL is the most of them for one URL. A URL's share starts small, doubles while it answers well and
	// halves when it fails.
	MaxInFlightPerURL int `env:"MAX_IN_FLIGHT_PER_URL" envDefault:"64" range:"1..10000"`
	// ParkedMaxAge is how long a notification waits for a suspended URL before it is permanently failed
	// (expired_while_suspended).
	ParkedMaxAge time.Duration `env:"PARKED_MAX_AGE" envDefault:"168h" range:"1s..8760h"`
	// EncryptionKeyFile holds the keys that open auth keys and signing secrets, a line each: <key id>:<base64 of 32
	// bytes>. The first seals, all open.
	EncryptionKeyFile string `env:"ENCRYPTION_KEY_FILE"`

	ackWaitOr time.Duration // of tests; 0: bus.AckWait
}

// Validate reports settings that do not fit together.
func (c *Config) Validate() error {
	var errs []error
	if n := len(c.RetryDelays); n != notification.MaxAttempts-1 {
		errs = append(errs, fmt.Errorf("RETRY_DELAYS: it has %d delays; give exactly five from 100ms to 24h, not descending", n))
	}
	if !slices.IsSorted(c.RetryDelays) {
		errs = append(errs, errors.New("RETRY_DELAYS: a delay is shorter than the one before it; give exactly five from 100ms to 24h, not descending"))
	}
	if c.Service.ShutdownTimeout <= c.Delivery.Timeout {
		errs = append(errs, fmt.Errorf("SHUTDOWN_TIMEOUT: %v must exceed ATTEMPT_TIMEOUT (%v), or attempts in flight are cut off", c.Service.ShutdownTimeout, c.Delivery.Timeout))
	}
	if c.MaxInFlightPerURL > c.MaxInFlight {
		errs = append(errs, fmt.Errorf("MAX_IN_FLIGHT_PER_URL: %d exceeds MAX_IN_FLIGHT (%d); give a number from 1 to MAX_IN_FLIGHT", c.MaxInFlightPerURL, c.MaxInFlight))
	}
	if least := 4 * int64(topology.MaxMessage(c.Limits.EventMaxBytes)); c.MaxInFlightBytes < least {
		errs = append(errs, fmt.Errorf("MAX_IN_FLIGHT_BYTES: %d must be at least %d, four times EVENT_MAX_BYTES and 64 KiB", c.MaxInFlightBytes, least))
	}
	if c.ParkedMaxAge >= c.Limits.LogMaxAge {
		errs = append(errs, fmt.Errorf("PARKED_MAX_AGE: %v must be less than LOG_MAX_AGE (%v), or a parked notification outlives its records", c.ParkedMaxAge, c.Limits.LogMaxAge))
	}
	if _, _, err := seal.Load(c.EncryptionKeyFile); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ackWait is how long the broker waits for a silent dispatcher before another one gets its deliveries.
func (c *Config) ackWait() time.Duration { return cmp.Or(c.ackWaitOr, bus.AckWait) }

// probeWait is how long a probe may take before another dispatcher makes it: twice an attempt, and the ack wait, so
// that a slow but living dispatcher keeps it.
func (c *Config) probeWait() time.Duration { return 2*c.Delivery.Timeout + c.ackWait() }
