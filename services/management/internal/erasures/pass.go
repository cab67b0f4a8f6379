package erasures

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/tidwall/gjson"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

const (
	// atOnce is how many messages a pass takes at most; the next pass goes on.
	atOnce = 2000
	// mostEvents is how many ids of events a job remembers: those found last.
	mostEvents = 10_000
)

// run is a job in this process's hands.
type run struct {
	s       *Service
	job     *job
	about   *target
	beat    time.Time
	next    map[string]uint64 // streams by the sequence from which on they were not looked at
	journal uint64            // the same of ATTEMPTS
	erased  bool              // messages, since absent has looked
	bodies  map[string]bool   // what of BODIES notifications referred to, by subject, and whether the job is about it
}

// hit is a message to erase.
type hit struct {
	stream       string
	sequence     uint64
	event        string                     // id of the event, "" when the message is none
	notification *notification.Notification // without its body; nil when the message is none
}

// pass looks once for what the job is about, and erases it. It reports whether there was any.
func (r *run) pass(ctx context.Context) (bool, error) {
	hits, err := r.look(ctx)
	if err != nil {
		return false, err
	}
	if r.remember(hits) {
		r.journal = 0 // earlier records may be about these events
		if err := r.s.seal(r.job, r.about); err != nil {
			return false, err
		}
		if err := r.note(ctx, true); err != nil { // before their bytes are gone
			return false, err
		}
	}
	sends := map[string]*notification.Notification{} // by id; nil when no message of it was found
	for _, h := range hits {
		if n := h.notification; n != nil && (sends[n.ID] == nil || sends[n.ID].Send < n.Send) {
			sends[n.ID] = n
		}
	}
	recorded, err := r.recorded(ctx)
	if err != nil {
		return false, err
	}
	for id := range recorded {
		if _, known := sends[id]; !known {
			sends[id] = nil
		}
	}
	changed := len(hits) > 0
	for id, n := range sends {
		ended, err := r.end(ctx, id, n)
		if err != nil {
			return false, err
		}
		changed = changed || ended
	}
	for _, h := range hits {
		if err := r.erase(ctx, h.stream, h.sequence); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// look returns messages that the job is about, of all streams but the journal, from where the last pass stopped.
func (r *run) look(ctx context.Context) ([]hit, error) {
	account := r.job.Account
	var hits []hit
	for _, place := range []struct{ stream, subject string }{
		{topology.Events, event.SubjectPrefix + account + ".>"},
		{topology.Bodies, topology.SubjectBody(account, "*", "*", "*")},
		{topology.Notifications, topology.SubjectNotification(account, "*")},
		{topology.Retries, topology.SubjectRetryAt(account, "*")},
		{topology.Retries, topology.SubjectRetryDue(account, "*", "*")},
		{topology.Parked, topology.SubjectParked(account, "*", "*")},
		{topology.Failed, topology.SubjectFailed(account, "*", "*")},
		{topology.Rejected, "gancho.rejected.*"},
		{topology.Quarantine, "gancho.quarantine.>"},
	} {
		for len(hits) < atOnce {
			raw, err := r.s.bus.Get(ctx, place.stream, place.subject, max(r.next[place.subject], 1))
			if errors.Is(err, bus.ErrNotFound) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("look through %s: %w", place.stream, err)
			}
			h, err := r.match(ctx, place.stream, raw)
			if err != nil {
				return nil, err
			}
			if h != nil {
				hits = append(hits, *h)
			}
			r.next[place.subject] = raw.Sequence + 1
			if err := r.note(ctx, false); err != nil {
				return nil, err
			}
		}
	}
	return hits, nil
}

// match returns raw as a hit, nil when the job is not about it.
func (r *run) match(ctx context.Context, stream string, raw *bus.Stored) (*hit, error) {
	h := &hit{stream: stream, sequence: raw.Sequence}
	switch stream {
	case topology.Events:
		e, rejected := event.Parse(event.Message{Subject: raw.Subject, Header: raw.Header.Get, Body: raw.Data, Sequence: raw.Sequence})
		if rejected != nil {
			return h.when(r.about.mentioned(r.job.Kind, raw.Data)), nil
		}
		h.event = e.ID
		return h.when(r.wants(&e)), nil
	case topology.Bodies:
		var m event.Message
		m, h.event = bodies.Event(raw)
		e, rejected := event.Parse(m)
		return h.when(r.known(h.event) || rejected == nil && r.wants(&e)), nil
	case topology.Rejected, topology.Quarantine:
		if !r.ours(raw) {
			return nil, nil
		}
		n, err := notification.Decode(raw.Header, raw.Data)
		if err != nil {
			return h.when(r.about.mentioned(r.job.Kind, raw.Data)), nil
		}
		wanted, err := r.wantsNotification(ctx, &n)
		return h.when(wanted || r.about.mentioned(r.job.Kind, raw.Data)), err
	}
	n, err := notification.Decode(raw.Header, raw.Data)
	if err != nil && !errors.Is(err, wireversion.ErrNewer) {
		return h.when(r.about.mentioned(r.job.Kind, raw.Data)), nil // a dispatcher sets it aside
	}
	if wanted, err := r.wantsNotification(ctx, &n); err != nil || !wanted {
		return nil, err
	}
	n.Body = nil
	h.event, h.notification = n.EventID, &n
	return h, nil
}

func (h *hit) when(ok bool) *hit {
	if !ok {
		return nil
	}
	return h
}

// ours reports whether a message that was set aside is the account's.
func (r *run) ours(raw *bus.Stored) bool {
	if account := raw.Header.Get(notification.HeaderAccount); account != "" {
		return account == r.job.Account
	}
	return slices.Contains(strings.Split(raw.Header.Get(topology.HeaderSubject), "."), r.job.Account)
}

func (r *run) wants(e *event.Event) bool {
	switch r.job.Kind {
	case byDocument:
		return e.Document == r.about.Value
	case byTransaction:
		return e.Transaction == r.about.Value
	default:
		return e.Is(r.about.Value)
	}
}

// wantsNotification is wants for a message between the lanes: its event may have aged out.
func (r *run) wantsNotification(ctx context.Context, n *notification.Notification) (bool, error) {
	if r.known(n.EventID) {
		return true, nil
	}
	subject := ""
	if n.Ref != nil { // each body is fetched once
		subject = n.Ref.Subject(n.Account, n.EventID)
		if wanted, known := r.bodies[subject]; known {
			return wanted, nil
		}
		if err := bodies.Fill(ctx, r.s.bus, n); err != nil && !errors.Is(err, bodies.ErrGone) {
			return false, err
		}
	}
	e, rejected := event.Parse(event.Message{
		Subject: event.Subject(n.Account, n.EventName), Header: func(string) string { return "" }, Body: n.Body, Sequence: n.EventSequence,
	})
	wanted := rejected == nil && r.wants(&e)
	if n.Ref != nil {
		r.bodies[subject] = wanted
	}
	return wanted, nil
}

// known reports whether the job is about the event with that id, as far as it knows already.
func (r *run) known(id string) bool {
	return id == r.about.Value || slices.Contains(r.about.Events, id)
}

// mentioned reports whether a body that is no event is about the target all the same: by its members where it is JSON,
// by the id as a word of the text where it is not.
func (t *target) mentioned(kind string, body []byte) bool {
	if kind == byEvent {
		return false // such a message has no event id
	}
	if gjson.ValidBytes(body) {
		path := map[string]string{byDocument: "document.id", byTransaction: "transaction_uuid"}[kind]
		for _, prefix := range []string{"", "data."} { // of a CloudEvent
			if v := gjson.GetBytes(body, prefix+path); v.Exists() && v.String() == t.Value {
				return true
			}
		}
		return false
	}
	for rest := body; ; {
		at := bytes.Index(rest, []byte(t.Value))
		if at < 0 {
			return false
		}
		before, _ := utf8.DecodeLastRune(rest[:at])
		after, _ := utf8.DecodeRune(rest[at+len(t.Value):])
		if !word(before) && !word(after) {
			return true
		}
		rest = rest[at+1:]
	}
}

func word(r rune) bool { return r == '_' || r == '-' || unicode.IsLetter(r) || unicode.IsDigit(r) }

// remember takes over the ids and sequences of events, and reports whether any was not known.
func (r *run) remember(hits []hit) bool {
	changed := false
	for _, h := range hits {
		if h.stream == topology.Events && h.sequence > r.about.Last {
			r.about.Last, changed = h.sequence, true
		}
		if h.event == "" || slices.Contains(r.about.Events, h.event) {
			continue
		}
		r.about.Events = append(r.about.Events, h.event)
		r.job.Matched++
		changed = true
	}
	r.about.Events = r.about.Events[max(0, len(r.about.Events)-mostEvents):]
	return changed
}

// recorded returns the ids of notifications of the events that the journal has records of, beyond the record of their
// erasure, from where the last pass stopped.
func (r *run) recorded(ctx context.Context) (map[string]bool, error) {
	first, last, err := journal.Ends(ctx, r.s.bus)
	if err != nil || last == 0 {
		return nil, err
	}
	found := map[string]bool{}
	var noteErr error
	from := max(r.journal, first)
	err = journal.SummariesOf(ctx, r.s.bus, r.job.Account, from, last, func(s *notification.Summary) {
		if noteErr == nil {
			noteErr = r.note(ctx, false)
		}
		if r.isOf(s) {
			found[s.NotificationID] = true
		}
	})
	if err = errors.Join(err, noteErr); err != nil {
		return nil, fmt.Errorf("look through ATTEMPTS: %w", err)
	}
	r.journal = last + 1
	return found, nil
}

// isOf reports whether a record is about a notification of the events.
func (r *run) isOf(s *notification.Summary) bool {
	if s.EventID != "" {
		return s.EventID == r.about.Value || slices.Contains(r.about.Events, s.EventID)
	}
	webhook, err := uuid.Parse(s.WebhookID) // of an older version: the notification's id says it
	return err == nil && slices.ContainsFunc(r.about.Events, func(id string) bool { return event.NotificationID(id, webhook) == s.NotificationID })
}

// end ends a notification where it is on its way, and erases the records before. n is its newest message, nil when none
// was found. It reports whether there was anything to do.
func (r *run) end(ctx context.Context, id string, n *notification.Notification) (changed bool, err error) {
	last, err := r.close(ctx, id, n)
	if err != nil {
		return false, err
	}
	subject := topology.SubjectAttempts(r.job.Account, id)
	for at := uint64(1); last > 0; {
		raw, err := r.s.bus.Get(ctx, topology.Attempts, subject, at)
		if errors.Is(err, bus.ErrNotFound) || err == nil && raw.Sequence >= last {
			return changed, nil
		}
		if err != nil {
			return changed, fmt.Errorf("look through ATTEMPTS: %w", err)
		}
		if err := r.erase(ctx, topology.Attempts, raw.Sequence); err != nil {
			return changed, err
		}
		changed, at = true, raw.Sequence+1
	}
	return changed, nil
}

// close writes the last record of a notification and returns its sequence, 0 when nothing is known of the notification.
func (r *run) close(ctx context.Context, id string, n *notification.Notification) (uint64, error) {
	for {
		last, err := journal.Last(ctx, r.s.bus, r.job.Account, id)
		var record *notification.Record
		switch now := time.Now(); {
		case errors.Is(err, bus.ErrNotFound) && n == nil:
			return 0, nil
		case err != nil && !errors.Is(err, bus.ErrNotFound):
			return 0, fmt.Errorf("read the journal: %w", err)
		case err != nil: // no attempt of it was made
			record = n.Record(notification.Position{}, notification.KindCancelled, now)
			record.Ended(notification.ReasonErased)
		case n != nil && n.Send > last.Send: // it was sent again, and that send has no record
			record = n.Record(notification.Position{Journal: last.Sequence}, notification.KindCancelled, now)
			record.Ended(notification.ReasonErased)
		default:
			if record = notification.Erase(last, now); record == nil {
				return last.Sequence, nil
			}
		}
		sequence, err := journal.Write(ctx, r.s.bus, record)
		if err == nil || !errors.Is(err, bus.ErrConflict) {
			return sequence, err
		}
	}
}

func (r *run) erase(ctx context.Context, stream string, sequence uint64) error {
	r.erased = true
	if err := r.s.bus.Erase(ctx, stream, sequence); err != nil {
		return err
	}
	if r.job.Erased == nil {
		r.job.Erased = map[string]uint64{}
	}
	r.job.Erased[stream]++
	return r.note(ctx, false)
}
