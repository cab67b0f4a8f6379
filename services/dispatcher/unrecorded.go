package dispatcher

import (
	"sync"
	"time"
)

const (
	// mostUnrecorded bounds the attempts that a crash repeats although they were answered.
	mostUnrecorded = 96
	// nearBelow is the duration of an attempt below which a receiver counts as near: one whose answer is there before
	// it is seen, when this machine is busy.
	nearBelow = 5 * time.Millisecond
	// patience is how long a near receiver's answer is expected.
	patience = 50 * time.Millisecond
)

// unrecorded holds requests back while too many are answered whose outcomes the journal does not have yet. Those to
// near receivers count from their beginning: on a busy machine their answers wait in the sockets. Others count once
// they are answered, so that far and slow receivers are limited by their own shares alone.
//
// It is safe for concurrent use. The zero value is ready.
type unrecorded struct {
	mu      sync.Mutex
	count   int
	near    []*request // in flight to near receivers, the oldest first; those answered since are taken off late
	waiting []*request // in order
	timer   *time.Timer
}

// request is one attempt on its way into the journal.
type request struct {
	all      *unrecorded
	near     bool
	began    time.Time
	inFlight bool
	counted  bool
	granted  chan struct{} // closed when one that waits may begin
}

// begin returns once a request may be made.
func (u *unrecorded) begin(near bool) *request {
	r := &request{all: u, near: near}
	u.mu.Lock()
	if len(u.waiting) == 0 && u.count < mostUnrecorded {
		u.start(r)
		u.mu.Unlock()
		return r
	}
	r.granted = make(chan struct{})
	u.waiting = append(u.waiting, r)
	if u.timer == nil {
		u.timer = time.AfterFunc(patience, u.lose)
	}
	u.mu.Unlock()
	<-r.granted
	return r
}

// start counts a request that begins. The caller holds mu.
func (u *unrecorded) start(r *request) {
	r.began, r.inFlight = time.Now(), true
	if r.near {
		r.counted = true
		u.count++
		u.near = append(u.near, r)
	}
}

// answered notes that the request has ended.
func (r *request) answered() {
	u := r.all
	u.mu.Lock()
	defer u.mu.Unlock()
	r.inFlight = false
	if !r.counted {
		r.counted = true
		u.count++
	}
	for len(u.near) > 0 && !u.near[0].inFlight {
		u.near[0], u.near = nil, u.near[1:]
	}
}

// recorded notes that a crash repeats the request no more, or that none was made.
func (r *request) recorded() {
	u := r.all
	u.mu.Lock()
	defer u.mu.Unlock()
	r.inFlight = false
	if r.counted {
		r.counted = false
		u.count--
	}
	u.admit()
}

// lose stops counting near requests that are not answered in time: their receivers hang.
func (u *unrecorded) lose() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(u.near) > 0 && (!u.near[0].inFlight || time.Since(u.near[0].began) >= patience) {
		if r := u.near[0]; r.inFlight {
			r.counted = false
			u.count--
		}
		u.near[0], u.near = nil, u.near[1:]
	}
	u.admit()
	u.timer = nil
	if len(u.waiting) > 0 {
		u.timer = time.AfterFunc(patience/4, u.lose)
	}
}

// admit lets requests begin that wait. The caller holds mu.
func (u *unrecorded) admit() {
	for len(u.waiting) > 0 && u.count < mostUnrecorded {
		r := u.waiting[0]
		u.waiting[0], u.waiting = nil, u.waiting[1:]
		u.start(r)
		close(r.granted)
	}
}
