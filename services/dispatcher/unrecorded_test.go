package dispatcher

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/notification"
)

// begun starts n requests and returns those that may be made now, in order, and how many wait.
func begun(u *unrecorded, near bool, n int) ([]*request, int) {
	var mu sync.Mutex
	var made []*request
	for range n {
		go func() {
			r := u.begin(near)
			mu.Lock()
			defer mu.Unlock()
			made = append(made, r)
		}()
		synctest.Wait()
	}
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(made), u.held()
}

// held returns how many requests wait.
func (u *unrecorded) held() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.waiting)
}

func TestUnrecordedIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var u unrecorded
		made, waiting := begun(&u, true, mostUnrecorded+2)
		if len(made) != mostUnrecorded || waiting != 2 {
			t.Fatalf("of near receivers: %d made, %d wait; want %d and 2", len(made), waiting, mostUnrecorded)
		}
		for _, r := range made {
			r.answered()
		}
		if synctest.Wait(); u.held() != 2 {
			t.Error("an answer that is not recorded made room")
		}
		for i, r := range made {
			r.recorded()
			if synctest.Wait(); u.held() != max(1-i, 0) {
				t.Fatalf("after %d records %d wait", i+1, u.held())
			}
		}
		if u.count != 2 {
			t.Errorf("%d are counted, want the two that have begun last", u.count)
		}
	})
}

func TestFarReceiversCountOnceAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var u unrecorded
		made, waiting := begun(&u, false, 3*mostUnrecorded)
		if waiting != 0 {
			t.Fatalf("%d requests to far receivers wait for one another", waiting)
		}
		for _, r := range made[:mostUnrecorded] {
			r.answered()
		}
		if _, waiting = begun(&u, false, 1); waiting != 1 {
			t.Error("a request was made while too many are not recorded")
		}
		made[mostUnrecorded].recorded() // it was given up without an answer
		if synctest.Wait(); u.held() != 1 {
			t.Error("a request that was never counted made room")
		}
		made[0].recorded()
		if synctest.Wait(); u.held() != 0 {
			t.Error("a record made no room")
		}
	})
}

func TestHangingNearReceiverHoldsNothingUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var u unrecorded
		made, _ := begun(&u, true, mostUnrecorded)
		began := time.Now()
		last, waiting := begun(&u, true, 1)
		if waiting != 1 {
			t.Fatal("there was room")
		}
		for u.held() > 0 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if d := time.Since(began); d < patience || d > 2*patience {
			t.Errorf("it was held up for %s", d)
		}
		for _, r := range append(made, last...) {
			r.answered()
			r.recorded()
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.count != 1 || len(u.near) != 1 { // begun returned before the last one could
			t.Errorf("%d counted, %d near, after all but one are recorded", u.count, len(u.near))
		}
	})
}

// TestCutOffDispatcherSendsNothing: a dispatcher that lost the broker for an ack wait makes no request for the
// notifications that it holds: another one has them.
func TestCutOffDispatcherSendsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) {
		c.Delivery.Timeout, c.ackWaitOr, c.MaxInFlightPerURL = 30*time.Second, 600*time.Millisecond, 1
	})
	r.log = zap.NewNop() // the fault is logged
	answer := make(chan struct{})
	release := sync.OnceFunc(func() { close(answer) })
	defer release()
	var requests atomic.Int64
	rc := newReceiver(t, func(string, http.ResponseWriter) {
		if requests.Add(1) == 1 {
			<-answer
		}
	})
	w := r.webhook(rc.URL, nil)
	proxy, direct := r.broker.Proxy(), r.cfg.Bus.URL
	cut := bustest.Break{Fault: bustest.Lost, Freeze: true}
	proxy.Break(&cut, settled("+WPI"))
	r.cfg.Bus.URL = proxy.URL()
	r.start()
	t.Cleanup(proxy.Thaw)
	stop := r.stop
	one := r.notify(w, 1)
	r.until("the first request is under way", func() bool { return rc.total() == 1 })
	two := r.notify(w, 2) // it waits in line for the only slot
	<-cut.Done
	r.cfg.Bus.URL = direct
	r.start()
	r.state(one, notification.Delivered)
	r.state(two, notification.Delivered)
	release() // the slot is free
	proxy.Thaw()
	stop()
	if got := rc.attempts(two); !slices.Equal(got, []string{"1"}) {
		t.Errorf("attempts of the one that waited: %v", got)
	}
}
