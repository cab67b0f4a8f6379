package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/audit"
	"gancho/pkg/notification"
	"gancho/services/management/internal/explain"
	lang "gancho/services/management/internal/language"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/problem"
)

// payloadShown is how much of a payload a page shows.
const payloadShown = 64 << 10

// notificationPageData is the page of one notification.
type notificationPageData struct {
	notifications.View

	WebhookName string // "" when it was deleted
	WebhookURL  string
	Steps       []step
	Text, Next  template.HTML // why it is in its state, and what happens when

	Payload    string
	PayloadCut bool
	Size       int
	NoPayload  string // key of the catalogue: why it is not shown
	CanResend  bool
}

// step is one entry of the timeline.
type step struct {
	*notifications.Attempt // nil unless it is an attempt

	Key    string // of the catalogue, unless it is an attempt
	Reason string
	At     time.Time
	Probe  bool
	Bars   []phase
	NewFor string // key: this is the first step of a resend or replay
	Replay string
}

// Says reports whether the attempt's reason adds anything to its HTTP status.
func (s step) Says() bool {
	return s.Attempt.Reason != nil && (s.Attempt.HTTPStatus == nil || !strings.HasPrefix(*s.Attempt.Reason, "status_"))
}

// phase is one piece of an attempt's time, for an SVG of 1,000 units.
type phase struct {
	Key      string
	Class    string
	X, Width int
	MS       float64
}

func phases(a *notifications.Attempt) []phase {
	known := a.Phases.DNS + a.Phases.Connect + a.Phases.TLS + a.Phases.FirstByte
	total := max(a.DurationMS, known)
	if total <= 0 {
		return nil
	}
	var all []phase
	x := 0
	for _, p := range []struct {
		name string
		ms   float64
	}{{"dns", a.Phases.DNS}, {"connect", a.Phases.Connect}, {"tls", a.Phases.TLS}, {"first_byte", a.Phases.FirstByte}, {"other", max(total-known, 0)}} {
		if p.ms <= 0 || p.name == "other" && p.ms < 0.5 {
			continue
		}
		if p.name == "other" && a.HTTPStatus == nil { // time spent waiting for an answer that never came
			p.name = "no_answer"
		}
		width := min(max(int(p.ms/total*1000), 4), 1000-x)
		all = append(all, phase{"phase." + p.name, p.name, x, width, p.ms})
		x += width
	}
	return all
}

// steps are the timeline, oldest first.
func steps(n *notifications.Notification) []step {
	var all []step
	send := 1
	for _, r := range n.History {
		s := step{At: r.At, Reason: r.Reason, Probe: r.Probe}
		if r.Send > send {
			send = r.Send
			s.NewFor, s.Replay = "step.resent", r.Replay
			if r.Replay != "" {
				s.NewFor = "step.replayed"
			}
		}
		switch {
		case r.Attempt != nil:
			a := notifications.ShowAttempt(r.Attempt)
			s.Attempt, s.At, s.Bars = &a, a.StartedAt, phases(&a)
		default:
			s.Key = "step." + string(r.Kind)
			if r.Reason == notification.Superseded {
				s.Key = "step.superseded"
			}
		}
		all = append(all, s)
	}
	return all
}

func (c *Console) notificationPage(v *visit) error {
	n, err := c.Notifications.Get(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	data := notificationPageData{View: c.Notifications.View(n, lang.Language(v.lang)), Steps: steps(n), CanResend: n.State.Terminal() && n.State != notification.Cancelled && n.Webhook != nil}
	if n.Webhook != nil {
		data.WebhookName, data.WebhookURL = n.Webhook.Name, n.Webhook.URL
	}
	why := c.Notifications.Explain(n)
	data.Text, data.Next = v.lang.sentence(why.Why), v.lang.sentence(why.Next)
	body, err := c.Notifications.Payload(v.ctx, n)
	switch {
	case err == nil:
		data.Size = len(body)
		data.Payload, data.PayloadCut = pretty(body)
	case problem.Of(err).Code() == "event_expired":
		data.NoPayload, data.CanResend = "notification.payload_gone", false
	default:
		v.fields = append(v.fields, zap.NamedError("payload", err))
		data.NoPayload = "notification.payload_away"
	}
	p := page{Title: "notification.title", Name: n.EventName, Tab: "webhooks", Data: data}
	if !n.State.Terminal() {
		p.Poll = pollFast
	} else {
		p.Poll = pollList // it may be sent again
	}
	return c.show(v, http.StatusOK, "notification", p)
}

// pretty indents a payload; numbers and the order of members stay as they are.
//
// Indenting grows with the depth, so a deeply nested body (it may be 10,000 deep) is shown as it came.
func pretty(body []byte) (text string, cut bool) {
	var b bytes.Buffer
	if len(body) <= payloadShown && depth(body) <= maxIndented && json.Indent(&b, body, "", "  ") == nil {
		body = b.Bytes()
	}
	if len(body) > payloadShown {
		return string(body[:payloadShown]), true
	}
	return string(body), false
}

// maxIndented is how deep a body may be nested to be shown indented.
const maxIndented = 32

// depth is at least how deep the JSON in body is nested; brackets in strings count too.
func depth(body []byte) (deepest int) {
	now := 0
	for _, c := range body {
		switch c {
		case '{', '[':
			now++
			deepest = max(deepest, now)
		case '}', ']':
			now--
		}
	}
	return deepest
}

// payload gives the event's bytes as they are, as a download.
func (c *Console) payload(v *visit) error {
	n, err := c.Notifications.Summary(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	body, err := c.Notifications.Payload(v.ctx, n)
	if err != nil {
		return err
	}
	h := v.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="`+n.EventID+`.json"`)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = v.w.Write(body) // the browser may be gone
	return nil
}

func (c *Console) postResend(v *visit) error {
	n, err := c.Notifications.Resend(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	c.Audit.Write(v.ctx, v.caller.Account, v.caller.Actor(), audit.Change{Action: "resendNotification", Kind: "notification", ID: n.ID})
	v.fields = append(v.fields, zap.String("notification_id", n.ID))
	return c.done(v, "/notifications/"+n.ID, flash{Key: "done.resent"})
}

// sentence is one of an explanation, as HTML.
func (l language) sentence(s explain.Sentence) template.HTML {
	text := explain.Sentence{
		Text:      lang.Text{English: template.HTMLEscapeString(s.Text.English), Portuguese: template.HTMLEscapeString(s.Text.Portuguese)},
		Arguments: s.Arguments,
	}
	return template.HTML(text.Say(lang.Language(l), func(argument any) string { //nolint:gosec // the text and every argument are escaped
		switch v := argument.(type) {
		case explain.Sentence:
			return string(l.sentence(v))
		case time.Time:
			return string(moment("full", v))
		case explain.Due:
			return string(moment("full", time.Time(v))) + " (" + string(moment("relative", time.Time(v))) + ")"
		case explain.Took:
			return template.HTMLEscapeString(l.milliseconds(float64(v)))
		case explain.Outcomes:
			return template.HTMLEscapeString(l.statuses(v))
		case int:
			return l.mustNumber(v)
		}
		return template.HTMLEscapeString(fmt.Sprint(argument))
	}))
}

// statuses are the different outcomes of a suspension's evidence: statuses of HTTP, and reasons.
func (l language) statuses(all []string) string {
	words := make([]string, 0, len(all))
	for _, s := range all {
		words = append(words, l.reason(s))
	}
	return strings.Join(words, ", ")
}

// reason shows a reason, a string or a pointer to one, as a word for people; a status of HTTP stays one.
func (l language) reason(v any) string {
	s := ""
	switch r := v.(type) {
	case string:
		s = r
	case *string:
		if r != nil {
			s = *r
		}
	default:
		s = fmt.Sprint(r)
	}
	if key := "reason." + s; known(key) {
		return l.text(key)
	}
	return visible(s)
}
