package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"gancho/pkg/client"
	"gancho/pkg/condition"
	"gancho/pkg/sleep"
)

type webhooksCmd struct {
	List         webhooksList         `cmd:"" help:"List the webhooks, oldest first."`
	Get          webhooksGet          `cmd:"" help:"Show a webhook and, when it is suspended, why."`
	Create       webhooksCreate       `cmd:"" help:"Register a webhook and show its signing secret, this once."`
	Update       webhooksUpdate       `cmd:"" help:"Change a webhook; this also lifts a suspension of its URL."`
	Delete       webhooksDelete       `cmd:"" help:"Delete a webhook. Notifications that wait for it are cancelled."`
	Match        webhooksMatch        `cmd:"" help:"Hold its conditions against an event; nothing is sent."`
	Test         webhooksTest         `cmd:"" help:"Send it a sample of its event through the real path."`
	Suspend      webhooksSuspend      `cmd:"" help:"Suspend its URL until it is resumed by hand or changed."`
	Resume       webhooksResume       `cmd:"" help:"Lift the suspension of its URL at once."`
	RotateSecret webhooksRotateSecret `cmd:"" help:"Make a new signing secret; the old one signs along for 24 hours."`
}

// webhookArg names the webhook of a command.
type webhookArg struct {
	ID string `arg:"" help:"Id of the webhook."`
}

type webhooksList struct {
	Status string `placeholder:"STATUS" help:"Only those that are active, suspended or disabled."`
	Event  string `placeholder:"NAME" help:"Only of exactly this event or pattern."`
	URL    string `name:"url" placeholder:"URL" help:"Only with this URL; * stands for any characters."`
	Name   string `placeholder:"NAME" help:"Only with this name; * stands for any characters."`
	Sort   string `placeholder:"MEMBER" help:"Sort by created_at (the default), updated_at, name, event_name or url; - in front for the other direction."`
	apiFlags
}

func (webhooksList) Help() string {
	return `Examples:

	gancho webhooks list --url 'https://erp.example.com/*' --sort=-updated_at
	gancho webhooks list --status suspended -o json | jq -r '.[].id'`
}

func (c webhooksList) Run(a *app) error {
	rows := [][]string{{"ID", "STATUS", "EVENT", "METHOD", "URL", "NAME"}}
	var all []json.RawMessage
	f := client.WebhookFilter{Status: c.Status, EventName: c.Event, URL: c.URL, Name: c.Name, Sort: c.Sort}
	for r, err := range a.client.FindWebhooks(a.ctx, f) {
		if err != nil {
			return err
		}
		w := r.Value
		all, rows = append(all, r.Raw), append(rows, []string{w.ID, w.Status, w.EventName, w.Method, w.URL, w.Name})
	}
	if a.output == "json" {
		return a.allAsJSON(all)
	}
	return a.rows(rows)
}

type webhooksGet struct {
	webhookArg
	apiFlags
}

func (c webhooksGet) Run(a *app) error {
	return a.showWebhook(a.client.Webhook(a.ctx, c.ID))
}

func (a *app) showWebhook(r client.Result[client.Webhook], err error) error {
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	w := r.Value
	pairs := []pair{
		{"id", w.ID},
		{"name", w.Name},
		{"event", w.EventName},
		{"request", w.Method + " " + w.URL},
		{"auth header", w.AuthHeader},
		{"signature", w.Signature},
		{"status", w.Status},
	}
	if auth := w.Auth; auth != nil {
		pairs = append(pairs, pair{"auth", authText(auth)})
	}
	if n := w.Notify; n != nil {
		to := n.Emails
		if n.URL != "" {
			to = append(to, n.URL)
		}
		pairs = append(pairs, pair{"notices to", strings.Join(to, ", ") + " (" + n.Language + ")"})
	}
	if w.DisabledReason != nil {
		pairs = append(pairs, pair{"disabled because", *w.DisabledReason})
	}
	for _, c := range w.Conditions {
		pairs = append(pairs, pair{"when", conditionText(c)})
	}
	if w.Stale == "skip" {
		pairs = append(pairs, pair{"stale", "notifications that a newer event overtook are left out"})
	}
	if w.MaxPerMinute != nil {
		pairs = append(pairs, pair{"at most", fmt.Sprintf("%d requests to its URL per minute", *w.MaxPerMinute)})
	}
	if w.PublicKey != "" {
		pairs = append(pairs, pair{"public key", w.PublicKey})
	}
	if s := w.Suspension; s != nil {
		pairs = append(pairs, suspensionPairs(s)...)
	}
	pairs = append(pairs, pair{"created", stamp(w.CreatedAt)}, pair{"updated", stamp(w.UpdatedAt)})
	if w.SigningSecret != "" {
		pairs = append(pairs, pair{"signing secret", w.SigningSecret + "  (shown this once)"})
	}
	if w.NotifySecret != "" {
		pairs = append(pairs, pair{"secret of notices", w.NotifySecret + "  (shown this once)"})
	}
	return a.pairs(pairs...)
}

func authText(auth *client.Auth) string {
	if auth.Type != "mtls" {
		return auth.Type + ": client " + auth.ClientID + " at " + auth.TokenURL
	}
	text := auth.Type + ": certificate of " + auth.Subject
	if auth.ExpiresAt != nil {
		text += ", which ends " + stamp(*auth.ExpiresAt)
	}
	return text
}

func conditionText(c client.Condition) string {
	return condition.Condition{Path: c.Path, Op: condition.Op(c.Op), Value: c.Value}.String()
}

func suspensionPairs(s *client.Suspension) []pair {
	why := "by hand"
	if s.Reason != "by_hand" {
		why = fmt.Sprintf("%s: %d failures from %s to %s, last %s", s.Reason, s.Evidence.Failures,
			stamp(s.Evidence.FirstAt), stamp(s.Evidence.LastAt), strings.Join(s.Evidence.Statuses, ", "))
	}
	next := "resume it by hand, or change the webhook"
	if s.Until != nil {
		next = "tried again at " + stamp(*s.Until)
	}
	parked := "not known at the moment"
	if s.Parked != nil {
		if parked = fmt.Sprint(*s.Parked); s.OldestParkedAt != nil {
			parked += ", the oldest since " + stamp(*s.OldestParkedAt)
		}
	}
	return []pair{{"suspended", "since " + stamp(s.Since) + ", " + why}, {"next", next}, {"parked", parked}}
}

// webhookFields are the settings of a webhook.
type webhookFields struct {
	Method       *string  `placeholder:"METHOD" help:"POST (the default), PUT, PATCH, GET or DELETE."`
	AuthHeader   *string  `placeholder:"NAME" help:"Header to send with every request, such as Authorization."`
	AuthKey      *string  `placeholder:"VALUE" xor:"key" help:"Its value. Better give --auth-key-file, which no list of processes shows."`
	AuthKeyFile  string   `placeholder:"FILE" xor:"key" help:"File that holds the value; - is standard input."`
	When         []string `sep:"none" xor:"when" placeholder:"CONDITION" help:"Send only events for which this holds, such as 'document.amount_total gt 1000' or '$$changed contains deal_stage'; again for more."`
	Signature    *string  `enum:"hmac,ed25519" help:"hmac (the default: a secret both sides hold) or ed25519 (receivers verify with a public key)."`
	Stale        *string  `enum:"send,skip" help:"skip: leave out a notification that waited when a later event of its document was delivered meanwhile; send (the default): send it."`
	MaxPerMinute *int     `placeholder:"N" help:"Send its URL at most N requests in any minute, 1 to 60000; more wait and are sent oldest first. 0: no limit."`

	Oauth2TokenURL         string `name:"oauth2-token-url" xor:"auth" placeholder:"URL" help:"Token server: a token of the grant client_credentials is sent as Authorization."`
	Oauth2ClientID         string `name:"oauth2-client-id" placeholder:"ID" help:"The client's id there."`
	Oauth2ClientSecretFile string `name:"oauth2-client-secret-file" placeholder:"FILE" help:"File that holds the client's secret; - is standard input."`
	Oauth2Scope            string `name:"oauth2-scope" placeholder:"SCOPE" help:"Scope to ask for: words separated by spaces."`
	Oauth2Audience         string `name:"oauth2-audience" placeholder:"AUDIENCE" help:"Audience to ask for."`
	ClientCertificate      string `xor:"auth" placeholder:"FILE" help:"PEM file with the client certificate to show to the receiver (mTLS), and the intermediate ones."`
	ClientKey              string `placeholder:"FILE" help:"PEM file with its private key, without a passphrase."`

	NotifyEmail    []string `sep:"none" placeholder:"ADDRESS" help:"Send notices of its troubles to this e-mail address; again for more. Replaces whom they went to."`
	NotifyURL      string   `name:"notify-url" placeholder:"URL" help:"Send them to this URL, as signed requests."`
	NotifyLanguage string   `enum:",en,pt-BR" default:"" help:"Their language: en (the default) or pt-BR."`
}

// auth returns how requests prove who sends them, nil when no flag says so.
func (f webhookFields) auth(a *app) (*client.Auth, error) {
	switch {
	case f.ClientCertificate != "" || f.ClientKey != "":
		if f.ClientCertificate == "" || f.ClientKey == "" {
			return nil, usage("give both --client-certificate and --client-key")
		}
		certificate, err := a.read(f.ClientCertificate)
		if err != nil {
			return nil, err
		}
		key, err := a.read(f.ClientKey)
		if err != nil {
			return nil, err
		}
		return &client.Auth{Type: "mtls", Certificate: string(certificate), PrivateKey: string(key)}, nil
	case f.Oauth2TokenURL != "":
		auth := &client.Auth{Type: "oauth2", TokenURL: f.Oauth2TokenURL, ClientID: f.Oauth2ClientID, Scope: f.Oauth2Scope, Audience: f.Oauth2Audience}
		if f.Oauth2ClientSecretFile != "" {
			secret, err := a.read(f.Oauth2ClientSecretFile)
			if err != nil {
				return nil, err
			}
			auth.ClientSecret = strings.TrimRight(string(secret), "\r\n")
		}
		return auth, nil
	case f.Oauth2ClientID != "" || f.Oauth2ClientSecretFile != "" || f.Oauth2Scope != "" || f.Oauth2Audience != "":
		return nil, usage("give --oauth2-token-url, too: the settings of a client are given together")
	}
	return nil, nil
}

// change returns the given settings, with the key read from its file.
func (f webhookFields) change(a *app) (client.Change, error) {
	c := client.Change{Method: f.Method, AuthHeader: f.AuthHeader, AuthKey: f.AuthKey, Signature: f.Signature, Stale: f.Stale, MaxPerMinute: f.MaxPerMinute}
	if f.AuthKeyFile != "" {
		text, err := a.read(f.AuthKeyFile)
		if err != nil {
			return c, err
		}
		key := strings.TrimRight(string(text), "\r\n")
		c.AuthKey = &key
	}
	if f.When != nil {
		conditions, err := parseConditions(f.When)
		if err != nil {
			return c, err
		}
		c.Conditions = &conditions
	}
	var err error
	if c.Auth, err = f.auth(a); err != nil {
		return c, err
	}
	switch {
	case f.NotifyEmail != nil || f.NotifyURL != "":
		c.Notify = &client.Notify{Emails: f.NotifyEmail, URL: f.NotifyURL, Language: f.NotifyLanguage}
		if c.Notify.Emails == nil {
			c.Notify.Emails = []string{}
		}
	case f.NotifyLanguage != "":
		return c, usage("give --notify-email or --notify-url, too: the settings of notices are given together")
	}
	return c, nil
}

// parseConditions reads conditions as people write them. Whether they can be used is for the API to say.
func parseConditions(lines []string) ([]client.Condition, error) {
	conditions := []client.Condition{}
	for _, line := range lines {
		c, err := condition.Parse(line)
		if err != nil {
			return nil, usage("%v", err)
		}
		conditions = append(conditions, client.Condition{Path: c.Path, Op: string(c.Op), Value: c.Value})
	}
	return conditions, nil
}

// maxFile limits files given on the command line, in bytes: the largest event that can be configured.
const maxFile = 64 << 20

// read returns the content of a file; - is standard input. It ends early with the command's context.
func (a *app) read(file string) ([]byte, error) {
	in := a.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usage("%v", err)
		}
		defer f.Close()
		in = f
	}
	var text []byte
	var err error
	done := make(chan struct{})
	go func() {
		text, err = io.ReadAll(io.LimitReader(in, maxFile+1))
		close(done)
	}()
	select {
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	case <-done:
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(text) > maxFile {
		return nil, usage("%s is larger than 64 MiB, more than any event may be", file)
	}
	return text, nil
}

type webhooksCreate struct {
	Name  string `required:"" help:"What people call it."`
	Event string `required:"" help:"Event name, or a pattern with one *: crm_deal_created, crm_deal_*, crm_*_deleted, *."`
	URL   string `required:"" name:"url" placeholder:"URL" help:"Where to send notifications: https://..."`
	webhookFields
	apiFlags
}

func (webhooksCreate) Help() string {
	return `Examples:

	gancho webhooks create --name Deals --event 'crm_deal_*' --url https://example.com/hooks/deals
	gancho webhooks create --name Won --event crm_deal_updated --url https://example.com/hooks/won --when 'document.amount_total gt 1000' --when '$changed contains deal_stage'
	pass show erp | gancho webhooks create --name ERP --event crm_deal_updated --url https://erp.example.com/in --auth-header Authorization --auth-key-file -
	pass show client | gancho webhooks create --name Bank --event '*' --url https://api.example.com/in --oauth2-token-url https://auth.example.com/token --oauth2-client-id crm --oauth2-client-secret-file -`
}

func (c webhooksCreate) Run(a *app) error {
	change, err := c.change(a)
	if err != nil {
		return err
	}
	change.Name, change.EventName, change.URL = &c.Name, &c.Event, &c.URL
	return a.showWebhook(a.client.CreateWebhook(a.ctx, change))
}

type webhooksUpdate struct {
	webhookArg
	Name   *string `help:"What people call it."`
	Event  *string `help:"Event name, or a pattern with one *."`
	URL    *string `name:"url" placeholder:"URL" help:"Where to send notifications. Parked notifications follow."`
	Status *string `enum:"active,disabled" help:"active or disabled: no new events are matched, and waiting notifications are parked."`
	webhookFields
	NoAuth   bool `help:"Remove the auth header, token and client certificate that are not given with it."`
	NoNotify bool `help:"Send notices to whom the account says, if to anyone."`
	Always   bool `xor:"when" help:"Send all events of that name: remove the conditions."`
	apiFlags
}

func (webhooksUpdate) Help() string {
	return `What is not given stays as it is. Examples:

	gancho webhooks update ID --url https://example.com/hooks/v2
	gancho webhooks update ID --status disabled`
}

func (c webhooksUpdate) Run(a *app) error {
	change, err := c.change(a)
	if err != nil {
		return err
	}
	change.Name, change.EventName, change.URL, change.Status, change.RemoveAuth = c.Name, c.Event, c.URL, c.Status, c.NoAuth
	change.RemoveNotify = c.NoNotify
	if c.Always {
		change.Conditions = &[]client.Condition{}
	}
	if change == (client.Change{}) {
		return usage("nothing to change was given")
	}
	if c.NoNotify && change.Notify != nil {
		return usage("--no-notify removes whom notices go to; leave out --notify-email and --notify-url")
	}
	return a.showWebhook(a.client.UpdateWebhook(a.ctx, c.ID, change))
}

type webhooksDelete struct {
	webhookArg
	apiFlags
}

func (c webhooksDelete) Run(a *app) error {
	if err := a.client.DeleteWebhook(a.ctx, c.ID); err != nil {
		return err
	}
	return a.done("deleted", c.ID)
}

// done says that something without an answer was done.
func (a *app) done(what, id string) error {
	if a.output == "json" {
		raw, err := json.Marshal(map[string]string{"id": id, "state": what})
		return errors.Join(err, a.asJSON(raw))
	}
	_, err := fmt.Fprintln(a.Stdout, what, clean(id))
	return err
}

type webhooksMatch struct {
	webhookArg
	File    string   `arg:"" optional:"" help:"File that holds the event, a JSON object; - is standard input."`
	EventID string   `placeholder:"ID" help:"Id of a past event of the account, instead of a file."`
	Changed []string `placeholder:"PATH" help:"With a file: the paths that the change touched ($$changed)."`
	Origin  string   `placeholder:"ORIGIN" help:"With a file: who caused it ($$origin)."`
	apiFlags
}

func (webhooksMatch) Help() string {
	return `The exit code is 0 when all conditions hold, else 1. Examples:

	gancho webhooks match ID deal.json --changed deal_stage,amount_total
	gancho webhooks match ID --event-id 8f0d6c1e-7f4a-5a52-8f0b-2b9f9f0c6a10`
}

func (c webhooksMatch) Run(a *app) error {
	trial := client.Trial{EventID: c.EventID, Changed: c.Changed, Origin: c.Origin}
	switch {
	case (c.File == "") == (c.EventID == ""):
		return usage("give a file with an event, or --event-id")
	case c.File != "":
		body, err := a.read(c.File)
		if err != nil {
			return err
		}
		if !json.Valid(body) {
			return usage("%s is not JSON; an event is a JSON object", c.File)
		}
		trial.Body = body
	}
	r, err := a.client.TestConditions(a.ctx, c.ID, trial)
	if err != nil {
		return err
	}
	if !r.Value.Held {
		a.code = exitError
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	rows := [][]string{{"HOLDS", "CONDITION", "FOUND"}}
	for _, checked := range r.Value.Conditions {
		holds, found := "no", "nothing"
		if checked.Held {
			holds = "yes"
		}
		if checked.Found != nil {
			found = string(checked.Found)
		}
		rows = append(rows, []string{holds, conditionText(checked.Condition), found})
	}
	if len(rows) == 1 {
		_, err := fmt.Fprintln(a.Stdout, "the webhook has no conditions: all events of that name are sent")
		return err
	}
	return a.rows(rows)
}

type webhooksTest struct {
	webhookArg
	Wait bool `help:"Wait until the first attempt was made, and show it. The exit code is 0 only when it was delivered."`
	apiFlags
}

func (webhooksTest) Help() string {
	return `Example:

	gancho webhooks test ID --wait`
}

// How a test waits: looking each testEvery, for at most testFor.
const (
	testEvery = 300 * time.Millisecond
	testFor   = 90 * time.Second
)

func (c webhooksTest) Run(a *app) error {
	r, err := a.client.TestWebhook(a.ctx, c.ID)
	if err != nil || !c.Wait {
		return a.showNotification(r, err)
	}
	for until := a.now.Add(testFor); r.Value.State == "pending"; {
		if time.Now().After(until) {
			return fmt.Errorf("no attempt of notification %s was made within %v; see gancho notifications explain", r.Value.ID, testFor)
		}
		if !sleep.For(a.ctx, testEvery) {
			return a.ctx.Err()
		}
		if r, err = a.client.Notification(a.ctx, r.Value.ID); err != nil {
			return err
		}
	}
	if r.Value.State != "delivered" {
		a.code = exitError
	}
	return a.showNotification(r, nil)
}

type webhooksSuspend struct {
	webhookArg
	apiFlags
}

func (c webhooksSuspend) Run(a *app) error {
	return a.showWebhook(a.client.SuspendWebhook(a.ctx, c.ID))
}

type webhooksResume struct {
	webhookArg
	apiFlags
}

func (c webhooksResume) Run(a *app) error {
	return a.showWebhook(a.client.ResumeWebhook(a.ctx, c.ID))
}

type webhooksRotateSecret struct {
	webhookArg
	apiFlags
}

func (c webhooksRotateSecret) Run(a *app) error {
	return a.showWebhook(a.client.RotateSecret(a.ctx, c.ID))
}
