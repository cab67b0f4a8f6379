package console

import (
	"fmt"
	"html/template"
	"time"

	"gancho/services/management/internal/index"
)

// chart is how many notifications came in each stretch of time, by outcome: an SVG of stacked
// bars.
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

// spans a chart may show, longest first.
func spans() []time.Duration {
	return []time.Duration{
		24 * time.Hour, 6 * time.Hour, 2 * time.Hour, 24 * time.Minute, 4 * time.Minute, 48 * time.Second,
	}
}

// spanKey is a span's in the catalogue.
func spanKey(span time.Duration) string {
	switch {
	case span >= time.Hour:
		return fmt.Sprintf("span.%dh", span/time.Hour)
	case span >= time.Minute:
		return fmt.Sprintf("span.%dmin", span/time.Minute)
	}
	return fmt.Sprintf("span.%ds", span/time.Second)
}

// draw makes a chart of the notifications up to now.
func (l language) draw(a index.Activity, now time.Time, barWidth, gap, height int) chart {
	c := chart{
		Width: index.Bars*(barWidth+gap) - gap, Height: height, Span: spanKey(a.Span), Bars: make([]bar, index.Bars),
	}
	step := a.Span / index.Bars
	begin := now.Add(-a.Span)
	for i, n := range a.Bars {
		c.Bars[i] = bar{
			X: i * (barWidth + gap), Width: barWidth, From: begin.Add(time.Duration(i) * step),
			To:        begin.Add(time.Duration(i+1) * step),
			Delivered: n.Delivered, Failed: n.Failed, Waiting: n.Open,
		}
		c.Delivered, c.Failed, c.Open = c.Delivered+n.Delivered, c.Failed+n.Failed, c.Open+n.Open
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
				"delivered", l.mustNumber(b.Delivered), "failed", l.mustNumber(b.Failed), "open",
				l.mustNumber(b.Waiting))
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
