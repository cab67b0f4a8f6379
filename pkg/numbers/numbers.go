package numbers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

const (
	// sliceEvery is how often a slice is written at most.
	sliceEvery = 10 * time.Second
	// forlornAfter is how old the newest count of a stream is when no Tally counts it.
	forlornAfter = time.Minute
	// emptyEvery is how often one without counts is, which lets hours end.
	emptyEvery = time.Minute
	// mostCells bounds a slice, so that its message is far smaller than 1 MiB.
	mostCells = 2000
	// skew is by how much the clocks of this machine and the broker may differ when it is decided that an hour has
	// ended.
	skew = 5 * time.Second
)

// cell is a place for counts.
type cell struct {
	account, webhook string // webhook is "" for counts of the account only
	minute           int64  // since 1970
}

// cells are counts by place.
type cells map[cell]*Counts

func (c cells) at(account, webhook string, at time.Time) *Counts {
	k := cell{account, webhook, at.Unix() / 60}
	n := c[k]
	if n == nil {
		n = &Counts{}
		c[k] = n
	}
	return n
}

// slice is the body of a message on NUMBERS.
type slice struct {
	Schema int                  `json:"schema,omitempty"`
	Until  time.Time            `json:"until"`        // messages stored before are counted
	At     map[string]uint64    `json:"at"`           // positions: streams by the last sequence that is counted
	By     map[string]time.Time `json:"by,omitempty"` // the same as until, for each stream
	Cells  []row                `json:"cells,omitempty"`
}

// by returns until when the messages of a stream are counted.
func (s *slice) by(stream string) time.Time {
	if at, ok := s.By[stream]; ok {
		return at
	}
	return s.Until
}

// after returns a slice that follows s and has counted nothing yet.
func (s *slice) after() slice {
	next := slice{At: maps.Clone(s.At), By: map[string]time.Time{}}
	if next.At == nil {
		next.At = map[string]uint64{}
	}
	for _, f := range sources() {
		next.By[f.stream] = s.by(f.stream)
	}
	return next
}

// fill gives a slice its counts.
func (s *slice) fill(counts cells) {
	s.Until = slices.MinFunc(slices.Collect(maps.Values(s.By)), time.Time.Compare)
	for c, n := range counts {
		s.Cells = append(s.Cells, row{c.account, c.webhook, c.minute, *n})
	}
}

// row is one cell of a slice, or an hour of a webhook where it has no minute.
type row struct {
	Account string `json:"a,omitempty"`
	Webhook string `json:"w,omitempty"`
	Minute  int64  `json:"m,omitempty"`
	Counts
}

// Keeper counts, and answers questions. It is safe for concurrent use.
type Keeper struct {
	bus     *bus.Bus
	log     *zap.Logger
	every   time.Duration
	forlorn time.Duration // see forlornAfter
}

// New returns a keeper.
func New(b *bus.Bus, log *zap.Logger) *Keeper {
	return &Keeper{b, log.Named("numbers"), sliceEvery, forlornAfter}
}

// Run counts until ctx ends. Any number of processes may: each slice is written once. NOTIFICATIONS and ATTEMPTS are
// left to the Tally of the suspension-monitor while there is one.
func (k *Keeper) Run(ctx context.Context) error {
	if err := k.bus.Await(ctx, topology.Numbers, topology.Usage, topology.Events, topology.Notifications,
		topology.Attempts); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	for failing := false; ; {
		more, err := k.step(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			k.log.Warn("nothing is counted for now; what happens meanwhile is counted later", zap.Error(err))
		}
		failing = err != nil
		wait := k.every + rand.N(k.every/2) //nolint:gosec // no secret
		if more && err == nil {
			wait = 0
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// step writes a slice if one is due, and adds up the hours that have ended. more says that another is due at once.
func (k *Keeper) step(ctx context.Context) (more bool, err error) {
	last, sequence, err := k.last(ctx)
	if err != nil {
		return false, err
	}
	due := slices.DeleteFunc(sources(), func(f source) bool {
		every := k.every
		if f.tallied {
			every = k.forlorn
		}
		return time.Since(last.by(f.stream)) < every
	})
	if len(due) == 0 {
		return false, k.addUp(ctx, last.Until)
	}
	next, counts, whole, err := k.count(ctx, &last, "", mostCells, due)
	if err != nil {
		return false, err
	}
	written, err := k.write(ctx, &last, &next, counts, sequence)
	switch {
	case errors.Is(err, bus.ErrConflict):
		return true, nil // another process was first
	case err != nil:
		return false, err
	case written:
		last = next
	}
	return !whole, k.addUp(ctx, last.Until)
}

// write writes the next slice and reports true, unless the slice has no counts and comes soon after the last one. The
// error is bus.ErrConflict when another process was first.
func (k *Keeper) write(ctx context.Context, last, next *slice, counts cells, sequence uint64) (bool, error) {
	next.fill(counts)
	if len(counts) == 0 && next.Until.Sub(last.Until) < emptyEvery {
		return false, nil
	}
	err := k.publish(ctx, topology.Numbers, topology.SubjectNumbers, next, sequence)
	return err == nil, err
}

func (k *Keeper) publish(ctx context.Context, stream, subject string, v any, last uint64) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode numbers: %w", err)
	}
	m := bus.NewMessage(subject, "", body)
	bus.ExpectLast(m, last)
	_, err = k.bus.Publish(ctx, stream, m)
	return err
}

// last returns the newest slice without its cells, and its sequence; both are zero before the first.
func (k *Keeper) last(ctx context.Context) (slice, uint64, error) {
	raw, err := k.bus.Last(ctx, topology.Numbers, topology.SubjectNumbers)
	if errors.Is(err, bus.ErrNotFound) {
		return slice{}, 0, nil
	}
	if err != nil {
		return slice{}, 0, err
	}
	var s slice
	if err := json.Unmarshal(raw.Data, &s); err != nil {
		return slice{}, 0, fmt.Errorf("decode numbers: %w", err)
	}
	s.Cells = nil
	return s, raw.Sequence, nil
}

// source is a stream whose messages are counted.
type source struct {
	stream  string
	subject func(account string) string
	tallied bool // by a Tally
	bodies  bool // are needed
	count   func(c cells, m jetstream.Msg, meta *jetstream.MsgMetadata)
}

func sources() []source {
	return []source{
		{
			stream: topology.Events, subject: func(account string) string { return event.SubjectPrefix + account + ".*" },
			count: func(c cells, m jetstream.Msg, meta *jetstream.MsgMetadata) {
				account, _, _ := strings.Cut(strings.TrimPrefix(m.Subject(), event.SubjectPrefix), ".")
				n := c.at(account, "", meta.Timestamp)
				n.Events++
				n.EventBytes += uint64(bus.BodySize(m)) //nolint:gosec // a size
			},
		},
		{
			stream: topology.Notifications, tallied: true,
			subject: func(account string) string { return topology.SubjectNotification(account, "*") },
			count: func(c cells, m jetstream.Msg, meta *jetstream.MsgMetadata) {
				if h := m.Headers(); h.Get(notification.HeaderAccount) != "" {
					c.arrived(h.Get(notification.HeaderAccount), h.Get(notification.HeaderWebhookID), meta.Timestamp)
				}
			},
		},
		{
			stream: topology.Attempts, tallied: true,
			subject: func(account string) string { return topology.SubjectAttempts(account, "*") },
			count: func(c cells, m jetstream.Msg, meta *jetstream.MsgMetadata) {
				r, err := notification.ParseSummary(m.Headers().Get(notification.HeaderSummary), meta.Sequence.Stream)
				if err == nil {
					c.recorded(&r, meta.Timestamp)
				}
			},
		},
		{
			stream: topology.Held, subject: topology.SubjectsHeld, bodies: true,
			count: func(c cells, m jetstream.Msg, meta *jetstream.MsgMetadata) {
				account, webhooks := held(m.Subject(), m.Data())
				for _, id := range webhooks {
					c.at(account, id.String(), meta.Timestamp).Held++
				}
			},
		},
	}
}

func (c cells) arrived(account, webhook string, at time.Time) {
	c.at(account, webhook, at).add(notification.Pending)
}

func (c cells) recorded(r *notification.Summary, at time.Time) {
	c.at(r.Account, r.WebhookID, at).record(r)
}

// count counts the messages of sources after the last slice: of one account, or of all with "". It stops at most cells;
// whole reports that it did not. The slice has no cells.
func (k *Keeper) count(
	ctx context.Context, last *slice, account string, most int, from []source,
) (next slice, counts cells, whole bool, err error) {
	next, counts, whole = last.after(), cells{}, true
	now := time.Now().UTC().Add(-skew)
	for _, s := range from {
		state, err := k.bus.StreamState(ctx, s.stream)
		if s.stream == topology.Held && errors.Is(err, bus.ErrNotFound) {
			next.By[s.stream] = now
			continue // every publisher is older
		}
		if err != nil {
			return slice{}, nil, false, err
		}
		at := last.At[s.stream]
		if at > state.Last { // the stream was created again
			at = 0
		}
		next.At[s.stream], next.By[s.stream] = max(at, state.Last), now
		if at >= state.Last {
			continue
		}
		cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{s.subject(cmp.Or(account, "*"))}, HeadersOnly: !s.bodies}
		err = k.bus.ReadBetween(ctx, s.stream, cfg, at+1, state.Last, func(m jetstream.Msg, sequence uint64) bool {
			meta, err := m.Metadata()
			if err != nil {
				return true
			}
			s.count(counts, m, meta)
			if len(counts) < most {
				return true
			}
			whole = false
			next.At[s.stream] = sequence
			if meta.Timestamp.Before(now) {
				next.By[s.stream] = meta.Timestamp.UTC()
			}
			return false
		})
		if err != nil {
			return slice{}, nil, false, err
		}
	}
	return next, counts, whole, nil
}

func (c *Counts) add(s notification.State) {
	if c.States == nil {
		c.States = map[notification.State]uint64{}
	}
	c.States[s]++
}

// mark is how far hours are added up: the body of a message on USAGE.
type mark struct {
	Until time.Time `json:"until"` // hours that ended by then are there
	Slice uint64    `json:"slice"` // slices before this one have no counts of a later hour
}

// hour is the body of a message on USAGE: an hour of an account, or a part of it.
type hour struct {
	Schema int       `json:"schema,omitempty"`
	From   time.Time `json:"from"`
	Part   int       `json:"part,omitempty"`
	Rows   []row     `json:"rows"`
}

func (k *Keeper) mark(ctx context.Context) (m mark, sequence uint64, err error) {
	raw, err := k.bus.Last(ctx, topology.Usage, topology.SubjectUsageMark)
	if errors.Is(err, bus.ErrNotFound) {
		return mark{}, 0, nil
	}
	if err != nil {
		return mark{}, 0, err
	}
	if err := json.Unmarshal(raw.Data, &m); err != nil {
		return mark{}, 0, fmt.Errorf("decode usage: %w", err)
	}
	return m, raw.Sequence, nil
}

// addUp writes the hours that have ended by until and are not there yet. Writing one again writes the same.
func (k *Keeper) addUp(ctx context.Context, until time.Time) error {
	m, sequence, err := k.mark(ctx)
	if err != nil {
		return err
	}
	end := until.Truncate(time.Hour)
	if !end.After(m.Until) {
		return nil
	}
	type key struct {
		account string
		hour    int64
	}
	hours := map[key]map[string]*Counts{}
	next := uint64(0) // the first slice with counts of a later hour
	last := m.Slice
	err = k.slices(ctx, m.Slice, time.Time{}, func(s *slice, sequence uint64) bool {
		last = sequence
		for i := range s.Cells {
			r := &s.Cells[i]
			at := time.Unix(r.Minute*60, 0)
			switch {
			case !at.Before(end):
				if next == 0 {
					next = sequence
				}
			// in an hour before, as of a broker with a wrong clock: not lost, but added to the next one
			case at.Before(m.Until):
				at = m.Until
				fallthrough
			default:
				h := key{r.Account, at.Truncate(time.Hour).Unix()}
				if hours[h] == nil {
					hours[h] = map[string]*Counts{}
				}
				if hours[h][r.Webhook] == nil {
					hours[h][r.Webhook] = &Counts{}
				}
				hours[h][r.Webhook].Add(&r.Counts)
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	for h, hooks := range hours {
		body := hour{From: time.Unix(h.hour, 0).UTC()}
		write := func() error {
			text, err := json.Marshal(body)
			if err != nil {
				return fmt.Errorf("encode usage: %w", err)
			}
			_, err = k.bus.Publish(ctx, topology.Usage, bus.NewMessage(topology.SubjectUsage(h.account), "", text))
			body.Part, body.Rows = body.Part+1, nil
			return err
		}
		for _, webhook := range slices.Sorted(maps.Keys(hooks)) { // an hour that is written twice has the same parts
			if body.Rows = append(body.Rows, row{Webhook: webhook, Counts: *hooks[webhook]}); len(body.Rows) == mostCells {
				if err := write(); err != nil {
					return err
				}
			}
		}
		if len(body.Rows) > 0 {
			if err := write(); err != nil {
				return err
			}
		}
	}
	if next == 0 {
		next = last + 1
	}
	err = k.publish(ctx, topology.Usage, topology.SubjectUsageMark, mark{end, next}, sequence)
	if errors.Is(err, bus.ErrConflict) {
		return nil // another process was first
	}
	return err
}

// slices hands the slices from a sequence on to handle, oldest first, or those from a time on when there is one, until
// it returns false.
func (k *Keeper) slices(
	ctx context.Context, from uint64, since time.Time, handle func(s *slice, sequence uint64) bool,
) error {
	state, err := k.bus.StreamState(ctx, topology.Numbers)
	if err != nil || state.Last < max(from, 1) {
		return err
	}
	cfg := jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1),
	}
	if !since.IsZero() {
		cfg = jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since}
	}
	return k.bus.Read(ctx, topology.Numbers, cfg, func(m jetstream.Msg, sequence, pending uint64) (bool, error) {
		var s slice
		if err := json.Unmarshal(m.Data(), &s); err != nil {
			return false, fmt.Errorf("decode numbers: %w", err)
		}
		return handle(&s, sequence) && sequence < state.Last && pending > 0, nil
	})
}
