package main

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probeEvery is how often the machine's speed is looked at; one look is probeWork steps, some 30 µs.
	probeEvery = 2 * time.Millisecond
	probeWork  = 20_000
	// stalledAt is how many times longer than usual a look takes while the machine is being held up.
	stalledAt = 2
	// aftermath is how long after such a look its queues may still be emptying.
	aftermath = 50 * time.Millisecond
)

// machine notes when the machine itself was slow. A shared host takes its virtual processors away for a while;
// a guest that cannot see this finds that the same work costs several times its processor time. It looks for
// that: the processor time, not the elapsed time, of a fixed piece of work, which waiting for a processor that
// our own processes use does not lengthen.
type machine struct {
	mu    sync.Mutex
	looks []look
	mixed uint64 // the result of the work, so that the compiler leaves it in
}

type look struct {
	at   int64 // Unix nanoseconds of its end
	cost time.Duration
}

// watch looks for as long as the process lives.
func (m *machine) watch() {
	runtime.LockOSThread()
	x := uint64(1)
	for ; ; time.Sleep(probeEvery) {
		before := threadTime()
		for range probeWork {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		cost := threadTime() - before
		m.mu.Lock()
		m.looks, m.mixed = append(m.looks, look{time.Now().UnixNano(), cost}), x
		m.mu.Unlock()
	}
}

func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// reset forgets all samples.
func (m *machine) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks = nil
}

// stalls returns the times at which the machine was slow, in order.
func (m *machine) stalls() (at []int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.looks) == 0 {
		return nil
	}
	costs := make([]time.Duration, len(m.looks))
	for i, l := range m.looks {
		costs[i] = l.cost
	}
	slices.Sort(costs)
	usual := costs[len(costs)/2]
	for _, l := range m.looks {
		if l.cost > stalledAt*usual {
			at = append(at, l.at)
		}
	}
	return at
}

// during reports whether one of the stalls, which are in order, touched the time from begin to end.
func during(stalls []int64, begin, end int64) bool {
	i, _ := slices.BinarySearch(stalls, begin-int64(aftermath))
	return i < len(stalls) && stalls[i] <= end
}
