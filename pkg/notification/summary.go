package notification

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"gancho/pkg/delivery"
)

// HeaderSummary carries a journal record's Summary, so that readers of the whole journal need only the headers.
const HeaderSummary = "Gancho-Summary"

// Summary is a journal record without bodies and headers.
type Summary struct {
	Kind           Kind
	At             time.Time
	Account        string
	WebhookID      string
	NotificationID string
	EventName      string
	URLKey         string
	URLHost        string
	Send           int
	AttemptsDone   int
	State          State
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

	// EventID and Replay are "", the attempt's time and duration zero, in records of older versions.
	EventID    string
	Replay     string
	StartedAt  time.Time
	DurationMS float64
}

// summaryFields is how many values every version joins; later versions append theirs.
const summaryFields = 17

// Summary returns the text of r's summary, see HeaderSummary. No value holds the separator: ids, hosts, numbers and
// words of closed lists.
func (r *Record) Summary() string {
	outcome, failure, status, started, took := "", "", 0, "", ""
	if a := r.Attempt; a != nil {
		outcome, failure, status = a.Outcome, string(a.Reason), a.HTTPStatus
		started = strconv.FormatInt(a.StartedAt.UnixMilli(), 10)
		took = strconv.FormatInt(int64(math.Round(a.DurationMS*1000)), 10)
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
		string(r.Kind), strconv.FormatInt(r.At.UnixMilli(), 10), r.Account, r.WebhookID, r.NotificationID, r.EventName,
		r.URLKey, r.URLHost, strconv.Itoa(r.Send), strconv.Itoa(r.AttemptsDone), string(r.State), r.Reason, probe,
		r.Trip,
		outcome, failure, strconv.Itoa(status), next, r.EventID, r.Replay, started, took,
	}, "|")
}

// ParseSummary reads the text that Record.Summary wrote for the record with that sequence in the journal.
func ParseSummary(s string, sequence uint64) (Summary, error) {
	f := strings.Split(s, "|")
	if len(f) < summaryFields {
		return Summary{}, fmt.Errorf("summary of journal record %d has %d fields, want %d", sequence, len(f),
			summaryFields)
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
		Kind: Kind(f[0]), At: time.UnixMilli(number(f[1])).UTC(), Account: f[2], WebhookID: f[3], NotificationID: f[4],
		EventName: f[5], URLKey: f[6], URLHost: f[7], Send: int(number(f[8])), AttemptsDone: int(number(f[9])),
		State: State(f[10]), Reason: f[11], Probe: f[12] != "", Trip: f[13], Outcome: f[14],
		FailureReason: delivery.Reason(f[15]), HTTPStatus: int(number(f[16])), Sequence: sequence,
		NextAttemptAt: moment(more[0]), EventID: more[1], Replay: more[2], StartedAt: moment(more[3]), DurationMS: took,
	}, bad
}
