package dispatcher

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var k = urlKey{"acme", "url"}

// try takes a slot for live traffic if one is free now. refused says that waiting for one is not worth it.
func (l *limiter) try(k urlKey) (placed, refused bool) {
	s := l.acquire(k, 0)
	if s.waiting() { // it leaves the line
		u := l.urls[k]
		u.waiting = u.waiting[:len(u.waiting)-1]
		u.drop(amount{1, 0})
		return false, false
	}
	return s != nil, s == nil
}

// enter takes a slot for live traffic and waits for it.
func enter(l *limiter, k urlKey) bool {
	s := l.acquire(k, 0)
	return s != nil && s.wait()
}

// done ends an attempt of an event without a body.
func done(l *limiter, k urlKey, delivered bool, took time.Duration) {
	l.done(&slot{limiter: l, key: k}, delivered, took)
}

// attempts makes n attempts one after another.
func attempts(t *testing.T, s *limiter, n int, delivered bool, took time.Duration) {
	t.Helper()
	for range n {
		if placed, _ := s.try(k); !placed {
			t.Fatal("no place for one after another")
		}
		done(s, k, delivered, took)
	}
}

func limit(s *limiter) int { return s.urls[k].limit }

func TestShareDoublesAndHalves(t *testing.T) {
	t.Parallel()
	s := newLimiter(64, amount{2048, 1 << 40})
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
	s := newLimiter(4, amount{2048, 1 << 40})
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
		s := newLimiter(1, amount{2048, 1 << 40})
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
			done(s, k, true, time.Millisecond)
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
		s := newLimiter(1, amount{2048, 1 << 40})
		attempts(t, s, 1, true, time.Millisecond)
		enter(s, k)
		answers := make(chan bool, 8)
		for range 8 {
			go func() { answers <- enter(s, k) }()
			synctest.Wait()
		}
		done(s, k, false, 60*time.Second) // the average is now far over what a wait may take
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
		done(s, k, false, time.Second)
	})
}

func TestBacklogHasPriority(t *testing.T) {
	t.Parallel()
	s := newLimiter(8, amount{2048, 1 << 40})
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
	for range 8 {
		s.leave(&slot{limiter: s, key: k})
	}
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
		s := newLimiter(8, amount{400, 1 << 40})
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
			done(s, key, true, time.Millisecond)
		}
		if got := flood(300); got != 300 {
			t.Fatalf("alone it got %d of 300", got)
		}
		for i := range 300 {
			done(s, urlKey{"many", strconv.Itoa(i)}, true, time.Millisecond)
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
		done(s, urlKey{"many", "0"}, true, time.Millisecond)
		if len(s.take(over, 5)) != 1 {
			t.Error("the place that became free is not given")
		}
		done(s, few, true, time.Millisecond)
		done(s, few, true, time.Millisecond)
		for k, u := range s.urls {
			for u.inFlight > 0 {
				done(s, k, true, time.Millisecond)
			}
		}
		time.Sleep(aloneAfter + time.Second)
		if got := flood(300); got != 300 {
			t.Errorf("alone again it got %d of 300", got)
		}
		for k, u := range s.urls {
			for u.inFlight > 0 {
				done(s, k, true, time.Millisecond)
			}
		}
		time.Sleep(forgetAfter + time.Second)
		if s.forget(); len(s.urls)+len(s.accounts) > 0 {
			t.Errorf("%d URLs and %d accounts are remembered", len(s.urls), len(s.accounts))
		}
	})
}

// TestSlowURLsLeavePlaces: T12. However many URLs are slow or have not shown how they are, there are places for those
// that answer quickly, and next to slow ones some for new ones.
func TestSlowURLsLeavePlaces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLimiter(8, amount{400, 1 << 40}) // 200 of them for first attempts
		good := urlKey{"acme", "good"}
		s.try(good)
		done(s, good, true, time.Millisecond)
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
					done(s, k, took < slowAfter, took)
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
		done(s, good, true, time.Millisecond)
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
		if got, _ := s.try(good); got || s.all[slow].slots != 108 {
			t.Errorf("one that hangs got another place: %v, %d count as slow", got, s.all[slow].slots)
		}
		settle(time.Millisecond)
		if got := flood(0, 500); got != 250 {
			t.Errorf("of 100 quick, 50 slow and 350 new URLs %d were let in, want 250", got)
		}
		settle(time.Millisecond)

		// Next to another account it is the same with the hundred places that this one has then.
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
			t.Error("a resumed URL does not begin again")
		}
		if s.all != (load{}) {
			t.Errorf("in the end %v are held", s.all)
		}
	})
}

// TestWaitingCountsForTheAccount: a delivery that waits for URLs that nothing is known of takes places of its account,
// so a flood of new URLs that do not answer leaves the others theirs.
func TestWaitingCountsForTheAccount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLimiter(8, amount{400, 1 << 40})
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
				done(s, key, false, 5*time.Second)
			}
		}
		if a := s.accounts["many"]; a.load != (load{}) {
			t.Errorf("in the end %v are held", a.load)
		}
	})
}

// TestBytesCountAsSlotsDo: accounts and paces are held to their part of the bytes, and each may always have one event.
func TestBytesCountAsSlotsDo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const mb = 1 << 20
		l := newLimiter(8, amount{2048, 16 * mb}) // 8 MB for first attempts, 4 MB for each account
		let := func(account string, from, n, bytes int) (slots []*slot) {
			for i := from; i < from+n; i++ {
				if s := l.acquire(urlKey{account, strconv.Itoa(i)}, bytes); s != nil {
					slots = append(slots, s)
				}
			}
			return slots
		}
		alone := let("many", 0, 20, mb)
		if len(alone) != 6 {
			t.Errorf("alone: %d MB were let in, want three quarters of 8", len(alone))
		}
		if got := let("new", 0, 2, mb/2); len(got) != 1 {
			t.Errorf("an account that comes new: %d were let in, want one", len(got))
		}
		for _, s := range alone {
			s.release()
		}
		if got := let("many", 0, 20, mb); len(got) != 3 {
			t.Errorf("beside another: %d MB were let in, want three quarters of 4", len(got))
		}
		if got := let("many", 0, 20, 1); got != nil {
			t.Errorf("%d small events of unmeasured URLs were let in beside them", len(got))
		}
		if got := let("huge", 0, 2, 3*mb); len(got) != 1 {
			t.Errorf("of an account with large events %d were let in, want one", len(got))
		}
	})
}

// TestBacklogIsWeighed: slots for backlog are estimated by the size of the URL's events and then weighed.
func TestBacklogIsWeighed(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	l := newLimiter(8, amount{2048, 16 * mb})
	slots := l.take(k, 8)
	if len(slots) != 8 {
		t.Fatalf("of a URL without history %d were taken, want its limit", len(slots))
	}
	for _, s := range slots {
		s.weigh(mb)
	}
	if held := l.all.total(); held != (amount{8, 8 * mb}) {
		t.Errorf("weighed: %+v are held", held)
	}
	for _, s := range slots {
		s.release()
		s.weigh(mb) // has ended
	}
	if got := len(l.take(k, 8)); got != 6 {
		t.Errorf("of events of 1 MB %d were taken, want 6 of 8 MB", got)
	}
}

func TestAboveTheFairLevel(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		sizes map[string]int64
		part  float64
		want  string
	}{
		"one holds nearly all": {map[string]int64{"a": 95, "b": 3, "c": 2}, 0.9, "[a]"},
		"two hold the most":    {map[string]int64{"a": 50, "b": 40, "c": 10}, 0.8, "[a b]"},
		"all hold the same":    {map[string]int64{"a": 30, "b": 30, "c": 30}, 0.9, "[a b c]"},
		"nothing is known":     {nil, 0.5, "[]"},
		"nothing is held":      {map[string]int64{"a": 0}, 0.5, "[]"},
	} {
		if got := fmt.Sprint(slices.Sorted(maps.Keys(above(tc.sizes, tc.part)))); got != tc.want {
			t.Errorf("%s: got %s, want %s", name, got, tc.want)
		}
	}
}
