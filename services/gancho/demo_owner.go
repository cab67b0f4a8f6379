package gancho

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/client"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/notification"
	"gancho/pkg/sleep"
)

// owner is the part of the tour that shows how an owner gets the right events only: a condition, an event that a newer
// one makes stale, and a look-up by document. It has a webhook and a receiver of its own.
type owner struct {
	d       *demo
	webhook string
	failing atomic.Bool // the receiver refuses
	// pause is how many seconds it then asks the sender to wait: long enough for a newer event to be delivered in
	// between on most machines. Where it is not, the next document shows it, after twice that time.
	pause atomic.Int64
}

func (o *owner) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if o.failing.Load() {
		w.Header().Set("Retry-After", strconv.FormatInt(o.pause.Load(), 10))
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (o *owner) play(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: o, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // ends with Close
	defer server.Close()
	name, deals, url, stale := "Large deals", "crm_deal_updated", "http://"+listener.Addr().String()+"/deals", "skip"
	created, err := o.d.client.CreateWebhook(ctx, client.Change{
		Name: &name, EventName: &deals, URL: &url, Stale: &stale,
		Conditions: &[]client.Condition{{Path: "document.amount_total", Op: "gt", Value: json.RawMessage("1000")}},
	})
	if err != nil {
		return fmt.Errorf("register a webhook with a condition: %w", err)
	}
	o.webhook = created.Value.ID
	o.d.say("a fourth webhook wants large deals only (document.amount_total gt 1000), and nothing stale")
	if err := o.condition(ctx); err != nil {
		return fmt.Errorf("show a condition: %w", err)
	}
	document, err := o.superseded(ctx)
	if err != nil {
		return fmt.Errorf("show a stale notification: %w", err)
	}
	return o.lookUp(ctx, document)
}

// publish stores an event of a document as the CRM does, and returns its id.
func (o *owner) publish(ctx context.Context, document string, amount int) (string, error) {
	body := fmt.Appendf(nil, `{"event_name":"crm_deal_updated","transaction_uuid":%q,"document":{"id":%q,"amount_total":%d}}`, uuid.NewString(), document, amount)
	subject := event.Subject(firstAccount, "crm_deal_updated")
	e, rejected := event.Parse(event.Message{Subject: subject, Header: func(string) string { return "" }, Body: body})
	if rejected != nil {
		return "", rejected
	}
	for _, r := range o.d.receivers { // they get it too, and the books do not count it
		r.expectWarmUp(event.NotificationID(e.ID, r.webhook))
	}
	_, err := eventstream.Publish(ctx, o.d.bus, subject, e.MsgID(), nil, body)
	return e.ID, err
}

// condition publishes small deals until one is held back: the first may come before the publisher knows the webhook.
func (o *owner) condition(ctx context.Context) error {
	return o.until(ctx, func() (bool, error) {
		id, err := o.publish(ctx, uuid.NewString(), 500)
		if err != nil {
			return false, err
		}
		e, err := o.known(ctx, id)
		if err != nil {
			return false, err
		}
		for _, u := range e.Unmatched {
			if u.WebhookID == o.webhook && u.Why == "condition" {
				var c client.Condition
				if err := json.Unmarshal(u.Condition, &c); err != nil {
					return false, err
				}
				fmt.Fprintf(o.d.out, "  held back   a deal of %s, as %s %s %s does not hold\n", u.Found, c.Path, c.Op, c.Value)
				return true, nil
			}
		}
		return false, nil
	})
}

// known returns an event once the API knows what became of it.
func (o *owner) known(ctx context.Context, id string) (e client.Event, err error) {
	err = o.until(ctx, func() (bool, error) {
		found, err := o.d.client.Event(ctx, id)
		if missing(err) {
			return false, nil
		}
		e = found.Value
		return err == nil && len(e.Notifications)+len(e.Unmatched) > len(o.d.receivers), err
	})
	return e, err
}

// superseded returns a document whose first event failed and was left out once its second one was delivered.
func (o *owner) superseded(ctx context.Context) (document string, err error) {
	hook := uuid.MustParse(o.webhook)
	o.pause.Store(1)
	state := func(id string) (client.Notification, error) {
		n, err := o.d.client.Notification(ctx, event.NotificationID(id, hook))
		if missing(err) {
			return client.Notification{}, nil
		}
		return n.Value, err
	}
	err = o.until(ctx, func() (bool, error) {
		document = uuid.NewString()
		o.failing.Store(true)
		o.pause.Store(2 * o.pause.Load())
		first, err := o.publish(ctx, document, 2000)
		if err != nil {
			return false, err
		}
		if err := o.until(ctx, func() (bool, error) {
			n, err := state(first)
			return n.State != "" && n.State != string(notification.Pending), err
		}); err != nil {
			return false, err
		}
		o.failing.Store(false)
		second, err := o.publish(ctx, document, 3000)
		if err != nil {
			return false, err
		}
		var older client.Notification
		if err := o.until(ctx, func() (bool, error) {
			newer, err := state(second)
			if err == nil {
				older, err = state(first)
			}
			return newer.Ended() && older.Ended(), err
		}); err != nil {
			return false, err
		}
		if older.Reason != notification.Superseded {
			return false, nil // it was sent before the newer one was delivered
		}
		fmt.Fprintf(o.d.out, "  left out    a change of a deal that failed: %s\n", older.Explain.Text)
		return true, nil
	})
	return document, err
}

// lookUp finds the document's events, as the support desk does.
func (o *owner) lookUp(ctx context.Context, document string) error {
	var lines []string
	err := o.until(ctx, func() (bool, error) {
		lines = nil
		for found, err := range o.d.client.FindEvents(ctx, client.Find{DocumentID: document}, 0, nil) {
			if err != nil {
				return false, err
			}
			for _, n := range found.Value.Notifications {
				if n.WebhookID == o.webhook && n.Ended() {
					lines = append(lines, fmt.Sprintf("  looked up   event %s of the deal: %s %s", found.Value.ID[:8], n.State, n.Reason))
				}
			}
		}
		return len(lines) == 2, nil
	})
	if err != nil {
		return fmt.Errorf("look a document up: %w", err)
	}
	fmt.Fprintln(o.d.out, strings.Join(lines, "\n"))
	return nil
}

// missing reports whether the API does not know something yet.
func missing(err error) bool {
	refused, ok := errors.AsType[*client.Error](err)
	return ok && refused.Status == http.StatusNotFound
}

// until repeats is until it says so. It gives up when the tour does, or when is fails for long: the API of a busy
// machine may not answer in time.
func (o *owner) until(ctx context.Context, is func() (bool, error)) error {
	for worked := time.Now(); ; {
		done, err := is()
		switch {
		case err == nil && done:
			return nil
		case err == nil:
			worked = time.Now()
		case ctx.Err() != nil || time.Since(worked) > demoPatience:
			return err
		}
		if !sleep.For(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
}
