package dispatcher

import (
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var k = urlKey{"acme", "url"}

// try takes a slot for live traffic if one is free now. refused says that waiting for one is not worth it.
func (l *limiter) try(k urlKey) (placed, refused bool) {
	s := l.acquire(k)
	if s.waiting() { // it leaves the line
		u := l.urls[k]
		u.waiting = u.waiting[:len(u.waiting)-1]
		u.hold(-1, u.pace)
		return false, false
	}
	return s != nil, s == nil
}

// enter takes a slot for live traffic and waits for it.
func enter(l *limiter, k urlKey) bool {
	s := l.acquire(k)
	return s != nil && s.wait()
}

// attempts makes n attempts one after another.
func attempts(t *testing.T, s *limiter, n int, delivered bool, took time.Duration) {
	t.Helper()
	for range n {
		if placed, _ := s.try(k); !placed {
			t.Fatal("no place for one after another")
		}
		s.done(k, delivered, took)
	}
}

func limit(s *limiter) int { return s.urls[k].limit }

func TestShareDoublesAndHalves(t *testing.T) {
	t.Parallel()
	s := newLimiter(64, 2048)
	attempts(t, s, startLimit-1, true, time.Millisecond)
	if limit(s) != startLimit {
		t.Errorf("before a clean round has ended: got %d", limit(s))
	}
	attempts(t, s, 1, true, time.Millisecond)
	if limit(s) != 2*startLimit {
		t.Errorf("after a clean round: got %d, want %d", limit(s), 2*startLimit)
	}
	attempts(t, s, 1000, true, time.Millisecond)
	if limit(s) != 64 {
		t.Errorf("at most: got %d, want 64", limit(s))
	}
	attempts(t, s, 1, false, 5*time.Second)
	if limit(s) != 32 {
		t.Errorf("after a failure: got %d, want 32", limit(s))
	}
	attempts(t, s, 20, false, 5*time.Second)
	if limit(s) != 1 {
		t.Errorf("at least: got %d, want 1", limit(s))
	}
	attempts(t, s, 1, true, time.Millisecond)
	if limit(s) != 2 {
		t.Errorf("one good attempt is a clean round of one: got %d, want 2", limit(s))
	}
}

func TestSlowURLIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	s := newLimiter(4, 2048)
	attempts(t, s, 1, true, 4900*time.Millisecond)
	for range limit(s) {
		if placed, _ := s.try(k); !placed {
			t.Fatal("its share is free")
		}
	}
	if placed, refused := s.try(k); placed || !refused {
		t.Errorf("over its share: placed %v, refused %v", placed, refused)
	}
	if enter(s, k) {
		t.Error("entered over its share")
	}
}

func TestFastURLWaitsInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLimiter(1, 2048)
		attempts(t, s, 1, true, time.Millisecond)
		if !enter(s, k) {
			t.Fatal("its share is free")
		}
		order := make(chan int, 3)
		for i := range 3 {
			go func() {
				if enter(s, k) {
					order <- i
				}
			}()
			synctest.Wait()
		}
		for i := range 3 {
			s.done(k, true, time.Millisecond)
			synctest.Wait()
			if got := <-order; got != i {
				t.Errorf("place %d went to %d", i, got)
			}
		}
	})
}

func TestWaitingIsRefusedWhenTheURLBecomesSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLimiter(1, 2048)
		attempts(t, s, 1, true, time.Millisecond)
		enter(s, k)
		answers := make(chan bool, 8)
		for range 8 {
			go func() { answers <- enter(s, k) }()
			synctest.Wait()
		}
		s.done(k, false, 60*time.Second) // the average is now far over what a wait may take
		synctest.Wait()
		refused := 0
		for len(answers) > 0 {
			if !<-answers {
				refused++
			}
		}
		if refused != 7 { // one has the place that became free
			t.Errorf("%d of 8 were refused, want 7", refused)
		}
		s.done(k, false, time.Second)
	})
}

func TestBacklogHasPriority(t *testing.T) {
	t.Parallel()
	s := newLimiter(8, 2048)
	s.setBacklog(k, true)
	live := 0
	for {
		placed, _ := s.try(k)
		if !placed {
			break
		}
		live++
	}
	if live != 4 {
		t.Errorf("live traffic beside a backlog: got %d of 8, want half", live)
	}
	if got := len(s.take(k, 100)); got != 4 {
		t.Errorf("the backlog takes %d, want the other 4", got)
	}
	s.leave(k, 8)
	s.restart(k) // resumed: slow start
	if placed, refused := s.try(k); placed || !refused {
		t.Error("live traffic must not overtake the backlog of a share of one")
	}
	if got := len(s.take(k, 100)); got != 1 {
		t.Errorf("slow start takes %d, want 1", got)
	}
}

func TestScheduleDelay(t *testing.T) {
	t.Parallel()
	s := schedule{delays: []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}, jitter: 0.2, maxAfter: time.Hour}
	for name, tc := range map[string]struct {
		retry     int
		after     time.Duration
		low, high time.Duration
	}{
		"first":                      {1, 0, 8 * time.Second, 12 * time.Second},
		"last":                       {5, 0, 96 * time.Minute, 144 * time.Minute},
		"Retry-After lengthens":      {1, time.Minute, time.Minute, 72 * time.Second},
		"Retry-After never shortens": {3, time.Second, 4 * time.Minute, 6 * time.Minute},
		"Retry-After has a limit":    {1, 24 * time.Hour, time.Hour, 72 * time.Minute},
	} {
		for range 1000 {
			if got := s.delay(tc.retry, tc.after); got < tc.low || got > tc.high {
				t.Fatalf("%s: got %v, want %v to %v", name, got, tc.low, tc.high)
			}
		}
	}
}

// TestOneAccountLeavesPlaces: an account with very many URLs takes at most a quarter of MAX_IN_FLIGHT while
// another has traffic, and all when it is alone.
func TestOneAccountLeavesPlaces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLimiter(8, 400)
		flood := func(n int) (placed int) {
			for i := range n {
				k := urlKey{"many", strconv.Itoa(i)}
				if got, _ := s.try(k); got {
					placed++
				}
			}
			return placed
		}
		for i := range 300 { // known to be quick
			key := urlKey{"many", strconv.Itoa(i)}
			s.try(key)
			s.done(key, true, time.Millisecond)
		}
		if got := flood(300); got != 300 {
			t.Fatalf("alone it got %d of 300", got)
		}
		for i := range 300 {
			s.done(urlKey{"many", strconv.Itoa(i)}, true, time.Millisecond)
		}
		few := urlKey{"few", "url"}
		if got, _ := s.try(few); !got {
			t.Fatal("no place for another account")
		}
		if got := flood(300); got != 100 {
			t.Errorf("beside another it got %d, want 100 of 400", got)
		}
		over := urlKey{"many", "one more"}
		if placed, refused := s.try(over); placed || !refused {
			t.Errorf("one more: placed %v, refused %v", placed, refused)
		}
		if enter(s, over) || len(s.take(over, 1)) != 0 {
			t.Error("one more was let in")
		}
		if got, _ := s.try(few); !got {
			t.Error("the other account is held up")
		}
		s.done(urlKey{"many", "0"}, true, time.Millisecond)
		if len(s.take(over, 5)) != 1 {
			t.Error("the place that became free is not given")
		}
		s.done(few, true, time.Millisecond)
		s.done(few, true, time.Millisecond)
		for k, u := range s.urls {
			for u.inFlight > 0 {
				s.done(k, true, time.Millisecond)
			}
		}
		time.Sleep(aloneAfter + time.Second)
		if got := flood(300); got != 300 {
			t.Errorf("alone again it got %d of 300", got)
		}
		for k, u := range s.urls {
			for u.inFlight > 0 {
				s.done(k, true, time.Millisecond)
			}
		}
		time.Sleep(forgetAfter + time.Second)
		if s.forget(); len(s.urls)+len(s.accounts) > 0 {
			t.Errorf("%d URLs and %d accounts are remembered", len(s.urls), len(s.accounts))
		}
	})
}

// TestSlowURLsLeavePlaces: T12. However many URLs are slow or have not shown how they are, there are places for those
// that answer quickly, and beside slow ones some for new ones.
func TestSlowURLsLeavePlaces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLimiter(8, 400) // 200 of them for first attempts
		good := urlKey{"acme", "good"}
		s.try(good)
		s.done(good, true, time.Millisecond)
		drip := func(i int) urlKey { return urlKey{"acme", strconv.Itoa(i)} }
		flood := func(from, n int) (placed int) {
			for i := from; i < from+n; i++ {
				if got, refused := s.try(drip(i)); got {
					placed++
				} else if !refused {
					t.Fatal("it is left to wait")
				}
			}
			return placed
		}
		settle := func(took time.Duration) {
			for k, u := range s.urls {
				for u.inFlight > 0 {
					s.done(k, took < slowAfter, took)
				}
			}
		}
		if got := flood(0, 500); got != 150 {
			t.Errorf("of new URLs %d were let in, want three quarters of 200", got)
		}
		time.Sleep(5 * time.Second)
		if got, _ := s.try(good); !got {
			t.Error("a quick URL is held up")
		}
		s.done(good, true, time.Millisecond)
		settle(5 * time.Second)
		if got := flood(0, 150); got != 100 {
			t.Errorf("of slow URLs %d were let in, want half of 200", got)
		}
		if enter(s, drip(140)) || len(s.take(drip(140), 8)) != 0 {
			t.Error("a slow URL was let in beside a hundred others")
		}
		if got := flood(1000, 100); got != 50 {
			t.Errorf("beside them %d new URLs were let in, want 50", got)
		}
		for i := range 8 {
			if got, _ := s.try(good); !got {
				t.Errorf("a quick URL is held up at its place %d", i)
			}
		}
		// A quick one of which nothing ends for a second counts as slow, those in flight too.
		time.Sleep(slowAfter)
		if got, _ := s.try(good); got || s.all[slow] != 108 {
			t.Errorf("one that hangs got another place: %v, %d count as slow", got, s.all[slow])
		}
		settle(time.Millisecond)
		if got := flood(0, 500); got != 250 {
			t.Errorf("of 100 quick, 50 slow and 350 new URLs %d were let in, want 250", got)
		}
		settle(time.Millisecond)

		// Beside another account it is the same with the hundred places that this one has then.
		few := urlKey{"few", "url"}
		s.try(few)
		if got := flood(2000, 100); got != 75 {
			t.Errorf("beside another account %d new URLs were let in, want 75", got)
		}
		for i := range 8 {
			if got, _ := s.try(good); !got {
				t.Errorf("a quick URL of the account is held up at its place %d", i)
			}
		}
		settle(time.Millisecond)
		s.restart(drip(0))
		if s.urls[drip(0)].pace != unknown {
			t.Error("a resumed URL does not begin anew")
		}
		if s.all != (load{}) {
			t.Errorf("in the end %v are held", s.all)
		}
	})
}

// TestWaitingCountsForTheAccount: what waits for URLs that nothing is known of takes places of its account, so a flood
// of new URLs that do not answer leaves the others theirs.
func TestWaitingCountsForTheAccount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLimiter(8, 400)
		few := urlKey{"few", "url"}
		if !enter(s, few) {
			t.Fatal("no place for another account")
		}
		var let, refused atomic.Int64
		for range 24 { // of each URL 8 are let in, and as many would wait
			for i := range 10 {
				go func() {
					if enter(s, urlKey{"many", strconv.Itoa(i)}) {
						let.Add(1)
					} else {
						refused.Add(1)
					}
				}()
				synctest.Wait()
			}
		}
		if held := 240 - refused.Load(); held != 75 {
			t.Errorf("%d of 240 are held (%d in flight), want three quarters of 100", held, let.Load())
		}
		if !enter(s, few) {
			t.Error("the other account is held up")
		}
		for i := range 10 { // they fail, and what waits is let in or refused
			for key := (urlKey{"many", strconv.Itoa(i)}); s.urls[key].inFlight > 0; synctest.Wait() {
				s.done(key, false, 5*time.Second)
			}
		}
		if a := s.accounts["many"]; a.load != (load{}) {
			t.Errorf("in the end %v are held", a.load)
		}
	})
}
