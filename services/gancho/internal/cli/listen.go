package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/client"
	"gancho/pkg/delivery"
	"gancho/pkg/event"
	"gancho/pkg/service"
)

type listenCmd struct {
	Forward string        `required:"" placeholder:"URL" help:"Local address that gets the events, such as http://localhost:3000/hooks."`
	Event   string        `placeholder:"NAME" help:"Only these events: a name, or a pattern such as crm_deal_*."`
	Timeout time.Duration `default:"5s" help:"How long an answer may take."`
	apiFlags
}

func (listenCmd) Help() string {
	return `It forwards the account's events to a local address as they are stored, one after the other, until it is interrupted. The requests are those of a webhook: the event's bytes, the headers and the signature, made with a secret of this run, which it prints. It needs no address that can be reached from outside, sends nothing again, and leaves nothing behind.

Examples:

	gancho listen --forward http://localhost:3000/hooks
	gancho listen --forward http://localhost:3000/hooks --event 'crm_deal_*'`
}

// listenFormat are the columns of a listener, which come one by one.
const listenFormat = "%-20s  %-28s  %-7s  %8s  %9s  %s\n"

func (c listenCmd) Run(a *app) error {
	target, err := url.Parse(c.Forward)
	if err != nil || target.Scheme != "http" && target.Scheme != "https" || target.Host == "" {
		return usage("--forward takes an address such as http://localhost:3000/hooks")
	}
	shown, secret := delivery.NewSecret()
	f := &forwarder{a: a, url: target.String(), run: uuid.New(), secrets: [][]byte{secret}, http: &http.Client{
		Timeout:       c.Timeout,
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	fmt.Fprintln(a.Stderr, "gancho: forwarding to", clean(target.Redacted())+"; the signing secret of this run is",
		shown)
	if a.output != "json" {
		if _, err := fmt.Fprintf(a.Stdout, listenFormat, "STORED", "EVENT", "ANSWER", "MS", "BYTES",
			"EVENT ID"); err != nil {
			return err
		}
	}
	return a.client.TailEvents(a.ctx, c.Event, f.forward, func(err error) {
		fmt.Fprintln(a.Stderr, "gancho:", clean(err.Error())+"; connecting again")
	})
}

// forwarder sends events as a webhook of this run would.
type forwarder struct {
	a       *app
	http    *http.Client
	url     string
	run     uuid.UUID // stands for the webhook
	secrets [][]byte
}

// forward sends one event and prints the answer. An event that cannot be sent is not the end.
func (f *forwarder) forward(e client.StoredEvent) error {
	if uuid.Validate(e.ID) != nil {
		return fmt.Errorf("the API sent an event without an id")
	}
	began := time.Now()
	id := event.NotificationID(e.ID, f.run)
	req, err := http.NewRequestWithContext(f.a.ctx, http.MethodPost, f.url, bytes.NewReader(e.Body))
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"User-Agent": "Gancho/" + service.Version, "Content-Type": "application/json", "Gancho-Event": e.EventName,
		"Gancho-Attempt":    "1",
		"Gancho-Event-Time": e.StoredAt.UTC().Format(delivery.EventTimeFormat),
		"webhook-id":        id, "webhook-timestamp": fmt.Sprint(began.Unix()),
		"webhook-signature": delivery.Sign(id, began, e.Body, f.secrets),
	} {
		req.Header.Set(name, value)
	}
	answer, failure := "none", ""
	resp, err := f.http.Do(req)
	if err == nil {
		answer = fmt.Sprint(resp.StatusCode)
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // for the connection's next use
		resp.Body.Close()
	} else {
		failure = err.Error()
	}
	took := float64(time.Since(began).Microseconds()) / 1000
	if f.a.output == "json" {
		return f.a.line(map[string]any{
			"event_id": e.ID, "event_name": e.EventName, "stored_at": e.StoredAt, "webhook_id": id,
			"bytes": len(e.Body), "answer": answer, "duration_ms": took, "error": failure,
		})
	}
	if _, err := fmt.Fprintf(f.a.Stdout, listenFormat, stamp(e.StoredAt), clean(e.EventName), answer, ms(took),
		fmt.Sprint(len(e.Body)), clean(e.ID)); err != nil {
		return err
	}
	if failure != "" {
		fmt.Fprintln(f.a.Stderr, "gancho:", clean(failure))
	}
	return nil
}
