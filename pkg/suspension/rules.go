package suspension

import (
	"errors"
	"fmt"
	"hash/fnv"
	"time"
)

const (
	// buckets is how many counters a window is kept in. More make its sliding
	// edge finer and its record larger.
	buckets = 16
	// jitter is the share by which a suspension's length varies, so that many
	// URLs suspended together are not all probed together.
	jitter = 0.1
	// longest is the upper end of SUSPENSION_MAX_DURATION.
	longest = 30 * 24 * time.Hour
	// refusals is how many answers of 401 or 403 in a row give a warning of their own.
	refusals = 20
	// streakKept is how long such a streak is remembered without another answer: a webhook with few events makes six
	// attempts of each within three hours.
	streakKept = 7 * 24 * time.Hour
	// statusesKept is how many different outcomes the evidence names.
	statusesKept = 4
)

// Rules say when a URL is suspended and for how long.
//
// The window slides in steps of a sixteenth of itself, and always on the
// careful side: every failure that counts lies within Window, but failures of its oldest
// sixteenth may already be forgotten. MinSpan should therefore stay below
// fifteen sixteenths of Window, or suspensions become rare.
type Rules struct {
	// Window is how far back failures count. 1s to 24h; default 10m.
	Window time.Duration `env:"SUSPENSION_WINDOW" envDefault:"10m" range:"1s..24h"`
	// MinFailures is how many failures without any success it takes. 1 to
	// 1,000,000; default 20. Half of it (rounded up) gives the warning.
	MinFailures int `env:"SUSPENSION_MIN_FAILURES" envDefault:"20" range:"1..1000000"`
	// MinSpan is how long a URL must have failed, from the first failure in the
	// window to the last. 0 to Window; default 1m.
	MinSpan time.Duration `env:"SUSPENSION_MIN_SPAN" envDefault:"1m" range:"0s..24h"`
	// Duration is the length of the first suspension; each failed probe doubles
	// it. 1s to MaxDuration; default 5m.
	Duration time.Duration `env:"SUSPENSION_DURATION" envDefault:"5m" range:"1s..720h"`
	// MaxDuration bounds the doubling. Duration to 30 days (720h); default 6h.
	MaxDuration time.Duration `env:"SUSPENSION_MAX_DURATION" envDefault:"6h" range:"1s..720h"`
}

// DefaultRules are the defaults of the environment variables.
func DefaultRules() Rules {
	return Rules{
		Window:      10 * time.Minute,
		MinFailures: 20,
		MinSpan:     time.Minute,
		Duration:    5 * time.Minute,
		MaxDuration: 6 * time.Hour,
	}
}

// Validate reports every value that makes no sense, alone or with another,
// one per line, by the names of the variables. Nil means usable.
func (r Rules) Validate() error {
	var problems []error
	wrong := func(name string, got any, want string) {
		problems = append(problems, fmt.Errorf("%s: %v is out of range; set it to %s", name, got, want))
	}
	if r.Window < time.Second || r.Window > 24*time.Hour {
		wrong("SUSPENSION_WINDOW", r.Window, "1s to 24h")
	}
	if r.MinFailures < 1 || r.MinFailures > 1_000_000 {
		wrong("SUSPENSION_MIN_FAILURES", r.MinFailures, "1 to 1000000")
	}
	if r.MinSpan < 0 || r.MinSpan > r.Window {
		wrong("SUSPENSION_MIN_SPAN", r.MinSpan, fmt.Sprintf("0s to SUSPENSION_WINDOW (%v)", r.Window))
	}
	if r.Duration < time.Second || r.Duration > r.MaxDuration {
		wrong("SUSPENSION_DURATION", r.Duration, fmt.Sprintf("1s to SUSPENSION_MAX_DURATION (%v)", r.MaxDuration))
	}
	if r.MaxDuration < time.Second || r.MaxDuration > longest {
		wrong("SUSPENSION_MAX_DURATION", r.MaxDuration, "SUSPENSION_DURATION to 720h (30 days)")
	}
	return errors.Join(problems...)
}

// Settle is how long a URL that fulfils the rule is watched before it is
// suspended, to see whether many others fulfil it too: a tenth of MinSpan, at
// least 1s and at most 5s.
func (r Rules) Settle() time.Duration {
	return min(max(r.MinSpan/10, time.Second), 5*time.Second)
}

// limits are the rules as the machine computes with them: integers, times in
// milliseconds.
type limits struct {
	Window, Width, Failures, AtRisk, Span, Settle, Duration, Longest int64
	// Levels is the number of doublings after which the length is Longest, plus
	// one: more trips than this change nothing.
	Levels int64
	// Late is the age from which a success may be overtaken by older failures.
	Late int64
}

func (r Rules) limits() limits {
	l := limits{
		Window:   r.Window.Milliseconds(),
		Failures: int64(r.MinFailures),
		AtRisk:   int64(r.MinFailures+1) / 2,
		Span:     r.MinSpan.Milliseconds(),
		Duration: r.Duration.Milliseconds(),
		Longest:  r.MaxDuration.Milliseconds(),
		Levels:   1,
		Settle:   r.Settle().Milliseconds(),
		Late:     5000,
	}
	l.Width = max(1, l.Window/buckets)
	for d := l.Duration; d < l.Longest; d *= 2 {
		l.Levels++
	}
	return l
}

// length is how long the trips-th consecutive suspension lasts, without jitter.
func (l limits) length(trips int64) int64 {
	d := l.Duration
	for range min(trips, l.Levels) - 1 {
		d *= 2
	}
	return min(d, l.Longest)
}

// jittered is length times 1000+permille thousandths, at most Longest.
func (l limits) jittered(trips, permille int64) int64 {
	return min(l.length(trips)*(1000+permille)/1000, l.Longest)
}

// permille draws a jitter of -100 to 100 thousandths for a decision about key
// at now (Unix milliseconds): evenly spread, and the same in every process.
func permille(key Key, now int64) int64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s.%d", key, now) // a hash never fails
	const reach = int64(jitter * 1000)
	return int64(h.Sum64()%uint64(2*reach+1)) - reach
}
