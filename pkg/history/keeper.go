package history

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/share"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

const (
	// countAbove is the part of its limit above which a stream is counted, forgetBelow the one below which it is no
	// more.
	countAbove, forgetBelow = 0.75, 0.6
	// A stream is looked at every idle, while it is counted every alert, and every hasty while hastyGrowth, a part of
	// its limit, or more is written between two looks.
	idle, alert, hasty = time.Second, 250 * time.Millisecond, 50 * time.Millisecond
	hastyGrowth        = 1.0 / 500
	// A purge removes at least leastRemoved and at most mostRemoved records, in between as many as take about aPurge.
	leastRemoved, mostRemoved = 500, 50_000
	aPurge                    = 100 * time.Millisecond
	// astray is the part of a stream's limit by which a count may differ from its contents before it is made again.
	astray = 0.1
)

// reader is the name of the consumers that count: the broker's rights name them.
const reader = "shares"

// Keeper bounds what accounts hold of the histories. One process at a time runs it, under a lease of its caller; two
// that run for a moment do no harm.
type Keeper struct {
	log  *zap.Logger
	bus  *bus.Bus
	part func(account string, limit int64) int64
	// settings are what operators set for accounts.
	settings func() map[string]share.Settings
	removed  *prometheus.CounterVec
}

// New returns a keeper. The meter says how large an account's share is, and how long an account's records are kept.
func New(b *bus.Bus, meter *share.Meter, log *zap.Logger, reg prometheus.Registerer) *Keeper {
	k := &Keeper{log: log, bus: b, part: meter.Part, settings: meter.AllSettings, removed: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gancho_history_records_removed_total", Help: "Oldest records removed of accounts that had more than their share of a history that was nearly full.",
	}, []string{"stream"})}
	for _, stream := range streams() {
		k.removed.WithLabelValues(stream)
	}
	reg.MustRegister(k.removed)
	return k
}

// streams are the histories.
func streams() []string { return []string{topology.Attempts, topology.Failed} }

// Run keeps the histories until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	for _, stream := range streams() {
		h := &history{Keeper: k, stream: stream, most: leastRemoved}
		work.Go(func() { h.run(ctx) })
	}
	work.Go(func() { k.retain(ctx) })
}

// history is the keeping of one stream. One goroutine uses it.
type history struct {
	*Keeper

	stream string
	reader *bus.Reader // nil while nothing is counted
	count  *count
	most   uint64 // records that the next purge removes
	bytes  int64  // that the stream held at the last look
}

func (h *history) run(ctx context.Context) {
	defer func() { h.rest(context.WithoutCancel(ctx)) }()
	for wait := idle; sleep.For(ctx, wait); {
		next, err := h.look(ctx)
		if err != nil && ctx.Err() == nil {
			h.log.Debug("a history cannot be looked at; trying again", zap.String("stream", h.stream), zap.Error(err))
			next = idle
		}
		wait = next
	}
}

// rest ends the counting.
func (h *history) rest(ctx context.Context) {
	if h.reader != nil {
		h.reader.Close(ctx)
	}
	h.reader, h.count = nil, nil
}

// look makes the removals that are due, and returns when to look again.
func (h *history) look(ctx context.Context) (time.Duration, error) {
	state, err := h.bus.StreamState(ctx, h.stream)
	if errors.Is(err, bus.ErrNotFound) {
		err = nil
	}
	bytes, limit := int64(state.Bytes), state.MaxBytes //nolint:gosec // below the disk's size
	grown := bytes - h.bytes
	h.bytes = bytes
	pause := func(calm time.Duration, written int64) time.Duration {
		if float64(written) >= hastyGrowth*float64(limit) {
			return hasty
		}
		return calm
	}
	switch full := float64(bytes) / float64(max(limit, 1)); {
	case err != nil || limit == 0 || full < forgetBelow:
		h.rest(ctx)
		if limit == 0 {
			return idle, err
		}
		return pause(idle, grown), err
	case full < countAbove && h.reader == nil:
		return pause(idle, grown), nil
	}
	opened := h.reader == nil
	written, err := h.read(ctx)
	if err != nil {
		return 0, err
	}
	h.count.forget(state.First)
	if opened { // it took its time, and much may have been written meanwhile
		return hasty, nil
	}
	if d := float64(h.count.total - bytes - written); d > astray*float64(limit) {
		h.log.Debug("the count of a history is made again", zap.String("stream", h.stream), zap.Int64("counted", h.count.total), zap.Int64("bytes", bytes))
		h.rest(ctx)
		return alert, nil
	}
	wait := pause(alert, written)
	for account, n := range excess(h.count.held(), bytes, limit, func(a string) int64 { return h.part(a, limit) }) {
		took, err := h.remove(ctx, account, n)
		if err != nil {
			return 0, err
		}
		if wait = hasty; bytes < urgentAbove(limit) {
			wait = max(hasty, took)
		}
	}
	return wait, nil
}

// urgentAbove is how many bytes a stream holds when it is left alone no longer than it must.
func urgentAbove(limit int64) int64 { return limit / 100 * 95 }

// read counts the messages since the last look and returns its bytes.
func (h *history) read(ctx context.Context) (int64, error) {
	if h.reader == nil {
		h.reader, h.count = h.bus.NewReader(h.stream, reader, bus.Position{}), newCount()
	}
	last, met, err := h.reader.Tail(ctx)
	if err != nil {
		return 0, err
	}
	if met.Renewed {
		h.count = newCount()
	}
	var written int64
	err = h.reader.ReadTo(ctx, last, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		if t := strings.SplitN(m.Subject(), ".", 4); len(t) == 4 {
			size := bus.StoredSize(m)
			written += size
			h.count.add(t[2], meta.Sequence.Stream, size)
		}
	})
	return written, err
}

// remove removes the account's oldest records with together that many bytes, or as many as one purge may, and returns
// how long it took.
func (h *history) remove(ctx context.Context, account string, bytes int64) (time.Duration, error) {
	records, subjects := h.count.records(account), topology.SubjectsOf(h.stream, account)
	n := h.count.oldest(account, bytes, h.most)
	began := time.Now()
	if err := h.bus.PurgeOldest(ctx, h.stream, subjects, max(records-n, 1)); err != nil {
		return 0, err
	}
	took := time.Since(began)
	switch {
	case took < aPurge/2:
		h.most = min(2*h.most, mostRemoved)
	case took > 2*aPurge:
		h.most = max(h.most/2, leastRemoved)
	}
	first := h.reader.At().Sequence + 1
	oldest, err := h.bus.Get(ctx, h.stream, subjects, 1)
	switch {
	case err == nil:
		first = min(first, oldest.Sequence)
	case !errors.Is(err, bus.ErrNotFound):
		return 0, err
	}
	h.count.cut(account, first)
	h.removed.WithLabelValues(h.stream).Add(float64(records - h.count.records(account)))
	if h.bus.ShouldLog("history " + h.stream + " " + account) {
		h.log.Warn("an account has more than its share of a history that is nearly full: its oldest records are removed",
			zap.String("account_id", account), zap.String("stream", h.stream), zap.Int64("excess_bytes", bytes))
	}
	return took, nil
}
