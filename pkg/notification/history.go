package notification

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
)

// A record carries the records before it, as far as they were at hand when it was written. The broker loads a
// block of megabytes for each record that is read, and those of one notification are hours apart: so one read serves
// instead of one for each attempt. Records that it does not carry are found along Previous.
const (
	// maxCarried is how many records one carries: the attempts of a send and some more.
	maxCarried = 16
	// maxPacked is how many bytes they may take; six with answers of 4 KiB that have nothing in common do not fit.
	maxPacked = 8 << 10
	// maxUnpacked bounds their size after inflation: 16 records with every byte of their answers escaped.
	maxUnpacked = 2 << 20
)

// Follow puts r on top of last, the record before it as it was read from the journal.
func (r *Record) Follow(last *Record) {
	r.Previous, r.Earlier = last.Sequence, nil
	lines, err := unpack(last.Earlier)
	if err != nil {
		lines = nil
	}
	own := *last
	own.Earlier = nil
	own.Account, own.WebhookID, own.NotificationID = "", "", "" // those of r
	own.EventID, own.EventName, own.EventSequence = "", "", 0
	line, err := json.Marshal(own)
	if err != nil {
		return
	}
	lines = append(lines, line)
	if packed := pack(lines[max(len(lines)-maxCarried, 0):]); len(packed) <= maxPacked {
		r.Earlier = packed
	}
}

// Carried returns the records that r carries, newest first, with their sequences.
func (r *Record) Carried() ([]*Record, error) {
	lines, err := unpack(r.Earlier)
	if err != nil {
		return nil, err
	}
	out := make([]*Record, 0, len(lines))
	sequence := r.Previous
	for _, line := range slices.Backward(lines) {
		var c Record
		if err := json.Unmarshal(line, &c); err != nil {
			return nil, fmt.Errorf("decode carried record %d: %w", sequence, err)
		}
		c.Account, c.WebhookID, c.NotificationID, c.EventID, c.EventName, c.EventSequence = r.Account, r.WebhookID,
			r.NotificationID, r.EventID, r.EventName, r.EventSequence
		c.Sequence, sequence = sequence, c.Previous
		out = append(out, &c)
	}
	return out, nil
}

var (
	deflaters = sync.Pool{New: func() any { w, _ := flate.NewWriter(nil, flate.BestSpeed); return w }} //nolint:gochecknoglobals // a pool
	inflaters = sync.Pool{New: func() any { return flate.NewReader(nil) }}                             //nolint:gochecknoglobals // a pool
)

// pack deflates lines.
func pack(lines [][]byte) []byte {
	w, _ := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	var b bytes.Buffer
	w.Reset(&b)
	for _, line := range lines {
		_, _ = w.Write(line) // into memory
		_, _ = w.Write([]byte{'\n'})
	}
	_ = w.Close()
	return b.Bytes()
}

// unpack returns the lines that pack deflated.
func unpack(packed []byte) ([][]byte, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	r := inflaters.Get()
	defer inflaters.Put(r)
	resetter, _ := r.(flate.Resetter)
	reader, _ := r.(io.Reader)
	if err := resetter.Reset(bytes.NewReader(packed), nil); err != nil {
		return nil, fmt.Errorf("inflate carried records: %w", err)
	}
	all, err := io.ReadAll(io.LimitReader(reader, maxUnpacked+1))
	if err != nil {
		return nil, fmt.Errorf("inflate carried records: %w", err)
	}
	if len(all) > maxUnpacked {
		return nil, fmt.Errorf("carried records are larger than %d bytes", maxUnpacked)
	}
	return bytes.Split(bytes.TrimSuffix(all, []byte{'\n'}), []byte{'\n'}), nil
}
