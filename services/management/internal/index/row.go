package index

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/notification"
)

// Row is a notification's fields in a list: nothing of the event's or the answers' contents.
type Row struct {
	State         notification.State
	Reason        string
	EventID       string
	EventName     string
	Sends         int
	AttemptsMade  int
	NextAttemptAt time.Time
	Replay        string
	UpdatedAt     time.Time
	Attempt       *RowAttempt // when the newest thing known is one
}

// RowAttempt is an attempt in a list.
type RowAttempt struct {
	StartedAt  time.Time
	Outcome    string
	Reason     string
	HTTPStatus int
	DurationMS float64
}

// rankDigits is how many hexadecimal digits a row begins with: its rank, 8 x sequence + state. As text, they
// sort as the numbers do.
const rankDigits = 14

func (r *Row) encode(rank int64) string {
	b := fmt.Appendf(make([]byte, 0, 96), "%0*x", rankDigits, rank)
	eventID, _ := uuid.Parse(r.EventID) // zero: not known
	b = append(b, eventID[:]...)
	b = binary.AppendUvarint(b, uint64(max(r.Sends, 0)))
	b = binary.AppendUvarint(b, uint64(max(r.AttemptsMade, 0)))
	b = appendTime(b, r.UpdatedAt)
	b = appendTime(b, r.NextAttemptAt)
	b = appendText(b, r.EventName)
	b = appendText(b, r.Reason)
	b = appendText(b, r.Replay)
	if a := r.Attempt; a != nil {
		b = appendTime(b, a.StartedAt)
		b = appendText(b, a.Outcome)
		b = appendText(b, a.Reason)
		b = binary.AppendUvarint(b, uint64(max(a.HTTPStatus, 0)))
		b = binary.AppendUvarint(b, uint64(math.Round(max(a.DurationMS, 0)*1000)))
	}
	return string(b)
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.AppendUvarint(b, 0)
	}
	return binary.AppendUvarint(b, uint64(max(t.UnixMilli(), 0)))
}

func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), math.MaxUint8)]
	return append(append(b, byte(len(s))), s...) //nolint:gosec // at most 255
}

// rankOf returns the rank that a row begins with, 0 for any other text.
func rankOf(row string) int64 {
	if len(row) < rankDigits {
		return 0
	}
	n, err := strconv.ParseInt(row[:rankDigits], 16, 64)
	if err != nil {
		return 0
	}
	return n
}

// decodeRow reads what encode wrote; false when it is not that, or from a record that did not say everything.
func decodeRow(row string) (Row, bool) {
	rank := rankOf(row)
	b := reader(row[min(rankDigits, len(row)):])
	var eventID uuid.UUID
	if n := copy(eventID[:], b); n < len(eventID) {
		return Row{}, false
	}
	b = b[len(eventID):]
	r := Row{State: state(int(rank % 8)), EventID: eventID.String()}
	r.Sends, r.AttemptsMade = int(b.number()), int(b.number()) //nolint:gosec // as they were written
	r.UpdatedAt, r.NextAttemptAt = b.time(), b.time()
	r.EventName, r.Reason, r.Replay = b.text(), b.text(), b.text()
	if len(b) > 0 {
		r.Attempt = &RowAttempt{StartedAt: b.time(), Outcome: b.text(), Reason: b.text(), HTTPStatus: int(b.number()), DurationMS: float64(b.number()) / 1000} //nolint:gosec // as above
	}
	return r, r.State != "" && eventID != uuid.Nil && r.Sends > 0 && b != nil
}

// reader is the rest of a row; nil after it was found to be cut off.
type reader []byte

func (b *reader) number() uint64 {
	n, size := binary.Uvarint(*b)
	if size <= 0 {
		*b = nil
		return 0
	}
	*b = (*b)[size:]
	return n
}

func (b *reader) time() time.Time {
	n := b.number()
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(n)).UTC() //nolint:gosec // as it was written
}

func (b *reader) text() string {
	if len(*b) == 0 || len(*b) <= int((*b)[0]) {
		*b = nil
		return ""
	}
	n := int((*b)[0])
	s := string((*b)[1 : 1+n])
	*b = slices.Clip((*b)[1+n:])
	return s
}
