// Package audit records who changed what: one record for each change by API, console or operator, in the stream AUDIT.
//
// A record is written after its change and before the change is acknowledged. Where the stream cannot be written, the
// change stands and is acknowledged: the record is then in the log only, and gancho_audit_failures_total counts it.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// Actor is who made a change.
type Actor struct {
	Kind    string `json:"kind" enum:"token,jwt,console,operator,email" doc:"console: a session that a token, a JWT or a portal link opened; email: the link to unsubscribe in a notice"`
	Name    string `json:"name" doc:"the subject of a JWT, or the public name of a token: tok_<8 hex>; of a portal link, its maker's; of an email, its address"`
	Address string `json:"address"`
}

// Object names the thing that changed.
type Object struct {
	Kind string `json:"kind" enum:"webhook,notification,replay,account,portal_link,erasure,other"`
	ID   string `json:"id"`
}

// Record is one change. Before and After are as the API shows the object, without secrets and with the queries of URLs
// masked; null where there is none.
type Record struct {
	ID      string          `json:"id" format:"uuid"`
	At      time.Time       `json:"at"`
	Account string          `json:"account_id"`
	Actor   Actor           `json:"actor"`
	Action  string          `json:"action" doc:"the operationId of the call, such as updateWebhook, also of a change by the console or the older API"`
	Object  Object          `json:"object"`
	Before  json.RawMessage `json:"before"`
	After   json.RawMessage `json:"after"`
}

// Change is what Write records of a change by a caller.
type Change struct {
	Action, Kind, ID string
	Before, After    any // nil: none
}

// writeWithin bounds how long an answer waits for its record.
const writeWithin = 2 * time.Second

// Log writes and reads the records. It is safe for concurrent use.
type Log struct {
	bus      *bus.Bus
	log      *zap.Logger
	failures prometheus.Counter
}

// New returns a log on the stream AUDIT.
func New(b *bus.Bus, log *zap.Logger, metrics prometheus.Registerer) *Log {
	l := &Log{b, log.Named("audit"), prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gancho_audit_failures_total", Help: "Changes whose record could not be stored in AUDIT; it is in the log.",
	})}
	metrics.MustRegister(l.failures)
	return l
}

// Write records a change of the account's that was made, also when the client has gone. It is called before the change
// is acknowledged.
func (l *Log) Write(ctx context.Context, account string, by Actor, c Change) {
	r := Record{
		ID: uuid.NewString(), At: time.Now().UTC().Truncate(time.Millisecond), Account: account, Action: c.Action,
		Actor: by, Object: Object{c.Kind, c.ID}, Before: shown(c.Before), After: shown(c.After),
	}
	fields := []zap.Field{
		zap.String("audit_id", r.ID), zap.String("account_id", r.Account), zap.String("action", r.Action), zap.String("object", r.Object.Kind),
		zap.String("object_id", r.Object.ID), zap.String("actor_kind", r.Actor.Kind), zap.String("actor", r.Actor.Name), zap.String("address", r.Actor.Address),
	}
	body, err := json.Marshal(r)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeWithin)
		defer cancel()
		_, err = l.bus.Publish(ctx, topology.Audit, bus.NewMessage(topology.SubjectAudit(r.Account), r.ID, body))
	}
	if err != nil {
		l.failures.Inc()
		l.log.Error("a change is not in the stream AUDIT; this line is its record", append(fields, zap.ByteString("record", body), zap.Error(err))...)
		return
	}
	l.log.Info("change", fields...)
}

// secrets are the members that no record holds: the answer that makes them shows them once. The url of a portal link
// is one.
var secrets = map[string]bool{"signing_secret": true, "notify_secret": true, "auth_key": true, "client_secret": true, "private_key": true, "token": true}

// shown returns v as JSON for a record.
func shown(v any) json.RawMessage {
	if v == nil {
		return nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var tree any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&tree) != nil {
		return nil
	}
	if text, err = json.Marshal(masked(tree)); err != nil {
		return nil
	}
	return text
}

// masked leaves out secrets and masks the queries of URLs, at any depth.
func masked(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if secrets[name] {
				delete(v, name)
			} else {
				v[name] = masked(member)
			}
		}
	case []any:
		for i := range v {
			v[i] = masked(v[i])
		}
	case string:
		at := strings.IndexByte(v, '?')
		if u, err := url.Parse(v); err == nil && u.Scheme != "" && u.Host != "" && at >= 0 {
			return v[:at] + "?***"
		}
	}
	return v
}

// Filter selects records. Empty members select all.
type Filter struct {
	Account       string
	From, To      time.Time // To is not included
	Action, Actor string
	Object        string // id
	Before        uint64 // only records older than this place; 0: all
	Limit         int
}

func (f *Filter) selects(r *Record) bool {
	return (f.From.IsZero() || !r.At.Before(f.From)) && (f.To.IsZero() || r.At.Before(f.To)) && (f.Action == "" || f.Action == r.Action) &&
		(f.Actor == "" || f.Actor == r.Actor.Name) && (f.Object == "" || f.Object == r.Object.ID)
}

// Page is one page of records, newest first. Next is the Before of the next page, 0 after the last.
type Page struct {
	Records []Record
	Next    uint64
}

// Bounds of one page's reading: records at a time, and how many times.
const (
	window = 2_000
	looks  = 25
)

// List returns the records that f selects, newest first. A page is short, or empty, although there are more, where it
// had to look through more than 50,000 records.
func (l *Log) List(ctx context.Context, f Filter) (Page, error) {
	state, err := l.bus.StreamState(ctx, topology.Audit)
	if err != nil {
		return Page{}, fmt.Errorf("look at AUDIT: %w", err)
	}
	page := Page{Records: []Record{}}
	subject := topology.SubjectAudit("*")
	if f.Account != "" {
		subject = topology.SubjectAudit(f.Account)
	}
	type placed struct {
		Record
		at uint64
	}
	end := state.Last + 1
	if f.Before > 0 {
		end = min(end, f.Before)
	}
	first := max(state.First, 1)
	for range looks {
		if end <= first {
			return page, nil
		}
		begin := max(first, end-min(end, window))
		var found []placed
		cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}}
		err := l.bus.ReadBetween(ctx, topology.Audit, cfg, begin, end-1, func(m jetstream.Msg, sequence uint64) bool {
			var r Record
			if json.Unmarshal(m.Data(), &r) == nil && topology.SubjectAudit(r.Account) == m.Subject() && f.selects(&r) {
				found = append(found, placed{r, sequence})
			}
			return true
		})
		if err != nil {
			return Page{}, fmt.Errorf("read AUDIT: %w", err)
		}
		for _, r := range slices.Backward(found) {
			if len(page.Records) == f.Limit {
				page.Next = r.at + 1
				return page, nil
			}
			page.Records = append(page.Records, r.Record)
		}
		end = begin
	}
	if end > first {
		page.Next = end
	}
	return page, nil
}
