package dispatcher

import (
	"cmp"
	"math"
	"sync"
	"time"

	"gancho/pkg/suspension"
)

// urlKey names one destination. Suspension and concurrency limits are per account and URL.
type urlKey struct{ account, url string }

// name is the URL's key in the dispatchers' buckets.
func (k urlKey) name() string { return k.account + "." + k.url }

func (k urlKey) suspension() suspension.Key { return suspension.Key{Account: k.account, URLKey: k.url} }

const (
	// startLimit is the concurrency limit of a URL without history.
	startLimit = 8
	// maxWait is the longest time that a notification may expect to wait in memory for a slot of its URL. It is far
	// below the ack wait and below the cost of a detour over PARKED.
	maxWait = 250 * time.Millisecond
	// forgetAfter is how long the limit of an idle URL is remembered.
	forgetAfter = 15 * time.Minute
	// aloneAfter is how long no other account has had traffic when one account may take every slot.
	aloneAfter = time.Minute
	// slowAfter is the duration from which an attempt is slow, successful or not.
	slowAfter = time.Second
)

// limiter hands out the slots for requests. Each URL has a concurrency limit from 1 to mostPerURL. A clean round, as
// many successes in a row as the limit, doubles it; a failure halves it. A hanging URL shrinks to 1, a good one grows
// to the maximum. Live traffic and released backlog use the same slots.
//
// A notification that finds no free slot waits in memory only when the URL's own latency promises a short wait.
// Otherwise it is refused and the caller parks it, so no delivery is held for a slow URL.
//
// One account, however many URLs it has, holds at most mostPerAccount slots while other accounts have traffic too,
// waiting notifications included.
//
// Slow URLs together use at most half of the slots for first attempts; slow and unmeasured URLs at most three quarters,
// seven eighths where an account has nothing else in flight. The same split, halves and quarters, applies within one
// account that is not alone. Quick URLs therefore always find slots, and new ones
// find some: hundreds of URLs that hang or drip hold up no other receiver.
//
// The bytes of the events in flight have the same limits as the slots. An account or pace that holds nothing may always
// have one event, however large.
//
// It is safe for concurrent use. The mutex guards every field, those of urlLimit and load included, and is never held
// across a wait.
type limiter struct {
	mu             sync.Mutex
	mostPerURL     int
	mostPerAccount amount // while the account is not alone
	first          amount // for first attempts
	all            load
	urls           map[urlKey]*urlLimit
	accounts       map[string]*accountLoad
	latest         *accountLoad // of the account that was active last
	latestAt       time.Time    // when it was
	othersAt       time.Time    // when any other account was; zero: none has been
}

// pace is how long a URL keeps a slot, as far as known.
type pace int

const (
	quick   pace = iota // its last attempt took less than slowAfter
	unknown             // it has had no attempt, or was resumed
	slow                // its last attempt took longer, or it has had some in flight that long and none ended
)

// amount is a number of slots and the bytes of their events.
type amount struct{ slots, bytes int }

func (a amount) plus(b amount) amount  { return amount{a.slots + b.slots, a.bytes + b.bytes} }
func (a amount) minus(b amount) amount { return amount{a.slots - b.slots, a.bytes - b.bytes} }
func (a amount) least(b amount) amount { return amount{min(a.slots, b.slots), min(a.bytes, b.bytes)} }

// part returns n/of of a, at least one slot.
func (a amount) part(n, of int) amount { return amount{max(a.slots*n/of, 1), a.bytes / of * n} }

var unlimited = amount{math.MaxInt, math.MaxInt}

// load sums the notifications of several URLs that have a slot or wait for one, by the pace of their URL.
type load [slow + 1]amount

// room returns how much of most is free for URLs of a pace. Quick URLs have no limit.
func (h *load) room(most amount, p pace) amount {
	switch p {
	case slow:
		return free(most.part(1, 2), h[slow]).least(h.room(most, unknown))
	case unknown:
		return free(most.part(3, 4), h[slow].plus(h[unknown]))
	case quick:
	}
	return unlimited
}

func (h *load) total() amount { return h[quick].plus(h[unknown]).plus(h[slow]) }

// free returns how much of most remains. Where nothing is held there is room for one event of any size.
func free(most, held amount) amount {
	if held.slots == 0 {
		most.bytes = math.MaxInt
	}
	return most.minus(held)
}

// accountLoad is the load of an account over all its URLs.
type accountLoad struct {
	load
	urls int
}

type urlLimit struct {
	account  *accountLoad
	all      *load // over all accounts
	pace     pace
	limit    int
	inFlight int
	held     amount           // in flight and waiting
	size     int              // bytes of the largest event lately; 0: none came yet
	streak   int              // successes since the last failure or growth
	latency  time.Duration    // moving average of an attempt; 0: unknown
	best     [2]time.Duration // shortest attempts of this bestFor and the last one; 0: unknown
	bestAt   time.Time        // when the first of them began
	waiting  []*slot
	backlog  bool // something is parked: live traffic leaves half of the limit to it
	used     time.Time
	moved    time.Time // when an attempt ended, or the first of those in flight began
}

// slot is the right to one request to a URL, or a place in the line for it. The methods of a nil slot do nothing. A
// slot is used by one goroutine and ends with release or finish; after that both do nothing.
type slot struct {
	limiter *limiter
	key     urlKey
	bytes   int       // counted for its event
	near    bool      // the URL's receiver is near
	granted chan bool // answers one that stands in line; nil: granted
	ended   bool
}

// waiting reports whether the slot stands in line; wait must then be called.
func (s *slot) waiting() bool { return s != nil && s.granted != nil }

// wait returns whether the slot is granted, after at most about maxWait. One that is not granted has ended.
func (s *slot) wait() bool {
	if s.granted == nil {
		return true
	}
	granted := <-s.granted
	s.granted, s.ended = nil, !granted
	return granted
}

// release gives the slot back unused.
func (s *slot) release() {
	if s == nil || s.ended || !s.wait() {
		return
	}
	s.ended = true
	s.limiter.leave(s)
}

// finish gives the slot back after an attempt, whose result moves the URL's limit.
func (s *slot) finish(delivered bool, took time.Duration) {
	if s != nil && !s.ended {
		s.ended = true
		s.limiter.done(s, delivered, took)
	}
}

// newLimiter returns a limiter of at most mostPerURL slots per URL and, per account, a quarter of most, which is half
// of the amount for first attempts.
func newLimiter(mostPerURL int, most amount) *limiter {
	return &limiter{
		mostPerURL: mostPerURL, mostPerAccount: most.part(1, 4), first: most.part(1, 2),
		urls: map[urlKey]*urlLimit{}, accounts: map[string]*accountLoad{},
	}
}

func (l *limiter) get(k urlKey) *urlLimit {
	u := l.urls[k]
	if u == nil {
		a := l.accounts[k.account]
		if a == nil {
			a = new(accountLoad)
			l.accounts[k.account] = a
		}
		a.urls++
		u = &urlLimit{account: a, all: &l.all, pace: unknown, limit: min(startLimit, l.mostPerURL)}
		l.urls[k] = u
	}
	u.used = time.Now()
	switch {
	case u.inFlight == 0:
		u.moved = u.used
	case u.used.Sub(u.moved) >= slowAfter:
		u.become(slow)
	}
	if l.latest != u.account {
		l.latest, l.othersAt = u.account, l.latestAt
	}
	l.latestAt = u.used
	return u
}

// room returns how much more the URL's account, and URLs of its pace, may take now. get has just returned u.
func (l *limiter) room(u *urlLimit) amount {
	room := l.all.room(l.first, u.pace)
	if u.pace == unknown && u.account.total().slots == 0 { // half of the quick URLs' reserve is for new accounts
		room = free(l.first.part(7, 8), l.all[slow].plus(l.all[unknown]))
	}
	if !l.othersAt.IsZero() && u.used.Sub(l.othersAt) <= aloneAfter {
		room = room.least(free(l.mostPerAccount, u.account.total())).least(u.account.room(l.mostPerAccount, u.pace))
	}
	return room
}

// hold adds to the URL's load.
func (u *urlLimit) hold(n amount) {
	u.held = u.held.plus(n)
	u.account.load[u.pace] = u.account.load[u.pace].plus(n)
	u.all[u.pace] = u.all[u.pace].plus(n)
}

// drop takes from the URL's load.
func (u *urlLimit) drop(n amount) { u.hold(amount{}.minus(n)) }

// become changes the URL's pace.
func (u *urlLimit) become(p pace) {
	held := u.held
	u.drop(held)
	u.pace = p
	u.hold(held)
}

// answer grants a slot to one that waits, or refuses it; the caller takes it off the line.
func (u *urlLimit) answer(s *slot, granted bool) {
	if granted {
		u.inFlight++
	} else {
		u.drop(amount{1, s.bytes})
	}
	s.granted <- granted
}

// live is the limit of live traffic.
func (u *urlLimit) live() int {
	if u.backlog {
		return u.limit / 2
	}
	return u.limit
}

// bestFor is how long the shortest attempt of a URL is remembered at least.
const bestFor = time.Minute

// took notes the duration of an attempt.
func (u *urlLimit) took(d time.Duration) {
	if u.used.Sub(u.bestAt) > bestFor {
		u.best, u.bestAt = [2]time.Duration{0, u.best[0]}, u.used
	}
	if u.best[0] == 0 || d < u.best[0] {
		u.best[0] = d
	}
}

// near reports whether the URL's receiver has answered at once lately.
func (u *urlLimit) near() bool {
	return u.best[0] > 0 && u.best[0] < nearBelow || u.best[1] > 0 && u.best[1] < nearBelow
}

// firstSize is how large the events of a URL are taken to be before any came.
const firstSize = 256 << 10

// sized remembers the size of an event; the size of the largest one wears off.
func (u *urlLimit) sized(bytes int) { u.size = max(bytes, u.size-u.size/64, 1) }

// estimate returns the size that the next event is taken to have.
func (u *urlLimit) estimate() int { return cmp.Or(u.size, firstSize) }

// acquire returns a slot for live traffic with an event of so many bytes, or a place in the line for one where the wait
// promises to be short. It does not wait. nil: the URL, its account or URLs of its pace have all they may.
func (l *limiter) acquire(k urlKey, bytes int) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.get(k)
	u.sized(bytes)
	s := &slot{limiter: l, key: k, bytes: bytes, near: u.near()}
	switch room := l.room(u); {
	case room.slots <= 0 || room.bytes < bytes:
		return nil
	case u.inFlight < u.live() && len(u.waiting) == 0:
		u.inFlight++
	case u.worthWaiting():
		s.granted = make(chan bool, 1)
		u.waiting = append(u.waiting, s)
	default:
		return nil
	}
	u.hold(amount{1, bytes})
	return s
}

// worthWaiting estimates the wait of one more from the URL's own latency. For an unmeasured URL one round may wait.
func (u *urlLimit) worthWaiting() bool {
	if u.live() == 0 {
		return false
	}
	if u.latency == 0 {
		return len(u.waiting) < u.limit
	}
	return time.Duration(len(u.waiting)+1)*u.latency/time.Duration(u.live()) <= maxWait
}

// take returns up to n slots for backlog, without waiting. The size of an event is estimated; weigh sets it right.
func (l *limiter) take(k urlKey, n int) []*slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.get(k)
	var slots []*slot
	for len(slots) < n && u.inFlight < u.limit {
		size := u.estimate()
		if room := l.room(u); room.slots <= 0 || room.bytes < size {
			break
		}
		u.inFlight++
		u.hold(amount{1, size})
		slots = append(slots, &slot{limiter: l, key: k, bytes: size, near: u.near()})
	}
	return slots
}

// weigh sets the size of the event that the slot is used for.
func (s *slot) weigh(bytes int) {
	if s == nil || s.ended {
		return
	}
	l := s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.get(s.key)
	u.sized(bytes)
	u.hold(amount{0, bytes - s.bytes})
	s.bytes = bytes
}

// pause is how long a drain that got no slot waits before it asks again. Hundreds of drains may.
func (l *limiter) pause(k urlKey) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.get(k)
	if room := l.room(u); room.slots <= 0 || room.bytes < u.estimate() {
		return longestDrainPause
	}
	return min(max(u.latency/8, drainPause), longestDrainPause)
}

// leave gives a slot back unused.
func (l *limiter) leave(s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.get(s.key)
	u.inFlight--
	u.drop(amount{1, s.bytes})
	u.admit()
}

// done gives a slot back after an attempt, whose result moves the limit.
func (l *limiter) done(s *slot, delivered bool, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.get(s.key)
	u.inFlight--
	u.drop(amount{1, s.bytes})
	if u.latency == 0 {
		u.latency = took
	}
	u.latency += (took - u.latency) / 8
	u.moved = u.used
	u.took(took)
	if took < slowAfter {
		u.become(quick)
	} else {
		u.become(slow)
	}
	if delivered {
		if u.streak++; u.streak >= u.limit {
			u.limit, u.streak = min(2*u.limit, l.mostPerURL), 0
		}
	} else {
		u.limit, u.streak = max(u.limit/2, 1), 0
	}
	u.admit()
}

// admit grants free slots to those who wait, and refuses the last ones when the wait has become too long.
func (u *urlLimit) admit() {
	for len(u.waiting) > 0 && u.inFlight < u.live() {
		u.answer(u.waiting[0], true)
		u.waiting = u.waiting[1:]
	}
	for len(u.waiting) > 0 && !u.stillWorth() {
		last := len(u.waiting) - 1
		u.answer(u.waiting[last], false)
		u.waiting = u.waiting[:last]
	}
}

func (u *urlLimit) stillWorth() bool {
	return u.live() > 0 && time.Duration(len(u.waiting))*u.latency/time.Duration(u.live()) <= 4*maxWait
}

// restart sets the limit of a resumed URL to 1: slow start.
func (l *limiter) restart(k urlKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.get(k)
	u.limit, u.streak, u.latency = 1, 0, 0
	u.become(unknown)
}

// setBacklog records whether something is parked for the URL.
func (l *limiter) setBacklog(k urlKey, is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.urls[k]; u != nil || is {
		u = l.get(k)
		u.backlog = is
		u.admit()
	}
}

// forget drops idle URLs.
func (l *limiter) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, u := range l.urls {
		if u.inFlight == 0 && !u.backlog && time.Since(u.used) > forgetAfter {
			delete(l.urls, k)
			if u.account.urls--; u.account.urls == 0 {
				delete(l.accounts, k.account)
			}
		}
	}
}
