package dispatcher

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// mostWithin returns the most of the times, which are in order, that lie in any span of that length.
func mostWithin(times []time.Time, span time.Duration) int {
	most, first := 0, 0
	for i, t := range times {
		for t.Sub(times[first]) >= span {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// TestMomentsKeepTheLimit plays dispatchers that reserve moments in turn, use them late, die, freeze and idle: no
// minute holds more requests than the limit.
func TestMomentsKeepTheLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2, 3, 7, 20, 59, 60, 61, 600, 6000, webhook.MostPerMinute} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			dice := rand.New(rand.NewPCG(uint64(limit), 1))
			now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
			end := now.Add(max(10*time.Minute, 40*between(limit)))
			if limit > 600 {
				end = now.Add(3 * time.Minute)
			}
			p := &timetable{every: between(limit), batch: 1}
			var sent []time.Time
			for now.Before(end) {
				switch dice.IntN(200) {
				case 0: // it dies, and another one reads on
					p = &timetable{every: between(limit), batch: 1, last: p.last}
				case 1: // frozen, or nothing waits
					now = now.Add(time.Duration(dice.Int64N(int64(90 * time.Second))))
				}
				turns, wait := p.hand(nil, 1+dice.IntN(100), now)
				for _, own := range turns {
					at := now.Add(time.Duration(dice.Int64N(int64(2 * momentLate)))) // a request that begins late
					if dice.IntN(2) == 0 {
						at = now
					}
					if at.Before(own.at) {
						at = own.at
					}
					switch {
					case at.Sub(own.at) > momentLate: // use refuses
					case dice.IntN(10) == 0:
						own.release()
					default:
						sent = append(sent, at)
					}
				}
				if wait > 0 {
					now = now.Add(wait + time.Duration(dice.Int64N(int64(time.Millisecond))))
				} else if len(turns) == 0 {
					if moments := following(p.last, now, p.every, p.batch); len(moments) > 0 {
						p.moments, p.last, p.batch = append(p.moments, moments...), moments[len(moments)-1], 2*len(moments)
					}
				}
			}
			slices.SortFunc(sent, time.Time.Compare)
			if most := mostWithin(sent, time.Minute); most > limit || len(sent) == 0 {
				t.Errorf("of %d requests %d are within a minute", len(sent), most)
			}
		})
	}
}

// TestMomentsReachTheLimit: while enough waits, moments are used up to a quarter of a second late, and the broker takes
// up to 50 ms for a reservation, every minute holds at least 95 % of the limit, as far as that is a whole number.
func TestMomentsReachTheLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2, 7, 20, 60, 100, 600, 6000, webhook.MostPerMinute} {
		dice := rand.New(rand.NewPCG(uint64(limit), 2))
		began := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
		now := began
		p := &timetable{every: between(limit), batch: 1}
		var sent []time.Time
		for now.Before(began.Add(20 * time.Minute)) {
			turns, wait := p.hand(nil, 64, now)
			for _, own := range turns {
				at := now
				if at.Before(own.at) {
					at = own.at
				}
				sent = append(sent, at)
			}
			switch {
			case wait > 0:
				now = now.Add(wait + time.Duration(dice.Int64N(int64(250*time.Millisecond))))
			case len(turns) == 0:
				moments := following(p.last, now, p.every, p.batch)
				p.moments, p.last, p.batch = append(p.moments, moments...), moments[len(moments)-1], 2*len(moments)
				now = now.Add(time.Duration(dice.Int64N(int64(50 * time.Millisecond))))
			}
			if limit == webhook.MostPerMinute && now.After(began.Add(3*time.Minute)) {
				break
			}
		}
		slices.SortFunc(sent, time.Time.Compare)
		least := limit
		for from, to, first := began, began.Add(time.Minute), 0; !to.After(sent[len(sent)-1]); from, to = from.Add(777*time.Millisecond), to.Add(777*time.Millisecond) {
			for sent[first].Before(from) {
				first++
			}
			n, _ := slices.BinarySearchFunc(sent, to, time.Time.Compare)
			least = min(least, n-first)
		}
		if want := limit * 95 / 100; least < want && limit >= 20 || least < limit-1 && limit < 20 {
			t.Errorf("limit %d: a minute holds only %d requests, want at least %d", limit, least, want)
		}
		if average := float64(len(sent)-1) / sent[len(sent)-1].Sub(began).Minutes(); average < 0.95*float64(limit) {
			t.Errorf("limit %d: %.2f requests per minute", limit, average)
		}
	}
}

// TestTimetable: two processes that both believe to hold the lease never have the same moment, and a frozen one has
// none when it wakes up.
func TestTimetable(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	bucket, err := b.Bucket(t.Context(), topology.BucketPaces)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 6000
	var mu sync.Mutex
	var moments []time.Time
	var running sync.WaitGroup
	for range 3 {
		running.Go(func() {
			p, err := openTimetable(t.Context(), bucket, "acme.url", limit)
			for enough := false; err == nil && !enough; {
				var turns []*turn
				var wait time.Duration
				turns, wait, err = p.turns(t.Context(), 4)
				mu.Lock()
				for _, own := range turns {
					moments = append(moments, own.at)
				}
				enough = len(moments) >= 150
				mu.Unlock()
				sleep.For(t.Context(), wait)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	slices.SortFunc(moments, time.Time.Compare)
	for i, at := range moments {
		if i > 0 && at.Sub(moments[i-1]) < between(limit) {
			t.Fatalf("the moments %v and %v are %v apart, want %v", moments[i-1], at, at.Sub(moments[i-1]), between(limit))
		}
	}
	p, err := openTimetable(t.Context(), bucket, "acme.frozen", limit)
	if err != nil {
		t.Fatal(err)
	}
	turns, _, err := p.turns(t.Context(), 1)
	if err != nil || len(turns) != 1 {
		t.Fatal(turns, err)
	}
	own := turns[0]
	own.at = own.at.Add(-momentLate - time.Millisecond) // as if the process had been frozen since
	if own.use() {
		t.Error("a moment is used that has passed")
	}
	own.used = false
	if err := own.wait(t.Context()); err != nil || !own.use() {
		t.Errorf("a turn that missed its moment gets no other: %v", err)
	}
	p.last = time.Now().Add(time.Hour) // of a clock that was wrong
	if _, wait, err := p.turns(t.Context(), 1); err != nil || wait > between(limit) {
		t.Errorf("after a clock was wrong the next moment is in %v, %v", wait, err)
	}
}

// counter is a receiver that notes when each request came.
type counter struct {
	*httptest.Server

	mu    sync.Mutex
	times []time.Time
	ids   []string
}

func newCounter(t testing.TB, status func(attempt string) int) *counter {
	t.Helper()
	c := &counter{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		c.mu.Lock()
		c.times, c.ids = append(c.times, time.Now()), append(c.ids, req.Header.Get("Webhook-Id"))
		c.mu.Unlock()
		w.WriteHeader(status(req.Header.Get("Gancho-Attempt")))
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *counter) seen() ([]time.Time, []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.times), slices.Clone(c.ids)
}

func accepts(string) int { return http.StatusOK }

func perMinute(n int) func(*webhook.Webhook) {
	return func(w *webhook.Webhook) { w.MaxPerMinute = n }
}

// TestPaceOverDispatchers: three dispatchers together keep to the limit of a URL and deliver everything; one that
// drains it is cut off, and sends nothing more than its turn when it comes back. How much of the limit is used depends
// on the machine here: TestMomentsReachTheLimit shows that.
func TestPaceOverDispatchers(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a lease must run out")
	}
	t.Parallel()
	const limit, events = 600, 200
	r := newRig(t, nil)
	r.log = zap.NewNop() // faults are logged
	c := newCounter(t, accepts)
	w := r.webhook(c.URL, perMinute(limit))
	direct := r.cfg.Bus.URL
	proxy, count := r.broker.Proxy(), 0
	cut := &bustest.Break{Fault: bustest.Unanswered, Freeze: true}
	proxy.Break(cut, func(subject string, _ []byte) bool {
		if strings.HasPrefix(subject, "$KV.PACES.") {
			count++
		}
		return count == 8
	})
	r.cfg.Bus.URL = proxy.URL()
	r.start()
	t.Cleanup(proxy.Thaw) // else it cannot stop
	var ids []string
	for i := range events {
		ids = append(ids, r.notify(w, i))
	}
	<-cut.Done // it drains
	began, _ := c.seen()
	frozen := time.Since(began[0])
	r.cfg.Bus.URL = direct
	r.start()
	r.start()
	r.until("another one drains", func() bool {
		times, _ := c.seen()
		return len(times) > 0 && time.Since(times[len(times)-1]) < 100*time.Millisecond && time.Since(times[0]) > frozen+2*topology.LeaseTTL
	})
	proxy.Thaw()
	for _, id := range ids {
		r.state(id, notification.Delivered)
	}
	times, seen := c.seen()
	const span = 5 * time.Second
	most := int((span + momentLate) / between(limit))
	if got := mostWithin(times, span); got > most+1 {
		t.Errorf("%d requests within %v, want at most %d", got, span, most+1)
	}
	first := map[string]int{}
	for at, id := range seen {
		if _, again := first[id]; !again {
			first[id] = at
		}
	}
	t.Logf("%d requests for %d notifications, at most %d within %v (of %d)", len(times), len(first), mostWithin(times, span), span, most+1)
}

// TestPaceOfRetriesAndOrder: retries take turns too, attempts are counted as ever, and the oldest goes first.
func TestPaceOfRetriesAndOrder(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	r := newRig(t, func(c *Config) { c.MaxInFlightPerURL = 1 }) // order is kept up to the requests in flight
	c := newCounter(t, func(attempt string) int {
		if attempt < "3" {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	const limit, events = 1200, 20
	w := r.webhook(c.URL, perMinute(limit))
	other := newReceiver(t, ok)
	free := r.webhook(other.URL, nil)
	r.start()
	r.state(r.notify(free, 1), notification.Delivered) // those that are older than the dispatcher have no order
	var ids []string
	for i := range events {
		ids = append(ids, r.notify(w, i))
	}
	if last := r.state(r.notify(free, 2), notification.Delivered); last.Previous != 0 {
		t.Errorf("a URL without a limit pays for that of another: %+v", last)
	}
	for _, id := range ids {
		last := r.state(id, notification.Delivered)
		var numbers []int
		for h, err := range journal.History(t.Context(), r.bus, last) {
			if err != nil {
				t.Fatal(err)
			}
			if h.Attempt != nil {
				numbers = append(numbers, h.Attempt.Number)
			}
		}
		if !slices.Equal(numbers, []int{3, 2, 1}) {
			t.Errorf("the history of %s has the attempts %v, want 3 to 1", id, numbers)
		}
	}
	times, seen := c.seen()
	if len(times) != 3*events {
		t.Errorf("%d requests, want %d", len(times), 3*events)
	}
	if took, least := times[len(times)-1].Sub(times[0]), time.Duration(len(times)-1)*between(limit)-momentLate; took < least {
		t.Errorf("%d requests took %v, want at least %v", len(times), took, least)
	}
	var firsts []string
	for _, id := range seen {
		if !slices.Contains(firsts, id) {
			firsts = append(firsts, id)
		}
	}
	if !slices.Equal(firsts, ids) {
		t.Errorf("first attempts were not made in the order of their events: %v, want %v", firsts, ids)
	}
}

// clock waits until another URL, of 600 requests per minute, has got n. Its dispatcher has then seen all changes of
// webhooks before it.
func (r *rig) clock(n int) {
	r.t.Helper()
	c := newCounter(r.t, accepts)
	w := r.webhook(c.URL, perMinute(600))
	for i := range n {
		r.notify(w, i)
	}
	r.until("a clock has gone", func() bool { times, _ := c.seen(); return len(times) >= n })
}

// TestLimitChangesWhileMoreWaits: a lower limit, one of another webhook of the URL, and none count at once.
func TestLimitChangesWhileMoreWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	c := newCounter(t, accepts)
	w := r.webhook(c.URL, nil)
	second := r.webhook(c.URL, perMinute(600))
	r.start()
	var ids []string
	for i := range 60 {
		ids = append(ids, r.notify(w, i))
	}
	r.until("some are sent", func() bool { times, _ := c.seen(); return len(times) >= 20 })
	before, _ := c.seen()
	if took, least := before[19].Sub(before[0]), 19*between(600)-momentLate; took < least {
		t.Errorf("20 requests took %v at a limit of 600 per minute, want at least %v", took, least)
	}
	r.put(second, perMinute(1))
	r.clock(5) // it may hold a turn of the old pace
	before, _ = c.seen()
	r.clock(10)
	after, _ := c.seen()
	if n := len(after) - len(before); n > 1 || len(after) == len(ids) {
		t.Errorf("%d requests at a limit of one per minute, while another URL got 10, %d in all", n, len(after))
	}
	r.put(second, perMinute(0))
	for _, id := range ids {
		r.state(id, notification.Delivered) // with the limit they would take most of an hour
	}
}

// TestProbeTakesATurn: the probe of a suspended URL with a limit counts as one of its requests.
func TestProbeTakesATurn(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	c := newCounter(t, accepts)
	w := r.webhook(c.URL, perMinute(2))
	f := r.flag(w, time.Now().Add(-time.Second))
	r.start()
	first, second := r.notify(w, 1), r.notify(w, 2)
	r.until("the probe was made", func() bool { times, _ := c.seen(); return len(times) == 1 })
	if err := r.flags.Delete(t.Context(), f.Key().String(), 0); err != nil {
		t.Fatal(err)
	}
	if _, seen := c.seen(); seen[0] == second { // those that are older than the dispatcher have no order
		first, second = second, first
	}
	r.state(first, notification.Delivered)
	r.state(second, notification.Parked)
	r.clock(10) // long enough for a release
	if times, _ := c.seen(); len(times) != 1 {
		t.Errorf("%d requests within seconds at a limit of two per minute", len(times))
	}
	r.put(w, perMinute(0))
	r.state(second, notification.Delivered)
}
