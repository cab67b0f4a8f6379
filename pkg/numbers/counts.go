// Package numbers counts what happened: events, notifications, attempts and what conditions held back, by account,
// webhook and minute.
//
// # Exact, and kept
//
// Each count is of messages in streams: records of the journal, messages on NOTIFICATIONS, CRM_EVENTS and HELD. A slice
// holds the counts between two positions of these streams. It is one message on the stream NUMBERS, written on top of
// the slice before it (compare-and-set), and it holds the positions up to which it counts. So a message is counted
// once, however many processes count and whenever one of them dies, and a loss of Redis changes nothing. Hours that
// have ended are added up from the slices, by account, on the stream USAGE, which is kept longer. A query also counts
// the messages after the newest slice, so the answer covers all that the streams held when it was asked.
//
// Management counts CRM_EVENTS and HELD. NOTIFICATIONS and ATTEMPTS are counted while the books are kept, which reads
// them anyway (see Tally); management counts them, too, when their newest count is a minute old.
//
// The minute of a message is that of the time at which the broker stored it.
package numbers

import (
	"maps"
	"math"
	"slices"

	"gancho/pkg/notification"
)

// Counts are numbers of one webhook, or of an account, over some time. The zero value is ready to use. Its JSON is what
// slices hold.
type Counts struct {
	Delivered uint64 `json:"d,omitempty"` // attempts
	Failed    uint64 `json:"f,omitempty"` // attempts
	// Reasons are those of failed attempts.
	Reasons map[string]uint64 `json:"r,omitempty"`
	// Took are attempts by how long they took: see bucket.
	Took map[int]uint64 `json:"t,omitempty"`
	// States are how many notifications came into a state.
	States map[notification.State]uint64 `json:"n,omitempty"`
	// Held are events that conditions of the webhook held back.
	Held uint64 `json:"h,omitempty"`

	Events     uint64 `json:"e,omitempty"` // of the account
	EventBytes uint64 `json:"b,omitempty"`
}

// Add adds o.
func (c *Counts) Add(o *Counts) {
	c.Delivered += o.Delivered
	c.Failed += o.Failed
	c.Events += o.Events
	c.EventBytes += o.EventBytes
	c.Held += o.Held
	c.Reasons = sum(c.Reasons, o.Reasons)
	c.Took = sum(c.Took, o.Took)
	c.States = sum(c.States, o.States)
}

func sum[K comparable](to, from map[K]uint64) map[K]uint64 {
	if to == nil {
		return maps.Clone(from)
	}
	for k, n := range from {
		to[k] += n
	}
	return to
}

// Attempts is how many requests were made.
func (c *Counts) Attempts() uint64 { return c.Delivered + c.Failed }

// record counts a record of the journal.
func (c *Counts) record(r *notification.Summary) {
	if r.Kind == notification.KindErased { // its end is counted
		return
	}
	c.add(r.State)
	switch r.Outcome {
	case "":
		return
	case notification.OutcomeDelivered:
		c.Delivered++
	default:
		c.Failed++
		c.Reasons = sum(c.Reasons, map[string]uint64{string(r.FailureReason): 1})
	}
	c.Took = sum(c.Took, map[int]uint64{bucket(r.DurationMS): 1})
}

// perOctave is how many buckets a doubling of the duration has: a quantile is off by 9 % at most.
const perOctave = 4

// bucket returns the number of the bucket of a duration: the logarithm of its microseconds.
func bucket(ms float64) int {
	return int(math.Round(math.Log2(max(ms*1000, 1)) * perOctave))
}

// Quantile returns the duration in ms that a part q of the attempts did not exceed, 0 without attempts.
func (c *Counts) Quantile(q float64) float64 {
	total := uint64(0)
	for _, n := range c.Took {
		total += n
	}
	if total == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(total)))
	for _, b := range slices.Sorted(maps.Keys(c.Took)) {
		if c.Took[b] >= rank {
			return math.Exp2(float64(b)/perOctave) / 1000
		}
		rank -= c.Took[b]
	}
	return 0
}
