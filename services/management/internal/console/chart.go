package console

import (
	"html/template"
	"time"

	"gancho/pkg/notification"
	"gancho/services/management/internal/index"
)

// chart is how many notifications came in each stretch of time, and what became of them: an SVG of stacked
// bars. It shows the longest span that the listed notifications cover completely.
type chart struct {
	Bars          []bar
	Width, Height int
	// Span is a key of the catalogue: the time from the first bar to now.
	Span                    string
	Delivered, Failed, Open int // in Span
	Total                   int
}

// bar is one stretch of time. The rectangles are stacked from the bottom: delivered, open, failed.
type bar struct {
	X, Width                   int
	Parts                      []part
	From, To                   time.Time
	Delivered, Failed, Waiting int
	Text                       template.HTML
}

type part struct {
	Class     string
	Y, Height int
}

const bars = 24

// spans a chart may show, longest first.
func spans() []struct {
	length time.Duration
	key    string
} {
	return []struct {
		length time.Duration
		key    string
	}{
		{24 * time.Hour, "span.24h"},
		{6 * time.Hour, "span.6h"},
		{2 * time.Hour, "span.2h"},
		{24 * time.Minute, "span.24min"},
		{4 * time.Minute, "span.4min"},
		{48 * time.Second, "span.48s"},
	}
}

const chartSpan = 24 * time.Hour // the longest

// draw makes a chart of entries, newest first. full says that older ones may be missing.
func (l language) draw(entries []index.Entry, full bool, now time.Time, barWidth, gap, height int) chart {
	all := spans()
	span := all[0]
	if full && len(entries) > 0 {
		for _, span = range all {
			if !entries[len(entries)-1].Created.After(now.Add(-span.length)) {
				break
			}
		}
	}
	c := chart{Width: bars*(barWidth+gap) - gap, Height: height, Span: span.key, Bars: make([]bar, bars)}
	step := span.length / bars
	begin := now.Add(-span.length)
	for i := range c.Bars {
		c.Bars[i] = bar{X: i * (barWidth + gap), Width: barWidth, From: begin.Add(time.Duration(i) * step), To: begin.Add(time.Duration(i+1) * step)}
	}
	for _, e := range entries {
		if e.Created.Before(begin) {
			break
		}
		b := &c.Bars[min(max(int(e.Created.Sub(begin)/step), 0), bars-1)]
		switch e.State {
		case notification.Delivered:
			b.Delivered++
			c.Delivered++
		case notification.PermanentlyFailed, notification.Retrying:
			b.Failed++
			c.Failed++
		case notification.Pending, notification.Parked, notification.Cancelled:
			b.Waiting++
			c.Open++
		}
	}
	c.Total = c.Delivered + c.Failed + c.Open
	tallest := 1
	for _, b := range c.Bars {
		tallest = max(tallest, b.Delivered+b.Failed+b.Waiting)
	}
	for i := range c.Bars {
		b := &c.Bars[i]
		y := height
		for _, p := range []struct {
			class string
			n     int
		}{{"ok", b.Delivered}, {"open", b.Waiting}, {"bad", b.Failed}} {
			if p.n == 0 {
				continue
			}
			h := max(p.n*(height-1)/tallest, 3) // few among many must be seen
			y -= h
			b.Parts = append(b.Parts, part{p.class, max(y, 0), h})
		}
		if b.Delivered+b.Failed+b.Waiting > 0 {
			b.Text = l.html("chart.bar", "from", b.From.UTC().Format("15:04"), "to", b.To.UTC().Format("15:04 UTC"),
				"delivered", l.mustNumber(b.Delivered), "failed", l.mustNumber(b.Failed), "open", l.mustNumber(b.Waiting))
		}
	}
	return c
}

func (l language) mustNumber(n int) string {
	s, err := l.number(max(n, 0))
	if err != nil {
		panic(err) // digits only
	}
	return s
}
