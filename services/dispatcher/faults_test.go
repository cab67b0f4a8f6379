package dispatcher

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/registry"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// life is the way of one notification on which a dispatcher makes a certain write.
type life struct {
	write func(subject string, payload []byte) bool
	// begin starts notification number 1 of the webhook. goOn lets it end after the write; nil: it ends by itself.
	begin, goOn func(r *rig, w *webhook.Webhook, id string)
	refused     string // the attempt that the receiver refuses
	want        notification.State
	alone       bool     // no other dispatcher goes on soon enough
	sent        []string // the numbers of the attempts; one may be made again
}

// published matches the subject of a publish, settled the word of a settlement.
func published(prefix string) func(string, []byte) bool {
	return func(subject string, _ []byte) bool { return strings.HasPrefix(subject, prefix) }
}

func settled(word string) func(string, []byte) bool {
	return func(subject string, payload []byte) bool {
		return strings.HasPrefix(subject, "$JS.ACK.") && bytes.HasPrefix(payload, []byte(word))
	}
}

// Ways in which a life begins and goes on.
func (r *rig) first(w *webhook.Webhook, _ string) { r.notify(w, 1) }

func afterAttempts(done int) func(*rig, *webhook.Webhook, string) {
	return func(r *rig, w *webhook.Webhook, _ string) {
		n := r.newRetry(w, "1")
		n.AttemptsDone = done
		if err := lane.Schedule(r.t.Context(), r.bus, n, time.Now()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// handedOut returns how a message begins that crashed dispatchers have had so often.
func (r *rig) handedOut(puller *lane.Puller, times int) {
	for n := 0; n < times; {
		_, err := puller.Pull(r.t.Context(), 1, bus.Unbounded, func(d *lane.Delivery) {
			n = d.NumDelivered
			d.NakAfter(time.Millisecond)
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) crashed(w *webhook.Webhook, id string) {
	first, err := lane.First(r.t.Context(), r.bus, r.cfg.ackWait())
	if err != nil {
		r.t.Fatal(err)
	}
	r.first(w, id)
	r.handedOut(first, 10)
}

func (r *rig) exhausted(w *webhook.Webhook, id string) {
	retries, err := lane.Retries(r.t.Context(), r.bus, r.cfg.ackWait())
	if err != nil {
		r.t.Fatal(err)
	}
	afterAttempts(1)(r, w, id)
	r.handedOut(retries, 5)
	r.until("the broker has reported it", func() bool {
		if _, err := retries.Pull(r.t.Context(), 1, bus.Unbounded, func(*lane.Delivery) { r.t.Error("it was delivered once more") }); err != nil {
			return false
		}
		s, err := r.bus.StreamState(r.t.Context(), topology.MaxDeliveries)
		return err == nil && s.Messages == 1
	})
}

// forgotten is exhausted without the broker's report. The retries after it are acknowledged.
func (r *rig) forgotten(w *webhook.Webhook, id string) {
	r.exhausted(w, id)
	r.retry(w, "2", time.Now())
	retries, err := lane.Retries(r.t.Context(), r.bus, r.cfg.ackWait())
	if err != nil {
		r.t.Fatal(err)
	}
	for done := false; !done; {
		if _, err := retries.Pull(r.t.Context(), 1, bus.Unbounded, func(d *lane.Delivery) { d.Ack(); done = true }); err != nil {
			r.t.Fatal(err)
		}
	}
	r.until("the acknowledgement has arrived", func() bool {
		n, err := retries.AckPending(r.t.Context())
		return err == nil && n == 0
	})
	reports, err := r.broker.JetStream().Stream(r.t.Context(), topology.MaxDeliveries)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := reports.Purge(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) deleted(w *webhook.Webhook, id string) {
	if _, err := r.webhooks.Put(r.t.Context(), w.Key(), registry.SignDeletion(r.keys, w)); err != nil {
		r.t.Fatal(err)
	}
	r.first(w, id)
}

func (r *rig) suspended(w *webhook.Webhook, id string) {
	r.flag(w, time.Time{})
	r.first(w, id)
}

func (r *rig) resumed(w *webhook.Webhook, id string) {
	r.state(id, notification.Parked)
	r.until("it is on PARKED", func() bool {
		backlogs, err := lane.Backlogs(r.t.Context(), r.bus, w.Account)
		return err == nil && len(backlogs) == 1
	})
	r.resume(w)
}

func (r *rig) resume(w *webhook.Webhook) {
	if err := r.flags.Delete(r.t.Context(), w.Account+"."+w.URLKey, 0); err != nil {
		r.t.Fatal(err)
	}
}

var lives = map[string]life{
	"record":   {write: published("gancho.attempts."), begin: (*rig).first, want: notification.Delivered, sent: []string{"1"}},
	"ack":      {write: settled("+ACK"), begin: (*rig).first, want: notification.Delivered, sent: []string{"1"}},
	"schedule": {write: published("gancho.retries.at."), begin: (*rig).first, refused: "1", want: notification.Delivered, sent: []string{"1", "2"}},
	"postpone": {write: settled("-NAK"), begin: afterAttempts(1), refused: "2", want: notification.Delivered, sent: []string{"2", "3"}},
	"fail":     {write: published("gancho.failed."), begin: afterAttempts(5), refused: "6", want: notification.PermanentlyFailed, sent: []string{"6"}},
	"park":     {write: published("gancho.parked."), begin: (*rig).suspended, goOn: (*rig).resumed, want: notification.Delivered, sent: []string{"1"}},
	"record of parking": {
		write: published("gancho.attempts."), begin: (*rig).suspended, goOn: (*rig).resumed, want: notification.Delivered, sent: []string{"1"},
	},
	"revive":              {write: published("gancho.retries.at."), begin: (*rig).exhausted, want: notification.Delivered, sent: []string{"2"}, alone: true},
	"revive in a sweep":   {write: published("gancho.retries.at."), begin: (*rig).forgotten, want: notification.Delivered, sent: []string{"2"}, alone: true},
	"set aside":           {write: published("gancho.quarantine."), begin: (*rig).crashed, want: notification.PermanentlyFailed},
	"record of set aside": {write: published("gancho.attempts."), begin: (*rig).crashed, want: notification.PermanentlyFailed},
	"record of the end":   {write: published("gancho.attempts."), begin: (*rig).deleted, want: notification.Cancelled},
}

// TestFaults breaks every write of the dispatcher in every way: it is not done or its answer is lost, and the
// dispatcher connects again, or is frozen and wakes up after another one went on; the broker restarts; another record
// comes first. Each time the notification ends once, no attempt is skipped, and nothing is left over. With -short only
// the answer is lost.
func TestFaults(t *testing.T) {
	t.Parallel()
	faults := map[string]func(r *rig) bustest.Break{
		"lost":       func(*rig) bustest.Break { return bustest.Break{Fault: bustest.Lost} },
		"unanswered": func(*rig) bustest.Break { return bustest.Break{Fault: bustest.Unanswered} },
		"lost, the dispatcher freezes": func(*rig) bustest.Break {
			return bustest.Break{Fault: bustest.Lost, Freeze: true}
		},
		"unanswered, the dispatcher freezes": func(*rig) bustest.Break {
			return bustest.Break{Fault: bustest.Unanswered, Freeze: true}
		},
		"the broker restarts": func(r *rig) bustest.Break {
			return bustest.Break{Fault: bustest.Lost, Before: r.broker.Restart}
		},
	}
	for write, l := range lives {
		for fault, of := range faults {
			if l.alone && strings.Contains(fault, "freezes") || testing.Short() && fault != "unanswered" {
				continue
			}
			t.Run(write+"/"+fault, func(t *testing.T) {
				t.Parallel()
				newFaultRig(t, l).live(l, of)
			})
		}
		if !strings.HasPrefix(write, "record") || testing.Short() {
			continue
		}
		t.Run(write+"/another record comes first", func(t *testing.T) {
			t.Parallel()
			l := l
			if l.want = notification.Delivered; write != "record" {
				l.sent = nil
			}
			if l.goOn != nil {
				l.goOn = func(r *rig, w *webhook.Webhook, _ string) { r.resume(w) }
			}
			f := newFaultRig(t, l)
			f.live(l, func(r *rig) bustest.Break {
				return bustest.Break{Fault: bustest.Unanswered, Before: func() {
					rec := f.notification().Record(notification.Position{}, notification.KindAttempt, time.Now())
					rec.Attempted(&notification.Attempt{Number: 1, Outcome: notification.OutcomeDelivered}, nil)
					if _, err := journal.Write(t.Context(), r.bus, rec); err != nil {
						t.Error(err)
					}
				}}
			})
		})
	}
}

// faultRig is a rig whose first dispatcher reaches the broker over a proxy.
type faultRig struct {
	*rig
	w     *webhook.Webhook
	rc    *receiver
	proxy *bustest.Proxy
}

func newFaultRig(t *testing.T, l life) *faultRig {
	t.Helper()
	r := newRig(t, func(c *Config) {
		c.Delivery.Timeout, c.ackWaitOr = 400*time.Millisecond, 600*time.Millisecond
		c.RetryDelays = slices.Repeat([]time.Duration{100 * time.Millisecond}, 5)
	})
	r.log = zap.NewNop() // faults are logged
	rc := newReceiver(t, func(attempt string, w http.ResponseWriter) {
		if attempt == l.refused {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	return &faultRig{r, r.webhook(rc.URL, nil), rc, r.broker.Proxy()}
}

func (f *faultRig) notification() *notification.Notification {
	n := f.newRetry(f.w, "1")
	n.AttemptsDone, n.Moves = 0, 0
	return n
}

// live lets a notification live with a fault and checks how it ended.
func (f *faultRig) live(l life, fault func(*rig) bustest.Break) {
	f.t.Helper()
	id := event.NotificationID(event.ID(f.w.Account, "crm_deal_created", "1"), f.w.UUID)
	b := fault(f.rig)
	f.proxy.Break(&b, l.write)
	direct := f.cfg.Bus.URL
	f.cfg.Bus.URL = f.proxy.URL()
	l.begin(f.rig, f.w, id)
	f.start()
	f.t.Cleanup(f.proxy.Thaw) // else a failed test cannot stop the dispatcher
	stop := f.stop
	<-b.Done
	if b.Freeze {
		f.cfg.Bus.URL = direct
		f.start()
	}
	if l.goOn != nil {
		l.goOn(f.rig, f.w, id)
	}
	f.ended(l, id)
	if b.Freeze {
		f.proxy.Thaw()
		stop() // it first finishes what it had begun
		f.ended(l, id)
	}
}

// ended waits until nothing of the notification is left over, and checks its history.
func (f *faultRig) ended(l life, id string) {
	f.t.Helper()
	last := f.state(id, l.want)
	f.rig.settled()
	f.until("RETRIES and PARKED are empty", func() bool {
		for _, stream := range []string{topology.Retries, topology.Parked} {
			if s, err := f.bus.StreamState(f.t.Context(), stream); err != nil || s.Messages > 0 {
				return false
			}
		}
		return true
	})
	var numbers []int
	for r, err := range journal.History(f.t.Context(), f.bus, last) {
		if err != nil {
			f.t.Fatal(err)
		}
		if r.State.Terminal() && r != last {
			f.t.Errorf("it ended twice: %+v and then %+v", r, last)
		}
		if r.Attempt != nil {
			numbers = append(numbers, r.Attempt.Number)
		}
	}
	if again := f.state(id, l.want); again.Sequence != last.Sequence {
		f.t.Errorf("a record came after the end: %+v", again)
	}
	for i, n := range numbers {
		if n != numbers[0]-i {
			f.t.Errorf("the journal has the attempts %v, newest first", numbers)
		}
	}
	if got := slices.Compact(f.rc.attempts(id)); !slices.Equal(got, l.sent) {
		f.t.Errorf("attempts: got %v, want %v", f.rc.attempts(id), l.sent)
	}
	if _, err := lane.Failed(f.t.Context(), f.bus, f.w.Account, f.w.ID, id); (err == nil) != (l.want == notification.PermanentlyFailed) {
		f.t.Errorf("the payload of a %s notification: %v", l.want, err)
	}
}
