package delivery

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	// maxIdle bounds the idle HTTP/1 connections of a Sender, and of one origin. Beyond it the longest idle one is
	// closed.
	maxIdle          = 4096
	maxIdleOfOrigin  = 2048
	sweepEvery       = 5 * time.Second
	maxProbes        = 512              // idle connections that a sweep asks whether the receiver has closed them
	replaceTime      = 20 * time.Second // how long an HTTP/2 connection is used on while another replaces it
	maxShared        = 1024             // HTTP/2 connections that are kept
	maxSharedOfAHost = 16
)

// pool keeps connections. Safe for concurrent use.
type pool struct {
	mu             sync.Mutex
	idle           map[origin][]*conn // the most recently used last
	newest, oldest *conn              // all idle ones
	count          int
	shared         map[origin][]*conn // HTTP/2
	sharedCount    int
	timer          *time.Timer // runs while anything is kept
	closed         bool
}

// take returns a connection for o that may be used now, nil when there is none. An HTTP/2 connection has a stream
// reserved.
func (p *pool) take(o origin, now time.Time) *conn {
	p.mu.Lock()
	for _, c := range slices.Backward(p.shared[o]) {
		age := now.Sub(c.retire)
		if age > replaceTime {
			continue
		}
		if age > 0 && !c.replaced { // this request makes the next connection, the others go on
			c.replaced = true
			break
		}
		if c.h2.Reserve() == nil {
			p.mu.Unlock()
			return c
		}
	}
	for list := p.idle[o]; len(list) > 0; list = p.idle[o] {
		c := list[len(list)-1]
		p.remove(c)
		if now.Before(c.expires) && now.Before(c.retire) {
			p.mu.Unlock()
			if !c.stale() {
				return c
			}
			c.close()
			p.mu.Lock()
			continue
		}
		p.mu.Unlock()
		c.close()
		p.mu.Lock()
	}
	p.mu.Unlock()
	return nil
}

// put keeps an HTTP/1 connection for the next request.
func (p *pool) put(c *conn) {
	p.mu.Lock()
	var out *conn
	switch list := p.idle[c.origin]; {
	case p.closed || len(list) >= maxIdleOfOrigin:
		out = c
	default:
		if p.count >= maxIdle {
			out = p.oldest
			p.remove(out)
		}
		if p.idle == nil {
			p.idle = make(map[origin][]*conn)
		}
		p.idle[c.origin] = append(p.idle[c.origin], c)
		c.older, c.newer = p.newest, nil
		if p.newest != nil {
			p.newest.newer = c
		} else {
			p.oldest = c
		}
		p.newest = c
		p.count++
		p.tick()
	}
	p.mu.Unlock()
	if out != nil {
		out.close()
	}
}

// share offers an HTTP/2 connection to other requests. It returns the connection to use: another one when that was
// faster; c is closed then. The connection has a stream reserved, or is nil when c is already over.
func (p *pool) share(c *conn, now time.Time) *conn {
	p.mu.Lock()
	for _, other := range p.shared[c.origin] {
		if now.Before(other.retire) && other.h2.Reserve() == nil {
			p.mu.Unlock()
			_ = c.h2.Close()
			return other
		}
	}
	if c.h2.Reserve() != nil {
		p.mu.Unlock()
		_ = c.h2.Close()
		return nil
	}
	keep := !p.closed && p.sharedCount < maxShared && len(p.shared[c.origin]) < maxSharedOfAHost
	if keep {
		if p.shared == nil {
			p.shared = make(map[origin][]*conn)
		}
		p.shared[c.origin] = append(p.shared[c.origin], c)
		p.sharedCount++
		p.tick()
	} else {
		c.retire = time.Time{}
	}
	p.mu.Unlock()
	return c
}

// done closes an HTTP/2 connection that takes no more requests, once its last one is over.
func (p *pool) done(c *conn) {
	p.mu.Lock()
	over := time.Since(c.retire) > replaceTime && c.h2.InFlight() == 0
	p.mu.Unlock()
	if over {
		_ = c.h2.Close()
	}
}

// drop gives no further requests to the HTTP/2 connections of o.
func (p *pool) drop(o origin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.shared[o] {
		c.retire = time.Time{}
	}
}

func (p *pool) remove(c *conn) {
	list := p.idle[c.origin]
	if i := slices.Index(list, c); i >= 0 {
		p.idle[c.origin] = slices.Delete(list, i, i+1)
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		p.newest = c.older
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		p.oldest = c.newer
	}
	c.newer, c.older = nil, nil
	p.count--
}

func (p *pool) tick() {
	if p.timer == nil {
		p.timer = time.AfterFunc(sweepEvery, p.sweep)
	}
}

// sweep closes connections whose time is over.
func (p *pool) sweep() {
	now := time.Now()
	var out []*conn
	probes := 0
	p.mu.Lock()
	for c := p.oldest; c != nil; {
		next := c.newer
		probes++
		if now.After(c.expires) || now.After(c.retire) || probes <= maxProbes && c.stale() {
			p.remove(c)
			out = append(out, c)
		}
		c = next
	}
	for o, list := range p.idle {
		if len(list) == 0 {
			delete(p.idle, o)
		}
	}
	for o, list := range p.shared {
		left := slices.DeleteFunc(list, func(c *conn) bool {
			old := now.Sub(c.retire) > replaceTime
			if old && c.h2.InFlight() == 0 {
				out = append(out, c)
			}
			return old || c.h2.Err() != nil
		})
		p.sharedCount -= len(list) - len(left)
		if p.shared[o] = left; len(left) == 0 {
			delete(p.shared, o)
		}
	}
	p.timer = nil
	if !p.closed && (p.count > 0 || p.sharedCount > 0) {
		p.tick()
	}
	p.mu.Unlock()
	for _, c := range out {
		if c.h2 != nil {
			_ = c.h2.Close()
		} else {
			c.close()
		}
	}
}

// close ends all idle and all HTTP/2 connections.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	idle, shared := p.idle, p.shared
	p.idle, p.shared, p.count, p.sharedCount, p.newest, p.oldest = nil, nil, 0, 0, nil, nil
	p.mu.Unlock()
	for _, list := range idle {
		for _, c := range list {
			c.close()
		}
	}
	for _, list := range shared {
		for _, c := range list {
			_ = c.h2.Close()
		}
	}
}

// vary returns d, a fifth shorter or longer.
func vary(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.4*float64(d)) //nolint:gosec // not a secret
}

// habit is a need of one receiver that others do not have, learned from its answers.
type habit struct {
	http1   bool // it asked for HTTP/1.1
	classic bool // it fails on a key share that is safe against quantum computers
	legacy  bool // it speaks TLS 1.2 with RSA key exchange only
	at      time.Time
}

const (
	habitMemory = 24 * time.Hour
	maxHabits   = 4096
)

// habits remembers them by host and port, as in URLs. Safe for concurrent use.
type habits struct {
	mu sync.Mutex
	of map[string]habit
}

func (h *habits) get(host string) habit {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.of[host]
	if time.Since(known.at) > habitMemory {
		return habit{}
	}
	return known
}

func (h *habits) learn(host string, change func(*habit)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil {
		h.of = make(map[string]habit)
	}
	known, ok := h.of[host]
	if !ok && len(h.of) >= maxHabits {
		for other := range h.of { // any: it is learned again
			delete(h.of, other)
			break
		}
	}
	change(&known)
	known.at = time.Now()
	h.of[host] = known
}

// legacy counts the hosts that speak TLS 1.2 with RSA key exchange only.
func (h *habits) legacy() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, known := range h.of {
		if known.legacy && time.Since(known.at) <= habitMemory {
			n++
		}
	}
	return n
}
