package auth

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// maxKeys bounds the memory of one table of limits: about 300 bytes each.
const maxKeys = 20_000

// limits says how often something may happen for each key. Its memory is bounded: a new key beyond maxKeys
// replaces the one that was used least recently. It is safe for concurrent use.
type limits struct {
	limit rate.Limit
	burst int

	mu   sync.Mutex
	keys *simplelru.LRU[string, *rate.Limiter]
}

func newLimits(limit rate.Limit, burst int) *limits {
	keys, err := simplelru.NewLRU[string, *rate.Limiter](maxKeys, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &limits{limit: limit, burst: burst, keys: keys}
}

// take uses one of the key's. When there is none left it returns false and how long until there is.
func (l *limits) take(key string, now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter, known := l.keys.Get(key)
	if !known {
		limiter = rate.NewLimiter(l.limit, l.burst)
		l.keys.Add(key, limiter)
	}
	if limiter.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - limiter.TokensAt(now)
	return time.Duration(missing / float64(l.limit) * float64(time.Second)), false
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

// AddressOf is a client's address without the port.
func AddressOf(remoteAddr string) string {
	if ap, err := netip.ParseAddrPort(remoteAddr); err == nil {
		return ap.Addr().Unmap().String()
	}
	return remoteAddr
}
