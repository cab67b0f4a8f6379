package auth

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets bounds the memory of one table of limits: about 200 bytes each.
const maxBuckets = 20_000

// buckets limits how often something may happen for each key, with a bounded memory: when it is full, the
// buckets that are full again (their keys were quiet) are forgotten, and if that frees nothing, all are.
// It is safe for concurrent use.
type buckets struct {
	limit rate.Limit
	burst int

	mu   sync.Mutex
	keys map[string]*rate.Limiter
}

func newBuckets(limit rate.Limit, burst int) *buckets {
	return &buckets{limit: limit, burst: burst, keys: map[string]*rate.Limiter{}}
}

// take uses one of the key's; when there is none it returns false and how long until there is.
func (b *buckets) take(key string, now time.Time) (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.keys[key]
	if l == nil {
		b.makeRoom(now)
		l = rate.NewLimiter(b.limit, b.burst)
		b.keys[key] = l
	}
	if l.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - l.TokensAt(now)
	return time.Duration(missing / float64(b.limit) * float64(time.Second)), false
}

// empty reports whether the key has none left, and how long until it has.
func (b *buckets) empty(key string, now time.Time) (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.keys[key]
	if l == nil {
		return 0, false
	}
	if missing := 1 - l.TokensAt(now); missing > 0 {
		return time.Duration(missing / float64(b.limit) * float64(time.Second)), true
	}
	return 0, false
}

func (b *buckets) makeRoom(now time.Time) {
	if len(b.keys) < maxBuckets {
		return
	}
	for k, l := range b.keys {
		if l.TokensAt(now) >= float64(b.burst) {
			delete(b.keys, k)
		}
	}
	if len(b.keys) >= maxBuckets {
		clear(b.keys)
	}
}

// recent remembers keys for a while, with a bounded memory. It is safe for concurrent use.
type recent struct {
	keep time.Duration

	mu   sync.Mutex
	keys map[string]time.Time
}

func newRecent(keep time.Duration) *recent {
	return &recent{keep: keep, keys: map[string]time.Time{}}
}

func (r *recent) add(key string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.keys[key]; !known && len(r.keys) >= maxBuckets {
		for k, at := range r.keys {
			if now.Sub(at) > r.keep {
				delete(r.keys, k)
			}
		}
		if len(r.keys) >= maxBuckets {
			clear(r.keys)
		}
	}
	r.keys[key] = now
}

func (r *recent) has(key string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.keys[key]
	return ok && now.Sub(at) <= r.keep
}

// client is what one client's addresses have in common: an IPv4 address, or the /64 that an IPv6 host usually has.
func client(remoteAddr string) string {
	ap, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return remoteAddr
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
