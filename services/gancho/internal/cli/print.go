package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// clean makes text from outside fit for one line of a terminal: what would move the cursor, change colours
// or turn the writing direction becomes a question mark.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case unicode.IsControl(r), r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f:
			return '?'
		}
		return r
	}, s)
}

// rows prints aligned columns. The last column is not padded.
func (a *app) rows(rows [][]string) error {
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = clean(cell)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// pair is one line about one thing. A pair without a value is not printed.
type pair struct{ name, value string }

func (a *app) pairs(pairs ...pair) error {
	var rows [][]string
	for _, p := range pairs {
		if p.value != "" {
			rows = append(rows, []string{p.name, p.value})
		}
	}
	return a.rows(rows)
}

// asJSON prints the API's answer, indented.
func (a *app) asJSON(raw json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fmt.Errorf("print as JSON: %w", err)
	}
	b.WriteByte('\n')
	_, err := a.Stdout.Write(b.Bytes())
	return err
}

// allAsJSON prints a list as one array.
func (a *app) allAsJSON(all []json.RawMessage) error {
	if all == nil {
		all = []json.RawMessage{}
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("print as JSON: %w", err)
	}
	return a.asJSON(raw)
}

// stamp is a time as tables show it: UTC, to the second.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func stampOf(t *time.Time) string {
	if t == nil {
		return ""
	}
	return stamp(*t)
}

// line prints one value as JSON on one line.
func (a *app) line(v any) error {
	return json.NewEncoder(a.Stdout).Encode(v)
}
