package api

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/audit"
	"gancho/pkg/condition"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/numbers"
	"gancho/services/management/internal/accounts"
	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/dryrun"
	"gancho/services/management/internal/erasures"
	"gancho/services/management/internal/ingest"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/tail"
	"gancho/services/management/internal/webhooks"
)

// Pages of a list.
const (
	defaultPageSize = 25
	maxPageSize     = 200
)

var pages = []parameter{
	{name: "page[number]", about: "from 1", kind: "integer"},
	{name: "page[size]", about: "1 to 200, 25 by default", kind: "integer"},
}

// cursorPages says how lists that go back to the oldest are paged.
const cursorPages = "Pages follow links.next, a place that new ones do not move. The newest come from an index; those that it has no room for are read from the log, " +
	"slower: such a page can be short, or empty, although has_more is true. Answers 503 while the index is away."

var cursor = []parameter{
	{name: "page[size]", kind: "integer", about: "1 to 200, 25 by default"},
	{name: "page[after]", kind: "string", about: "part of links.next"},
}

var inTime = []parameter{
	{name: "from", kind: "string", format: "date-time", about: "created at this time or later"},
	{name: "to", kind: "string", format: "date-time", about: "created before this time"},
}

var spanOfSteps = []parameter{
	{name: "from", kind: "string", format: "date-time"},
	{name: "to", kind: "string", format: "date-time", about: "now if left out"},
	{name: "step", kind: "string", enum: numbers.StepNames()},
}

var lookUps = []parameter{
	{name: "state", kind: "string", about: "only those in this state now", enum: stateNames()},
	{name: "event_name", kind: "string"},
	{name: "event_id", kind: "string", format: "uuid"},
	{name: "document_id", kind: "string", about: "of an event about this document"},
	{name: "transaction_uuid", kind: "string", about: "of an event of this transaction"},
}

var ifMatch = []parameter{{name: "If-Match", about: "the ETag that the change is meant for; without it the change goes on top of the newest state", kind: "string"}}

func (a *API) routes() []route {
	return []route{
		{
			method: http.MethodPost, path: "/webhooks", id: "createWebhook", tag: "webhooks", write: true, idempotent: true,
			summary: "Register a webhook",
			about:   "The answer carries signing_secret this once. The webhook counts for events published after the answer, within milliseconds.",
			body:    webhookCreate{}, results: []result{{http.StatusCreated, "registered", webhooks.View{}, false, "", true}},
			fails: []int{409}, handle: a.createWebhook,
		},
		{
			method: http.MethodGet, path: "/webhooks", id: "listWebhooks", tag: "webhooks", summary: "List the webhooks, oldest first unless sort says otherwise",
			query: slices.Concat([]parameter{
				{name: "status", kind: "string", enum: webhooks.Statuses()},
				{name: "event_name", kind: "string", about: "exactly this event or pattern"},
				{name: "url", kind: "string", about: "exactly this URL, as written or normalised; * stands for any characters"},
				{name: "name", kind: "string", about: "exactly this name; * stands for any characters"},
				{name: "sort", kind: "string", about: "created_at (the default), updated_at, name, event_name or url; - in front for the other direction"},
			}, pages),
			results: []result{{http.StatusOK, "one page", webhooks.View{}, true, "", false}}, fails: []int{422}, handle: a.listWebhooks,
		},
		{
			method: http.MethodGet, path: "/webhooks/{id}", id: "getWebhook", tag: "webhooks", summary: "Show a webhook",
			results: []result{{http.StatusOK, "the webhook", webhooks.View{}, false, "", true}}, fails: []int{404}, handle: a.getWebhook,
		},
		{
			method: http.MethodPut, path: "/webhooks/{id}", id: "updateWebhook", tag: "webhooks", write: true,
			summary: "Change a webhook",
			about: "Takes any subset of the members. A change lifts the suspension of the URL the webhook had; parked notifications follow a changed URL. " +
				"202: the change is stored, the suspension will be lifted. null removes auth_header and auth_key.",
			headers: ifMatch, body: webhookUpdate{},
			results: []result{{http.StatusOK, "changed", webhooks.View{}, false, "", true}, {http.StatusAccepted, "changed; the suspension is being lifted", webhooks.View{}, false, "", true}},
			fails:   []int{404, 409, 412}, handle: a.updateWebhook,
		},
		{
			method: http.MethodDelete, path: "/webhooks/{id}", id: "deleteWebhook", tag: "webhooks", write: true,
			summary: "Delete a webhook", about: "Notifications that wait for it are cancelled. An attempt in flight may end; none follows.",
			headers: ifMatch, results: []result{{status: http.StatusNoContent, about: "deleted"}}, fails: []int{404, 412}, handle: a.deleteWebhook,
		},
		{
			method: http.MethodPost, path: "/webhooks/{id}/test", id: "testWebhook", tag: "webhooks", write: true, action: true,
			summary: "Send a sample of the webhook's event to it, through the real path",
			results: []result{{http.StatusAccepted, "on its way", notifications.View{}, false, "", false}}, fails: []int{404}, handle: a.testWebhook,
		},
		{
			method: http.MethodPost, path: "/webhooks/{id}/conditions/test", id: "testConditions", tag: "webhooks",
			summary: "Hold the webhook's conditions, or others, against an event",
			about:   "Nothing is sent or changed. The event is one of the account's, by its id, or a body.",
			body:    conditionsTest{}, results: []result{{http.StatusOK, "how each condition fared", dryrun.Result{}, false, "", false}}, fails: []int{404}, handle: a.testConditions,
		},
		{
			method: http.MethodPost, path: "/webhooks/{id}/suspend", id: "suspendWebhook", tag: "webhooks", write: true, action: true,
			summary: "Suspend the webhook's URL by hand", about: "Until it is resumed by hand or the URL is changed; no probes are made. All webhooks of the account with this URL are suspended.",
			results: byHand, fails: []int{404}, handle: a.suspendWebhook,
		},
		{
			method: http.MethodPost, path: "/webhooks/{id}/resume", id: "resumeWebhook", tag: "webhooks", write: true, action: true,
			summary: "Lift the suspension of the webhook's URL at once", about: "Does nothing when it is not suspended.",
			results: byHand, fails: []int{404}, handle: a.resumeWebhook,
		},
		{
			method: http.MethodPost, path: "/webhooks/{id}/rotate_secret", id: "rotateSecret", tag: "webhooks", write: true, action: true,
			summary: "Make a new signing secret", about: "The answer carries it this once, or public_key where signature is ed25519. The old ones sign along until 24 hours after each was replaced, at most three; with immediately none does.",
			body:    rotation{},
			results: []result{{http.StatusOK, "rotated", webhooks.View{}, false, "", true}}, fails: []int{404}, handle: a.rotateSecret,
		},
		{
			method: http.MethodGet, path: "/webhooks/{id}/notifications", id: "listNotifications", tag: "notifications",
			summary: "List the recent notifications of a webhook, newest first",
			about:   cursorPages,
			query:   slices.Concat(lookUps, inTime, cursor),
			results: []result{{http.StatusOK, "one page", notifications.Listed{}, true, "", false}}, fails: []int{404, 422}, handle: a.listNotifications,
		},
		{
			method: http.MethodGet, path: "/webhooks/{id}/stats", id: "getStats", tag: "webhooks",
			summary: "Count a webhook's attempts and notifications, step by step",
			about: "The last 24 hours by hours if left out. Times are rounded to steps, down and up. Numbers are complete up to a few seconds ago; minutes are kept for 48 hours, hours and days for 400 days. " +
				"A message counts in the step in which the broker stored it.",
			query:   spanOfSteps,
			results: []result{{http.StatusOK, "one entry for each step", Stats{}, true, "", false}}, fails: []int{404, 422}, handle: a.getStats,
		},
		{
			method: http.MethodGet, path: "/usage", id: "getUsage", tag: "accounts", summary: "Count what accounts used, step by step",
			about: "Of all accounts, or of account_id. Steps without any are left out; else as the stats of a webhook.",
			query: append([]parameter{{name: "account_id", kind: "string", about: "only this account"}}, spanOfSteps...), allAccounts: true,
			results: []result{{http.StatusOK, "one entry for each step and account", Usage{}, true, "", false}}, fails: []int{422}, handle: a.getUsage,
		},
		{
			method: http.MethodGet, path: "/notifications", id: "findNotifications", tag: "notifications",
			summary: "Find notifications of the account, newest first",
			about:   "Filters combine. Those of deleted webhooks are found too. " + cursorPages,
			query:   slices.Concat(lookUps, []parameter{{name: "webhook_id", kind: "string", format: "uuid"}}, inTime, cursor),
			results: []result{{http.StatusOK, "one page", notifications.Listed{}, true, "", false}}, fails: []int{422}, handle: a.findNotifications,
		},
		{
			method: http.MethodGet, path: "/notifications/{id}", id: "getNotification", tag: "notifications",
			summary: "Show a notification with its attempts, and why it is in its state",
			results: []result{{http.StatusOK, "the notification", notifications.View{}, false, "", false}}, fails: []int{404}, handle: a.getNotification,
		},
		{
			method: http.MethodPost, path: "/notifications/{id}/resend", id: "resendNotification", tag: "notifications", write: true, action: true, idempotent: true,
			summary: "Send a notification again that was delivered or permanently failed",
			results: []result{{http.StatusAccepted, "a new send", notifications.View{}, false, "", false}}, fails: []int{404, 409}, handle: a.resendNotification,
		},
		{
			method: http.MethodPost, path: "/webhooks/{id}/replays", id: "createReplay", tag: "replays", write: true, idempotent: true,
			summary: "Prepare to send a range of past events to a webhook again",
			about:   "Makes a job in state preview, which says how much it is about. Nothing is sent before it is started.",
			body:    replayCreate{}, results: []result{{http.StatusCreated, "the preview", replays.View{}, false, "", false}}, fails: []int{404, 409}, handle: a.createReplay,
		},
		{
			method: http.MethodGet, path: "/webhooks/{id}/replays", id: "listReplays", tag: "replays", summary: "List the replays of a webhook, newest first",
			query: pages, results: []result{{http.StatusOK, "one page", replays.View{}, true, "", false}}, fails: []int{404, 422}, handle: a.listReplays,
		},
		{
			method: http.MethodGet, path: "/replays/{id}", id: "getReplay", tag: "replays", summary: "Show a replay and its progress",
			results: []result{{http.StatusOK, "the replay", replays.View{}, false, "", false}}, fails: []int{404}, handle: a.getReplay,
		},
		{
			method: http.MethodPost, path: "/replays/{id}/start", id: "startReplay", tag: "replays", write: true, action: true, summary: "Start a replay that is a preview",
			results: moved, fails: []int{404, 409}, handle: a.moveReplay((*replays.Service).Start),
		},
		{
			method: http.MethodPost, path: "/replays/{id}/pause", id: "pauseReplay", tag: "replays", write: true, action: true, summary: "Pause a running replay",
			results: moved, fails: []int{404, 409}, handle: a.moveReplay((*replays.Service).Pause),
		},
		{
			method: http.MethodPost, path: "/replays/{id}/resume", id: "resumeReplay", tag: "replays", write: true, action: true, summary: "Go on with a paused replay",
			results: moved, fails: []int{404, 409}, handle: a.moveReplay((*replays.Service).Resume),
		},
		{
			method: http.MethodDelete, path: "/replays/{id}", id: "cancelReplay", tag: "replays", write: true, summary: "Cancel a replay",
			about: "What it sent stays sent.", results: []result{{status: http.StatusNoContent, about: "cancelled"}}, fails: []int{404, 409}, handle: a.cancelReplay,
		},
		{
			method: http.MethodGet, path: "/events", id: "findEvents", tag: "events",
			summary: "Find events of the account, newest first, and how each ended",
			about:   "Filters combine. " + cursorPages,
			query: slices.Concat([]parameter{
				{name: "transaction_uuid", kind: "string"},
				{name: "document_id", kind: "string"},
				{name: "event_name", kind: "string"},
				{name: "from", kind: "string", format: "date-time", about: "stored at this time or later"},
				{name: "to", kind: "string", format: "date-time", about: "stored before this time"},
			}, cursor),
			results: []result{{http.StatusOK, "one page", notifications.Event{}, true, "", false}}, fails: []int{422}, handle: a.findEvents,
		},
		{
			method: http.MethodGet, path: "/events/{event}", id: "getEvent", tag: "events",
			summary: "Show the fate of an event: its notifications, and why other webhooks have none",
			about:   "event is the event's id.",
			results: []result{{http.StatusOK, "the event", notifications.Event{}, false, "", false}}, fails: []int{404}, handle: a.getEvent,
		},
		{
			method: http.MethodPost, path: "/events/{event}", id: "ingestEvent", tag: "events", write: true, rawBody: true, idempotent: true,
			summary: "Take in an event",
			about: "event is the event's name. The body is the event as the CRM writes it, at most EVENT_MAX_BYTES; it is passed on byte for byte. Answered after the broker stored it. " +
				"The same transaction_uuid (or ce-id) again within the duplicate window is delivered once.",
			headers: []parameter{
				{name: "ce-id", kind: "string", about: "identifies an event without transaction_uuid (CloudEvents, binary mode)"},
				{name: "ce-type", kind: "string", about: "if present, the event name"},
				{name: event.HeaderChanged, kind: "string", about: "the paths below document that the change touched, separated by commas; $changed in conditions"},
				{name: event.HeaderOrigin, kind: "string", about: "who caused the event, 1 to 128 characters of [A-Za-z0-9_.:-]; $origin in conditions"},
				{name: "traceparent", kind: "string", about: "W3C trace context, followed through Gancho and not sent to receivers"},
			},
			results: []result{{http.StatusAccepted, "stored", ingest.Accepted{}, false, "", false}}, handle: a.ingestEvent,
		},
		{
			method: http.MethodPost, path: "/portal_links", id: "createPortalLink", tag: "console", write: true,
			summary: "Make a link into the console for a person without a token",
			about: "It opens one session of the account, or of one webhook, once. Its page asks whether to go on, so that a preview does not use it up. " +
				"The session ends after session_ttl seconds, and when the configured token that made the link is removed.",
			body: portalCreate{}, results: []result{{http.StatusCreated, "the link", portalLink{}, false, "", false}}, handle: a.createPortalLink,
		},
		{
			method: http.MethodGet, path: "/tail", id: "tailAttempts", tag: "notifications", stream: true,
			summary: "Watch attempts as they happen",
			about:   "Server-sent events named attempt; their data is an attempt with webhook_id and notification_id. A comment comes every 15 s. A reader that is too slow is cut off with an event named end.",
			query: []parameter{
				{name: "webhook_id", kind: "string", format: "uuid", about: "only of this webhook"},
				{name: "outcome", kind: "string", enum: outcomes},
			},
			results: []result{{http.StatusOK, "a stream", tail.Attempt{}, false, "text/event-stream", false}}, fails: []int{404, 422}, handle: a.tail,
		},
		{
			method: http.MethodGet, path: "/tail/events", id: "tailEvents", tag: "events", stream: true,
			summary: "Watch events as they are stored",
			about: "Server-sent events named event, in order, with the bytes of each in base64; gancho listen forwards them to a local address. A comment comes every 15 s. " +
				"With Last-Event-ID, which browsers and clients send when they connect again, it goes on behind that event.",
			query:   []parameter{{name: "event_name", kind: "string", about: "an event or a pattern such as crm_deal_*; * if left out"}},
			headers: []parameter{{name: "Last-Event-ID", kind: "string", about: "the id of the last event that the client got"}},
			results: []result{{http.StatusOK, "a stream", tail.Event{}, false, "text/event-stream", false}}, fails: []int{422}, handle: a.tailEvents,
		},
		{
			method: http.MethodGet, path: "/openapi.json", id: "getOpenAPI", tag: "meta", public: true, summary: "This document",
			results: []result{{http.StatusOK, "OpenAPI 3.1", map[string]any{}, false, "", false}},
			handle:  a.getDocument,
		},
		{
			method: http.MethodGet, path: "/event_types", id: "listEventTypes", tag: "events", summary: "List the known events with a sample and a schema of each",
			query: pages, results: []result{{http.StatusOK, "one page", catalogue.Type{}, true, "", false}}, fails: []int{422},
			handle: func(c *call) (*answer, error) {
				number, size, err := c.page()
				if err != nil {
					return nil, err
				}
				if !c.query.Has("page[size]") {
					size = maxPageSize
				}
				return paged(c, a.Catalogue.Types(), number, size), nil
			},
		},
		{
			method: http.MethodGet, path: "/accounts/{id}", id: "getAccount", tag: "accounts", operator: true, summary: "Show an account's settings and state",
			results: []result{{http.StatusOK, "the account", accounts.View{}, false, "", false}}, fails: []int{404}, handle: a.getAccount,
		},
		{
			method: http.MethodPut, path: "/accounts/{id}", id: "updateAccount", tag: "accounts", operator: true, write: true, summary: "Change an account's settings",
			about: "Takes any subset of the members; null takes a setting away.",
			body:  accountUpdate{}, results: []result{{http.StatusOK, "changed", accounts.View{}, false, "", false}}, fails: []int{404}, handle: a.updateAccount,
		},
		{
			method: http.MethodPost, path: "/erasures", id: "createErasure", tag: "erasures", forAccount: true, write: true,
			summary: "Erase the events of a document, of a transaction, or one event",
			about: "Takes exactly one of the members. A job overwrites the events and the recorded answers of their notifications in every stream, " +
				"and cancels what is on its way; a request that is under way may still arrive. The CRM must have stopped publishing them.",
			body: erasureCreate{}, results: []result{{http.StatusAccepted, "it runs", erasures.View{}, false, "", false}}, fails: []int{409}, handle: a.createErasure,
		},
		{
			method: http.MethodGet, path: "/erasures", id: "listErasures", tag: "erasures", forAccount: true, summary: "List the erasures of an account, newest first",
			about: "Ended ones are kept for 400 days.",
			query: pages, results: []result{{http.StatusOK, "one page", erasures.View{}, true, "", false}}, fails: []int{422}, handle: a.listErasures,
		},
		{
			method: http.MethodGet, path: "/erasures/{id}", id: "getErasure", tag: "erasures", forAccount: true, summary: "Show an erasure and its progress",
			results: []result{{http.StatusOK, "the erasure", erasures.View{}, false, "", false}}, fails: []int{404}, handle: a.getErasure,
		},
		{
			method: http.MethodGet, path: "/audit", id: "listAudit", tag: "audit", anyAccount: true, summary: "List who changed what, newest first",
			about: "Of the account; of an operator without X-Account-Id those of all accounts. Changes are kept for 400 days. " +
				"A page that looked through very many can be short, or empty, although has_more is true.",
			query: slices.Concat([]parameter{
				{name: "from", kind: "string", format: "date-time", about: "changed at this time or later"},
				{name: "to", kind: "string", format: "date-time", about: "changed before this time"},
				{name: "action", kind: "string", about: "the operationId of the call, such as updateWebhook"},
				{name: "actor", kind: "string", about: "the subject of a JWT or the public name of a token"},
				{name: "object", kind: "string", about: "the id of the changed object"},
			}, cursor),
			results: []result{{http.StatusOK, "one page", audit.Record{}, true, "", false}}, fails: []int{422}, handle: a.listAudit,
		},
		{
			method: http.MethodGet, path: "/egress", id: "getEgress", tag: "meta", public: true, summary: "Show the addresses that requests to receivers come from",
			results: []result{{http.StatusOK, "the addresses that the operator publishes", egressAddresses{}, false, "", false}},
			handle: func(*call) (*answer, error) {
				return data(http.StatusOK, egressAddresses{append([]string{}, a.EgressAddresses...)}), nil
			},
		},
	}
}

var byHand = []result{
	{http.StatusOK, "done", webhooks.View{}, false, "", true},
	{http.StatusAccepted, "on its way: the suspension-monitor has not answered within 2 s", webhooks.View{}, false, "", true},
}

var moved = []result{{http.StatusOK, "done; a running one stops at once", replays.View{}, false, "", false}}

// replayCreate describes replays.Input in the OpenAPI document.
type replayCreate struct {
	From  string `json:"from" format:"date-time" doc:"events stored from this time on"`
	To    string `json:"to,omitempty" format:"date-time" doc:"and before this time; now by default"`
	State string `json:"state,omitempty" enum:"delivered,permanently_failed" doc:"only notifications in this state; all that have ended by default, and events of which the webhook has no notification"`
	Rate  int    `json:"rate,omitempty" minimum:"1" maximum:"1000" doc:"notifications a second; 50 if left out"`
}

// portalCreate describes portal.Input in the OpenAPI document.
type portalCreate struct {
	TTL        int           `json:"ttl,omitempty" minimum:"60" maximum:"86400" doc:"seconds until which the link can be used; 900 if left out"`
	SessionTTL int           `json:"session_ttl,omitempty" minimum:"60" maximum:"86400" doc:"seconds that the session lasts; 3600 if left out"`
	Scope      string        `json:"scope,omitempty" enum:"read,write" doc:"read if left out"`
	WebhookID  string        `json:"webhook_id,omitempty" format:"uuid" doc:"the session sees only this webhook"`
	Language   string        `json:"language,omitempty" enum:"en,pt-BR" doc:"as the browser asks if left out"`
	Theme      *portal.Theme `json:"theme,omitempty"`
}

// portalMade is how the record of a link describes it: without its address, which is a secret.
type portalMade struct {
	Write     bool      `json:"write"`
	WebhookID string    `json:"webhook_id,omitempty"`
	Ends      time.Time `json:"expires_at"`
}

// portalLink is the answer to a portalCreate.
type portalLink struct {
	URL       string    `json:"url" format:"uri" doc:"a secret until it is used"`
	ExpiresAt time.Time `json:"expires_at" doc:"until when it can be used"`
}

func stateNames() []string {
	var names []string
	for _, s := range notification.States() {
		names = append(names, string(s))
	}
	return names
}

// webhookCreate and webhookUpdate describe webhooks.Input in the OpenAPI document.
type webhookCreate struct {
	Name       string `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"the event name if left out"`
	EventName  string `json:"event_name" doc:"a known event, or a pattern with one *: crm_deal_*, crm_*_deleted, *" example:"crm_deal_created"`
	Method     string `json:"http_method,omitempty" enum:"POST,PUT,PATCH,GET,DELETE" doc:"POST if left out; upper or lower case"`
	URL        string `json:"url" format:"uri" maxLength:"2048" example:"https://example.com/hooks/deals"`
	AuthHeader string `json:"auth_header,omitempty" doc:"name of a header sent with every request; needs auth_key" example:"Authorization"`
	AuthKey    string `json:"auth_key,omitempty" doc:"its value; never returned" writeOnly:"true"`
	Status     string `json:"status,omitempty" enum:"active,disabled" doc:"active if left out"`
	Signature  string `json:"signature,omitempty" enum:"hmac,ed25519" doc:"hmac if left out; with ed25519 receivers verify with public_key, and there is no signing_secret"`

	Conditions   []condition.Condition `json:"conditions,omitempty" maxItems:"25" nullable:"false" doc:"all must hold for an event to be sent; none if left out"`
	Stale        string                `json:"stale,omitempty" enum:"send,skip" doc:"send if left out; skip: a notification that waited is left out when a later event of the same document was delivered meanwhile"`
	MaxPerMinute *int                  `json:"max_per_minute,omitempty" nullable:"true" minimum:"1" maximum:"60000" doc:"requests to the URL in any minute, over all dispatchers; more wait (parked, saturated) and are sent oldest first. Of several webhooks with one URL the lowest counts; null: as many as it answers well"`
	Notify       *notifyInput          `json:"notify,omitempty" doc:"who gets notices about its troubles; the answer to a new url carries notify_secret"`
	Auth         *authInput            `json:"auth,omitempty" doc:"how requests prove who sends them, beyond auth_header"`
}

// notifyInput describes webhooks.NotifyInput in the OpenAPI document.
type notifyInput struct {
	Emails   []string `json:"emails,omitempty" nullable:"false" maxItems:"10"`
	URL      *string  `json:"url,omitempty" format:"uri" nullable:"true" maxLength:"2048" doc:"another one than the webhook's own; gets a signed request for each notice"`
	Language string   `json:"language,omitempty" enum:"en,pt-BR" doc:"en if left out"`
}

// authInput describes webhooks.AuthInput in the OpenAPI document.
type authInput struct {
	Type         string     `json:"type" enum:"oauth2,mtls" doc:"oauth2: a token of the grant client_credentials is sent as Authorization. mtls: a client certificate is shown"`
	TokenURL     string     `json:"token_url,omitempty" format:"uri" maxLength:"2048" doc:"oauth2: of the token server, under the rules of url"`
	ClientID     string     `json:"client_id,omitempty" maxLength:"2048" doc:"oauth2"`
	ClientSecret string     `json:"client_secret,omitempty" maxLength:"2048" writeOnly:"true" doc:"oauth2; never returned"`
	Scope        string     `json:"scope,omitempty" maxLength:"2048" doc:"oauth2"`
	Audience     string     `json:"audience,omitempty" maxLength:"2048" doc:"oauth2"`
	Certificate  string     `json:"certificate,omitempty" maxLength:"32768" writeOnly:"true" doc:"mtls: PEM, with the intermediate certificates after it"`
	PrivateKey   string     `json:"private_key,omitempty" maxLength:"32768" writeOnly:"true" doc:"mtls: PEM, without a passphrase; never returned"`
	Subject      string     `json:"subject,omitempty" doc:"mtls: as it is"`
	ExpiresAt    *time.Time `json:"expires_at,omitempty" doc:"mtls: as it is"`
}

type webhookUpdate struct {
	Name       string  `json:"name,omitempty" minLength:"1" maxLength:"255"`
	EventName  string  `json:"event_name,omitempty"`
	Method     string  `json:"http_method,omitempty" enum:"POST,PUT,PATCH,GET,DELETE"`
	URL        string  `json:"url,omitempty" format:"uri" maxLength:"2048"`
	AuthHeader *string `json:"auth_header,omitempty" nullable:"true" doc:"null removes it, together with auth_key"`
	AuthKey    *string `json:"auth_key,omitempty" nullable:"true" writeOnly:"true"`
	Status     string  `json:"status,omitempty" enum:"active,suspended,disabled" doc:"disabled: new events are not matched, and waiting notifications are parked until it is active again. suspended is accepted where it is so"`
	Signature  string  `json:"signature,omitempty" enum:"hmac,ed25519" doc:"another one is a rotation: the answer carries the new signing_secret or public_key, and the old secrets sign along"`

	Conditions   *[]condition.Condition `json:"conditions,omitempty" maxItems:"25" nullable:"true" doc:"replace those the webhook has; null removes them"`
	Stale        string                 `json:"stale,omitempty" enum:"send,skip"`
	MaxPerMinute *int                   `json:"max_per_minute,omitempty" nullable:"true" minimum:"1" maximum:"60000" doc:"null removes the limit"`

	ID         string               `json:"id,omitempty" format:"uuid" doc:"as it is, like the other members that GET answers"`
	CreatedAt  *time.Time           `json:"created_at,omitempty" doc:"as it is"`
	UpdatedAt  *time.Time           `json:"updated_at,omitempty" doc:"as it is"`
	Suspension *webhooks.Suspension `json:"suspension,omitempty" doc:"as it is"`
	PublicKey  string               `json:"public_key,omitempty" doc:"as it is"`
	Notify     *notifyInput         `json:"notify,omitempty" doc:"replaces whom notices go to; null: whom the account says"`
	Auth       *authInput           `json:"auth,omitempty" doc:"replaces what it has; null removes it. Without its secret it keeps the one that is there, while the client and the origins stay the same"`
}

// conditionsTest describes dryrun.Input in the OpenAPI document.
type conditionsTest struct {
	EventID    string                `json:"event_id,omitempty" format:"uuid" doc:"of an event of the account; or give body"`
	Body       map[string]any        `json:"body,omitempty" doc:"an event as the CRM writes it"`
	Changed    []string              `json:"changed,omitempty" nullable:"false" doc:"with body: the paths of $changed" example:"[\"deal_stage\"]"`
	Origin     string                `json:"origin,omitempty" doc:"with body: $origin"`
	Conditions []condition.Condition `json:"conditions,omitempty" maxItems:"25" nullable:"false" doc:"instead of those of the webhook"`
}

// rotation describes the body of a rotation in the OpenAPI document.
type rotation struct {
	Immediately bool `json:"immediately,omitempty" doc:"the old secrets do not sign along"`
}

// input reads the body of a call that takes {"data": {...}}.
func input[T any](c *call, v *T) error {
	body, err := readBody(c.w, c.r, maxBodyBytes)
	if err != nil {
		return err
	}
	return decode(body, v)
}

// optional reads the body of an action: none at all, or {"data": {...}} where data may be null.
func optional[T any](c *call, v *T) error {
	body, err := readBody(c.w, c.r, maxBodyBytes)
	if err != nil || len(body) == 0 {
		return err
	}
	return decodeOptional(body, v)
}

// noInput accepts the body of an action that takes nothing.
func (c *call) noInput() error {
	var nothing struct{}
	return optional(c, &nothing)
}

// maxPage bounds page numbers in computations.
const maxPage = 1 << 20

// readQuery reads the query string. Each parameter must be one of the route's, and stand once.
func (c *call) readQuery(rt *route) error {
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return problem.New(problem.Malformed, "bad_query", "the query string cannot be read")
	}
	c.query = query
	for name, values := range query {
		known := slices.ContainsFunc(rt.query, func(p parameter) bool { return p.name == name })
		switch {
		case !known && rt.anyQuery:
		case !known:
			return problem.At(problem.Malformed, "?"+name[:min(len(name), maxPointerBytes)], "unknown_parameter", "this call has no such query parameter; names are case-sensitive")
		case len(values) > 1:
			return problem.At(problem.Malformed, "?"+name, "repeated_parameter", "this query parameter stands more than once")
		}
	}
	return nil
}

// page reads page[number] and page[size].
func (c *call) page() (number, size int, err error) {
	var problems problem.List
	number = intParameter(c.query, "page[number]", 1, 1<<30, &problems)
	size = intParameter(c.query, "page[size]", defaultPageSize, maxPageSize, &problems)
	return number, size, problems.Err()
}

// webhookFilter reads the filters of a list of webhooks.
func (c *call) webhookFilter() (webhooks.Filter, error) {
	get := c.query.Get
	f := webhooks.Filter{Status: get("status"), EventName: get("event_name"), URL: get("url"), Name: get("name"), Sort: get("sort")}
	var problems problem.List
	if c.query.Has("status") && !slices.Contains(webhooks.Statuses(), f.Status) {
		problems.Add("?status", "bad_parameter", "status must be one of "+strings.Join(webhooks.Statuses(), ", "))
	}
	if c.query.Has("sort") && !slices.Contains(webhooks.Sorts(), strings.TrimPrefix(f.Sort, "-")) {
		problems.Add("?sort", "bad_parameter", "sort must be one of "+strings.Join(webhooks.Sorts(), ", ")+", with a leading - for the other direction")
	}
	return f, problems.Err()
}

// intParameter reads a whole number from 1 to high.
func intParameter(query url.Values, name string, fallback, high int, problems *problem.List) int {
	values, given := query[name]
	if !given {
		return fallback
	}
	n, err := strconv.Atoi(values[0])
	if err != nil || len(values) > 1 || n < 1 || n > high || strings.HasPrefix(values[0], "+") {
		problems.Add("?"+name, "bad_parameter", name+" must be one whole number from 1 to "+strconv.Itoa(high))
		return fallback
	}
	return n
}

// filter reads the parameters of a list of notifications.
func (c *call) filter() (notifications.Filter, error) {
	var problems problem.List
	f := notifications.Filter{
		State:     notification.State(c.query.Get("state")),
		WebhookID: c.idParameter("webhook_id", &problems), EventID: c.idParameter("event_id", &problems), EventName: c.nameParameter(&problems),
		DocumentID: c.textParameter("document_id", &problems), TransactionUUID: c.textParameter("transaction_uuid", &problems),
	}
	f.From, f.To, f.Limit = c.span(&problems)
	if c.query.Has("state") && !slices.Contains(notification.States(), f.State) {
		problems.Add("?state", "bad_parameter", "state must be one of "+strings.Join(stateNames(), ", "))
	}
	if c.query.Has("page[after]") {
		var ok bool
		if f.After, ok = notifications.ParseCursor(c.query.Get("page[after]")); !ok {
			problems.Add("?page[after]", "bad_parameter", "page[after] is not one that links.next gave")
		}
	}
	return f, problems.Err()
}

// eventFilter reads the parameters of a list of events.
func (c *call) eventFilter() (notifications.EventFilter, error) {
	var problems problem.List
	f := notifications.EventFilter{
		Name: c.nameParameter(&problems), DocumentID: c.textParameter("document_id", &problems), TransactionUUID: c.textParameter("transaction_uuid", &problems),
	}
	f.From, f.To, f.Limit = c.span(&problems)
	if c.query.Has("page[after]") {
		var ok bool
		if f.Before, ok = notifications.ParsePlace(c.query.Get("page[after]")); !ok {
			problems.Add("?page[after]", "bad_parameter", "page[after] is not one that links.next gave")
		}
	}
	return f, problems.Err()
}

// span reads from, to and page[size].
func (c *call) span(problems *problem.List) (from, to time.Time, size int) {
	size = intParameter(c.query, "page[size]", defaultPageSize, maxPageSize, problems)
	from, to = timeParameter(c.query, "from", problems), timeParameter(c.query, "to", problems)
	if !from.IsZero() && !to.IsZero() && !from.Before(to) {
		problems.Add("?to", "bad_parameter", "to must be later than from")
	}
	return from, to, size
}

// idParameter reads a parameter that is a UUID.
func (c *call) idParameter(name string, problems *problem.List) string {
	if !c.query.Has(name) {
		return ""
	}
	id, err := uuid.Parse(c.query.Get(name))
	if err != nil || len(c.query.Get(name)) != 36 {
		problems.Add("?"+name, "bad_parameter", name+" must be a UUID")
	}
	return id.String()
}

// nameParameter reads the parameter event_name where it is a filter of events.
func (c *call) nameParameter(problems *problem.List) string {
	name := c.query.Get("event_name")
	if c.query.Has("event_name") && !event.ValidName(name) {
		problems.Add("?event_name", "bad_parameter", "event_name must be an event's name such as crm_deal_created")
	}
	return name
}

// textParameter reads an id that the CRM made.
func (c *call) textParameter(name string, problems *problem.List) string {
	text := c.query.Get(name)
	if c.query.Has(name) && (text == "" || len(text) > maxTextBytes) {
		problems.Add("?"+name, "bad_parameter", name+" must have 1 to 512 bytes")
	}
	return text
}

// maxTextBytes is how long an id of the CRM can be: 128 characters.
const maxTextBytes = 512

func timeParameter(query url.Values, name string, problems *problem.List) time.Time {
	if !query.Has(name) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, query.Get(name))
	if err != nil {
		problems.Add("?"+name, "bad_parameter", name+" must be a time such as 2026-11-20T15:04:05Z (a + in it written as %2B)")
	}
	return t
}

// match reads If-Match (RFC 9110, section 13.1.1). Weak tags never match.
func (c *call) match() (webhooks.Match, error) {
	values := c.r.Header.Values("If-Match")
	if len(values) == 0 {
		return nil, nil
	}
	field := strings.TrimSpace(strings.Join(values, ","))
	if field == "*" {
		return nil, nil
	}
	var revisions []uint64
	strong := false
	for tag := range strings.SplitSeq(field, ",") {
		tag = strings.TrimSpace(tag)
		weak := strings.HasPrefix(tag, "W/")
		inner, opened := strings.CutPrefix(strings.TrimPrefix(tag, "W/"), `"`)
		inner, closed := strings.CutSuffix(inner, `"`)
		if !opened || !closed {
			return nil, problem.New(problem.Malformed, "bad_if_match", `If-Match must hold an ETag in double quotes, as it came, or *`)
		}
		if n, err := strconv.ParseUint(inner, 10, 64); err == nil && !weak {
			revisions = append(revisions, n)
		}
		strong = strong || !weak
	}
	if !strong {
		return nil, problem.New(problem.Changed, "bad_if_match", "If-Match holds a weak ETag (W/), which never matches; a proxy may have made it weak: send it without W/")
	}
	return func(revision uint64) bool { return slices.Contains(revisions, revision) }, nil
}

// accountUpdate describes accounts.Input in the OpenAPI document.
type accountUpdate struct {
	ID         string              `json:"id,omitempty" doc:"as it is"`
	Status     string              `json:"status,omitempty" doc:"as it is"`
	Share      *float64            `json:"share,omitempty" nullable:"true" exclusiveMinimum:"0" maximum:"1"`
	Webhooks   *int                `json:"webhooks,omitempty" nullable:"true" minimum:"1" maximum:"1000000"`
	IngestRate *float64            `json:"ingest_rate,omitempty" nullable:"true" exclusiveMinimum:"0" maximum:"1000000"`
	Retention  *accounts.Retention `json:"retention,omitempty"`
	Notify     *notifyInput        `json:"notify,omitempty" doc:"who gets notices about the troubles of webhooks that name no recipient; null takes it away"`
}

func (a *API) getAccount(c *call) (*answer, error) {
	v, err := a.Accounts.Get(c.ctx, c.caller.Account)
	if err != nil {
		return nil, err
	}
	return data(http.StatusOK, v), nil
}

func (a *API) updateAccount(c *call) (*answer, error) {
	var in accounts.Input
	if err := input(c, &in); err != nil {
		return nil, err
	}
	v, err := a.Accounts.Set(c.ctx, c.caller.Account, in)
	if err != nil {
		return nil, err
	}
	return data(http.StatusOK, v), nil
}

// egressAddresses are for the allow lists of receivers.
type egressAddresses struct {
	Addresses []string `json:"addresses" nullable:"false" doc:"addresses and CIDRs; none when the operator publishes none"`
}

// getDocument answers the OpenAPI document. Any page may read it.
func (a *API) getDocument(c *call) (*answer, error) {
	h := c.w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("ETag", a.tag)
	h.Set("Cache-Control", "no-cache")
	if slices.ContainsFunc(strings.Split(c.r.Header.Get("If-None-Match"), ","), func(tag string) bool {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		return tag == a.tag || tag == "*"
	}) {
		return &answer{status: http.StatusNotModified}, nil
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	_, _ = c.w.Write(a.document) // the client may have gone
	return nil, nil
}
