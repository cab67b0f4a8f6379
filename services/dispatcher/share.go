package dispatcher

import (
	"math"
	"sync"
	"time"

	"gancho/pkg/suspension"
)

// urlKey names one destination: suspension and shares are per account and URL.
type urlKey struct{ account, url string }

func (k urlKey) suspension() suspension.Key { return suspension.Key{Account: k.account, URLKey: k.url} }

const (
	// startShare is what a URL that nothing is known of may have in flight.
	startShare = 8
	// maxWait is how long a notification may expect to wait in memory for its URL's share. It is far below
	// the ack wait and below what a detour over PARKED would cost.
	maxWait = 250 * time.Millisecond
	// forgetAfter is how long an idle URL's share is remembered.
	forgetAfter = 15 * time.Minute
)

// shares bounds what is in flight for each URL: one number per URL, from 1 to the limit, doubled after a
// clean round (as many successes in a row as the number), halved by a failure. A hanging URL so shrinks to
// 1 and a good one grows to the limit. Live traffic and released backlog use the same number.
//
// What is over the share waits in memory only when the URL's own speed says that the wait is short;
// otherwise it is refused, and the caller parks it. So no delivery is held for a slow URL.
//
// One account, however many URLs it has, holds at most mostEach places while other accounts have traffic too,
// those that wait in memory counted; what is over that is refused like what is over a URL's share.
//
// Slow URLs, however many, hold at most half of what is for first attempts, and together with those that nothing is
// known of three quarters; so it is with the places of an account that is not alone. So there are always places for
// URLs that answer quickly, and some for new ones: hundreds of URLs that hang or drip hold up nobody.
//
// It is safe for concurrent use; the mutex guards everything and is never held across a wait.
type shares struct {
	mu       sync.Mutex
	most     int // limit per URL
	mostEach int // limit per account while it is not alone
	first    int // places for first attempts
	all      holding
	urls     map[urlKey]*share
	accounts map[string]*ofAccount
	latest   *ofAccount // of the account that was active last
	latestAt time.Time  // when it was
	othersAt time.Time  // when any other was; zero: there was none yet
}

// aloneAfter is how long no other account had traffic when one may take every place.
const aloneAfter = time.Minute

// pace is how long a URL keeps a place, as far as known.
type pace int

const (
	quick   pace = iota // its last attempt took less than slowAfter
	unknown             // it has had no attempt, or was resumed
	slow                // its last attempt took longer, or it has had some in flight that long and none ended
)

// slowAfter is when an attempt is slow, whatever comes of it.
const slowAfter = time.Second

// holding is what is in flight and waiting for a share over several URLs, by their pace.
type holding [slow + 1]int

// room is how many of so many places are left for URLs of a pace, quick ones apart: for those there is no limit.
func (h *holding) room(places int, p pace) int {
	switch p {
	case slow:
		return min(max(places/2, 1)-h[slow], h.room(places, unknown))
	case unknown:
		return max(places*3/4, 1) - h[slow] - h[unknown]
	case quick:
	}
	return math.MaxInt
}

func (h *holding) total() int { return h[quick] + h[unknown] + h[slow] }

// ofAccount is what an account has over all its URLs.
type ofAccount struct {
	holding
	urls int
}

type share struct {
	account  *ofAccount
	all      *holding // over all accounts
	pace     pace
	limit    int
	inFlight int
	streak   int           // successes since the last failure or growth
	latency  time.Duration // moving average of an attempt; 0: unknown
	waiting  []chan bool
	backlog  bool // something is parked: live traffic leaves half of the share to it
	used     time.Time
	moved    time.Time // when an attempt ended, or the first of those in flight began
}

// newShares bounds each URL to most; an account to a quarter of maxInFlight, which is half of what is for first
// attempts.
func newShares(most, maxInFlight int) *shares {
	return &shares{most: most, mostEach: max(maxInFlight/4, 1), first: max(maxInFlight/2, 1), urls: map[urlKey]*share{}, accounts: map[string]*ofAccount{}}
}

func (s *shares) get(k urlKey) *share {
	u := s.urls[k]
	if u == nil {
		a := s.accounts[k.account]
		if a == nil {
			a = new(ofAccount)
			s.accounts[k.account] = a
		}
		a.urls++
		u = &share{account: a, all: &s.all, pace: unknown, limit: min(startShare, s.most)}
		s.urls[k] = u
	}
	u.used = time.Now()
	switch {
	case u.inFlight == 0:
		u.moved = u.used
	case u.used.Sub(u.moved) >= slowAfter:
		u.become(slow)
	}
	if s.latest != u.account {
		s.latest, s.othersAt = u.account, s.latestAt
	}
	s.latestAt = u.used
	return u
}

// room is how many more places the URL's account, and URLs as slow as it, may take now. u is what get returned just
// now.
func (s *shares) room(u *share) int {
	n := s.all.room(s.first, u.pace)
	if !s.othersAt.IsZero() && u.used.Sub(s.othersAt) <= aloneAfter {
		n = min(n, s.mostEach-u.account.total(), u.account.room(s.mostEach, u.pace))
	}
	return n
}

// hold counts n more, or fewer, of a pace.
func (u *share) hold(n int, p pace) {
	u.account.holding[p] += n
	u.all[p] += n
}

// become changes the URL's pace.
func (u *share) become(p pace) {
	n := u.inFlight + len(u.waiting)
	u.hold(-n, u.pace)
	u.hold(n, p)
	u.pace = p
}

// place takes n places, or gives them back when it is negative.
func (u *share) place(n int) {
	u.inFlight += n
	u.hold(n, u.pace)
}

// queue adds one that waits for a place.
func (u *share) queue(granted chan bool) {
	u.waiting = append(u.waiting, granted)
	u.hold(1, u.pace)
}

// answer tells one that waits, and is taken off the line by the caller, whether it has a place.
func (u *share) answer(granted chan bool, placed bool) {
	granted <- placed
	u.hold(-1, u.pace)
}

// live is what live traffic may have in flight.
func (u *share) live() int {
	if u.backlog {
		return u.limit / 2
	}
	return u.limit
}

// try takes a place for live traffic if one is free. refused says that waiting for one is not worth it.
func (s *shares) try(k urlKey) (placed, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.get(k)
	full := s.room(u) <= 0
	if !full && u.inFlight < u.live() && len(u.waiting) == 0 {
		u.place(1)
		return true, false
	}
	return false, full || !u.worthWaiting()
}

// enter takes a place for live traffic, waiting for it at most about maxWait. False: the URL or its account is
// over its share.
func (s *shares) enter(k urlKey) bool {
	s.mu.Lock()
	u := s.get(k)
	full := s.room(u) <= 0
	if !full && u.inFlight < u.live() && len(u.waiting) == 0 {
		u.place(1)
		s.mu.Unlock()
		return true
	}
	if full || !u.worthWaiting() {
		s.mu.Unlock()
		return false
	}
	granted := make(chan bool, 1)
	u.queue(granted)
	s.mu.Unlock()
	return <-granted
}

// worthWaiting estimates the wait of one more from the URL's own latency. Of an unknown URL one round waits.
func (u *share) worthWaiting() bool {
	if u.live() == 0 {
		return false
	}
	if u.latency == 0 {
		return len(u.waiting) < u.limit
	}
	return time.Duration(len(u.waiting)+1)*u.latency/time.Duration(u.live()) <= maxWait
}

// take takes up to n places for backlog, without waiting, and returns how many.
func (s *shares) take(k urlKey, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.get(k)
	n = max(0, min(n, u.limit-u.inFlight, s.room(u)))
	u.place(n)
	return n
}

// pause is how long a drain that got no place should wait before it asks again: hundreds of them may.
func (s *shares) pause(k urlKey) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.get(k)
	if s.room(u) <= 0 {
		return longestDrainPause
	}
	return min(max(u.latency/8, drainPause), longestDrainPause)
}

// leave gives a place back unused.
func (s *shares) leave(k urlKey, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.get(k)
	u.place(-n)
	u.admit()
}

// done gives a place back after an attempt and lets its result move the share.
func (s *shares) done(k urlKey, delivered bool, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.get(k)
	u.place(-1)
	if u.latency == 0 {
		u.latency = took
	}
	u.latency += (took - u.latency) / 8
	u.moved = u.used
	if took < slowAfter {
		u.become(quick)
	} else {
		u.become(slow)
	}
	if delivered {
		if u.streak++; u.streak >= u.limit {
			u.limit, u.streak = min(2*u.limit, s.most), 0
		}
	} else {
		u.limit, u.streak = max(u.limit/2, 1), 0
	}
	u.admit()
}

// admit grants places to those who wait, and refuses the last ones when the wait has become too long.
func (u *share) admit() {
	for len(u.waiting) > 0 && u.inFlight < u.live() {
		u.place(1)
		u.answer(u.waiting[0], true)
		u.waiting = u.waiting[1:]
	}
	for len(u.waiting) > 0 && !u.stillWorth() {
		last := len(u.waiting) - 1
		u.answer(u.waiting[last], false)
		u.waiting = u.waiting[:last]
	}
}

func (u *share) stillWorth() bool {
	return u.live() > 0 && time.Duration(len(u.waiting))*u.latency/time.Duration(u.live()) <= 4*maxWait
}

// restart begins anew with one in flight, for a URL that was resumed: slow start.
func (s *shares) restart(k urlKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.get(k)
	u.limit, u.streak, u.latency = 1, 0, 0
	u.become(unknown)
}

// setBacklog says whether something is parked for the URL.
func (s *shares) setBacklog(k urlKey, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.urls[k]; u != nil || is {
		u = s.get(k)
		u.backlog = is
		u.admit()
	}
}

// forget drops what is idle.
func (s *shares) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, u := range s.urls {
		if u.inFlight == 0 && !u.backlog && time.Since(u.used) > forgetAfter {
			delete(s.urls, k)
			if u.account.urls--; u.account.urls == 0 {
				delete(s.accounts, k.account)
			}
		}
	}
}
