package numbers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
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
	Schema int               `json:"schema,omitempty"`
	Until  time.Time         `json:"until"` // messages stored before are counted
	At     map[string]uint64 `json:"at"`    // positions: streams by the last sequence that is counted
	Cells  []row             `json:"cells,omitempty"`
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
	bus   *bus.Bus
	log   *zap.Logger
	every time.Duration
}

// New returns a keeper.
func New(b *bus.Bus, log *zap.Logger) *Keeper { return &Keeper{b, log.Named("numbers"), sliceEvery} }

// Run counts until ctx ends. Any number of processes may: each slice is written once.
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

// step writes a slice if one is due, and adds up the hours that it ended. more says that another is due at once.
func (k *Keeper) step(ctx context.Context) (more bool, err error) {
	last, sequence, err := k.last(ctx)
	if err != nil {
		return false, err
	}
	if time.Since(last.Until) < k.every {
		return false, nil // another process wrote it
	}
	next, counts, whole, err := k.count(ctx, last.At, "", mostCells)
	if err != nil {
		return false, err
	}
	if len(counts) > 0 || next.Until.Sub(last.Until) >= emptyEvery {
		for c, n := range counts {
			next.Cells = append(next.Cells, row{c.account, c.webhook, c.minute, *n})
		}
		switch err := k.publish(ctx, topology.Numbers, topology.SubjectNumbers, next, sequence); {
		case errors.Is(err, bus.ErrConflict):
			return true, nil // another process was first
		case err != nil:
			return false, err
		}
		last = next
	}
	return !whole, k.addUp(ctx, last.Until)
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

// count counts the messages after the positions: of one account, or of all with "". It stops at most cells; whole
// reports that it did not. The slice has no cells.
func (k *Keeper) count(
	ctx context.Context, from map[string]uint64, account string, most int,
) (next slice, counts cells, whole bool, err error) {
	next, counts, whole = slice{Until: time.Now().UTC().Add(-skew), At: map[string]uint64{}}, cells{}, true
	filter := account
	if filter == "" {
		filter = "*"
	}
	for _, s := range []struct {
		stream, subject string
		bodies          bool // are needed
		count           func(m jetstream.Msg, meta *jetstream.MsgMetadata)
	}{
		{topology.Events, event.SubjectPrefix + filter + ".*", false, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
			account, _, _ := strings.Cut(strings.TrimPrefix(m.Subject(), event.SubjectPrefix), ".")
			size, _ := strconv.ParseUint(m.Headers().Get("Nats-Msg-Size"), 10, 64)
			n := counts.at(account, "", meta.Timestamp)
			n.Events++
			n.EventBytes += size
		}},
		{
			topology.Notifications, topology.SubjectNotification(filter, "*"), false,
			func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
				if h := m.Headers(); h.Get(notification.HeaderAccount) != "" {
					counts.at(h.Get(notification.HeaderAccount), h.Get(notification.HeaderWebhookID),
						meta.Timestamp).add(notification.Pending)
				}
			},
		},
		{topology.Attempts, topology.SubjectAttempts(filter, "*"), false, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
			r, err := notification.ParseSummary(m.Headers().Get(notification.HeaderSummary), meta.Sequence.Stream)
			if err == nil {
				counts.at(r.Account, r.WebhookID, meta.Timestamp).record(&r)
			}
		}},
		{topology.Held, topology.SubjectsHeld(filter), true, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
			account, webhooks := held(m.Subject(), m.Data())
			for _, id := range webhooks {
				counts.at(account, id.String(), meta.Timestamp).Held++
			}
		}},
	} {
		state, err := k.bus.StreamState(ctx, s.stream)
		if s.stream == topology.Held && errors.Is(err, bus.ErrNotFound) {
			continue // every publisher is older
		}
		if err != nil {
			return slice{}, nil, false, err
		}
		at := from[s.stream]
		if at > state.Last { // the stream was created again
			at = 0
		}
		next.At[s.stream] = max(at, state.Last)
		if at >= state.Last {
			continue
		}
		cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{s.subject}, HeadersOnly: !s.bodies}
		err = k.bus.ReadBetween(ctx, s.stream, cfg, at+1, state.Last, func(m jetstream.Msg, sequence uint64) bool {
			meta, err := m.Metadata()
			if err != nil {
				return true
			}
			s.count(m, meta)
			if len(counts) < most {
				return true
			}
			whole = false
			next.At[s.stream] = sequence
			if meta.Timestamp.Before(next.Until) {
				next.Until = meta.Timestamp.UTC()
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
