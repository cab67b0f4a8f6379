package bus

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// Summary is a journal record without its bodies and headers.
type Summary struct {
	Kind           notification.Kind
	At             time.Time
	Account        string
	WebhookID      string
	NotificationID string
	EventName      string
	URLKey         string
	URLHost        string
	Send           int
	AttemptsDone   int
	State          notification.State
	Reason         string // of the state
	Probe          bool
	Trip           string
	Sequence       uint64

	// Of the attempt; Outcome is "" when the record is of none.
	Outcome       string
	FailureReason delivery.Reason
	HTTPStatus    int
	// NextAttemptAt is when the next attempt is due; zero when there is none, and in records of older versions.
	NextAttemptAt time.Time

	// EventID is "", Replay too, and the attempt's time and duration are zero in records of older versions.
	EventID    string
	Replay     string
	StartedAt  time.Time
	DurationMS float64
}

// summaryFields is how many values every version joins; what was added since comes after them.
const summaryFields = 17

// summarize writes a record's summary. None of the values holds the separator: ids, hosts, numbers and
// words of closed lists.
func summarize(r *notification.Record) string {
	outcome, failure, status, started, took := "", "", 0, "", ""
	if a := r.Attempt; a != nil {
		outcome, failure, status = a.Outcome, string(a.Reason), a.HTTPStatus
		started, took = strconv.FormatInt(a.StartedAt.UnixMilli(), 10), strconv.FormatInt(int64(math.Round(a.DurationMS*1000)), 10)
	}
	probe := ""
	if r.Probe {
		probe = "probe"
	}
	next := ""
	if !r.NextAttemptAt.IsZero() {
		next = strconv.FormatInt(r.NextAttemptAt.UnixMilli(), 10)
	}
	return strings.Join([]string{
		string(r.Kind), strconv.FormatInt(r.At.UnixMilli(), 10), r.Account, r.WebhookID, r.NotificationID, r.EventName, r.URLKey, r.URLHost,
		strconv.Itoa(r.Send), strconv.Itoa(r.AttemptsDone), string(r.State), r.Reason, probe, r.Trip,
		outcome, failure, strconv.Itoa(status), next, r.EventID, r.Replay, started, took,
	}, "|")
}

func parseSummary(s string, sequence uint64) (Summary, error) {
	f := strings.Split(s, "|")
	if len(f) < summaryFields {
		return Summary{}, fmt.Errorf("summary of journal record %d has %d fields, want %d", sequence, len(f), summaryFields)
	}
	var bad error
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			bad = fmt.Errorf("summary of journal record %d: %w", sequence, err)
		}
		return n
	}
	more := make([]string, 5)
	copy(more, f[summaryFields:])
	moment := func(ms string) time.Time {
		if ms == "" {
			return time.Time{}
		}
		return time.UnixMilli(number(ms)).UTC()
	}
	took := 0.0
	if more[4] != "" {
		took = float64(number(more[4])) / 1000
	}
	return Summary{
		Kind: notification.Kind(f[0]), At: time.UnixMilli(number(f[1])).UTC(), Account: f[2], WebhookID: f[3], NotificationID: f[4], EventName: f[5],
		URLKey: f[6], URLHost: f[7], Send: int(number(f[8])), AttemptsDone: int(number(f[9])), State: notification.State(f[10]), Reason: f[11],
		Probe: f[12] != "", Trip: f[13], Outcome: f[14], FailureReason: delivery.Reason(f[15]), HTTPStatus: int(number(f[16])), Sequence: sequence,
		NextAttemptAt: moment(more[0]), EventID: more[1], Replay: more[2], StartedAt: moment(more[3]), DurationMS: took,
	}, bad
}

// SummaryBatch is summaries in the order of the journal, to be acknowledged together.
type SummaryBatch struct {
	Summaries []Summary
	msgs      []jetstream.Msg
}

// Ack settles all of the batch. A lost ack means that summaries come again.
func (b *SummaryBatch) Ack() { settle(b.msgs) }

// SummaryConsumer reads the journal's summaries.
type SummaryConsumer struct {
	*Consumer

	decides bool // what a newer version wrote is left to one; whoever only shows it reads what it knows
}

// Summaries returns a durable reader of the whole journal from its beginning, shared by all that use its
// name. The broker sends headers only.
func (b *Bus) Summaries(ctx context.Context, durable string) (*SummaryConsumer, error) {
	c, err := b.consumer(ctx, topology.Attempts, jetstream.ConsumerConfig{
		Durable: durable, AckWait: 30 * time.Second, MaxAckPending: 20_000, MaxDeliver: -1, HeadersOnly: true,
	})
	return &SummaryConsumer{c, durable == topology.ConsumerMonitor}, err
}

// Pull returns at most n summaries; it waits for the first about a second, and for more at most linger.
func (c *SummaryConsumer) Pull(ctx context.Context, n int, linger time.Duration) (*SummaryBatch, error) {
	var batch SummaryBatch
	add := func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		if version, _ := strconv.Atoi(m.Headers().Get(topology.HeaderSchema)); c.decides && schema.Check(version) != nil {
			c.b.metrics.newer.WithLabelValues(topology.Attempts).Inc()
			c.b.tellNewer(topology.Attempts)
			_ = m.NakWithDelay(waiting(int(meta.NumDelivered))) //nolint:gosec // a count
			return
		}
		s, err := parseSummary(m.Headers().Get(topology.HeaderSummary), meta.Sequence.Stream)
		if err != nil {
			c.b.log.Error("an unreadable journal record is skipped", zap.Error(err))
			_ = m.Ack()
			return
		}
		batch.Summaries = append(batch.Summaries, s)
		batch.msgs = append(batch.msgs, m)
	}
	return &batch, c.gather(ctx, n, linger, add)
}
