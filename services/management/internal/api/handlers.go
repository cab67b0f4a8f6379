package api

import (
	"context"
	"net/http"
	"net/url"

	"go.uber.org/zap"

	"gancho/pkg/event"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/dryrun"
	"gancho/services/management/internal/ingest"
	"gancho/services/management/internal/language"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/webhooks"
)

func shown(status int, v webhooks.View) *answer {
	a := data(status, v)
	a.etag = v.Revision
	return a
}

func (c *call) id() string { return c.r.PathValue("id") }

// language returns the one that the client asks for, and says so in the answer.
func (c *call) language() language.Language {
	l := language.Accepted(c.r.Header.Get("Accept-Language"))
	c.w.Header().Set("Content-Language", string(l))
	c.w.Header().Add("Vary", "Accept-Language")
	return l
}

func (a *API) createWebhook(c *call) (*answer, error) {
	var in webhooks.Input
	if err := input(c, &in); err != nil {
		return nil, err
	}
	v, secret, err := a.Webhooks.Create(c.ctx, c.caller.Account, in)
	if err != nil {
		return nil, err
	}
	c.object = v.ID
	c.fields = append(c.fields, zap.String("webhook_id", v.ID), zap.String("url_host", webhook.URLHost(v.URL)))
	v.SigningSecret = secret
	c.w.Header().Set("Location", Prefix+"/webhooks/"+v.ID)
	return shown(http.StatusCreated, v), nil
}

func (a *API) listWebhooks(c *call) (*answer, error) {
	number, size, err := c.page()
	if err != nil {
		return nil, err
	}
	f, err := c.webhookFilter()
	if err != nil {
		return nil, err
	}
	views, total := a.Webhooks.List(c.ctx, c.caller.Account, f, min(number-1, maxPage)*size, size)
	return pageOf(c, views, number, size, total), nil
}

func (a *API) getWebhook(c *call) (*answer, error) {
	v, err := a.Webhooks.Show(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	return shown(http.StatusOK, v), nil
}

func (a *API) updateWebhook(c *call) (*answer, error) {
	match, err := c.match()
	if err != nil {
		return nil, err
	}
	var in webhooks.Input
	if err := input(c, &in); err != nil {
		return nil, err
	}
	v, settled, err := a.Webhooks.Update(c.ctx, c.caller.Account, c.id(), in, match, c.caller.Name)
	if err != nil {
		return nil, err
	}
	return shown(done(settled), v), nil
}

// done is the status of an action: 202 when its effect is not seen yet.
func done(settled bool) int {
	if settled {
		return http.StatusOK
	}
	return http.StatusAccepted
}

func (a *API) deleteWebhook(c *call) (*answer, error) {
	match, err := c.match()
	if err != nil {
		return nil, err
	}
	if err := a.Webhooks.Delete(c.ctx, c.caller.Account, c.id(), match, c.caller.Name); err != nil {
		return nil, err
	}
	return &answer{status: http.StatusNoContent}, nil
}

func (a *API) suspendWebhook(c *call) (*answer, error) {
	if err := c.noInput(); err != nil {
		return nil, err
	}
	v, settled, err := a.Webhooks.Suspend(c.ctx, c.caller.Account, c.id(), c.caller.Name)
	if err != nil {
		return nil, err
	}
	return shown(done(settled), v), nil
}

func (a *API) resumeWebhook(c *call) (*answer, error) {
	if err := c.noInput(); err != nil {
		return nil, err
	}
	v, settled, err := a.Webhooks.Resume(c.ctx, c.caller.Account, c.id(), c.caller.Name)
	if err != nil {
		return nil, err
	}
	return shown(done(settled), v), nil
}

func (a *API) rotateSecret(c *call) (*answer, error) {
	var in struct {
		Immediately webhooks.Field[bool] `json:"immediately"`
	}
	if err := optional(c, &in); err != nil {
		return nil, err
	}
	v, secret, err := a.Webhooks.RotateSecret(c.ctx, c.caller.Account, c.id(), in.Immediately.Value)
	if err != nil {
		return nil, err
	}
	v.SigningSecret = secret
	return shown(http.StatusOK, v), nil
}

func (a *API) testWebhook(c *call) (*answer, error) {
	if err := c.noInput(); err != nil {
		return nil, err
	}
	n, err := a.Notifications.Test(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	c.fields = append(c.fields, zap.String("notification_id", n.ID))
	return data(http.StatusAccepted, a.Notifications.View(n, c.language())), nil
}

func (a *API) testConditions(c *call) (*answer, error) {
	var in dryrun.Input
	if err := input(c, &in); err != nil {
		return nil, err
	}
	r, err := a.DryRun.Check(c.ctx, c.caller.Account, c.id(), in)
	if err != nil {
		return nil, err
	}
	return data(http.StatusOK, r), nil
}

func (a *API) listNotifications(c *call) (*answer, error) {
	f, err := c.filter()
	if err != nil {
		return nil, err
	}
	found, err := a.Notifications.List(c.ctx, c.caller.Account, c.id(), f)
	return notificationsPage(c, found, err)
}

func (a *API) findNotifications(c *call) (*answer, error) {
	f, err := c.filter()
	if err != nil {
		return nil, err
	}
	found, err := a.Notifications.Search(c.ctx, c.caller.Account, f)
	return notificationsPage(c, found, err)
}

func notificationsPage(c *call, found notifications.Page, err error) (*answer, error) {
	if err != nil {
		return nil, err
	}
	after := ""
	if !found.Next.IsZero() {
		after = found.Next.String()
	}
	return cursorPage(c, found.Notifications, after, found.Partial), nil
}

func (a *API) findEvents(c *call) (*answer, error) {
	f, err := c.eventFilter()
	if err != nil {
		return nil, err
	}
	found, err := a.Notifications.FindEvents(c.ctx, c.caller.Account, f, c.language())
	if err != nil {
		return nil, err
	}
	return cursorPage(c, found.Events, notifications.FormatPlace(found.Next), found.Partial), nil
}

func (a *API) getEvent(c *call) (*answer, error) {
	v, err := a.Notifications.Event(c.ctx, c.caller.Account, c.r.PathValue("event"), c.language())
	if err != nil {
		return nil, err
	}
	return data(http.StatusOK, v), nil
}

func (a *API) getNotification(c *call) (*answer, error) {
	n, err := a.Notifications.Get(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	return data(http.StatusOK, a.Notifications.View(n, c.language())), nil
}

func (a *API) resendNotification(c *call) (*answer, error) {
	if err := c.noInput(); err != nil {
		return nil, err
	}
	n, err := a.Notifications.Resend(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	return data(http.StatusAccepted, a.Notifications.View(n, c.language())), nil
}

func (a *API) ingestEvent(c *call) (*answer, error) {
	body, err := readBody(c.w, c.r, int64(a.EventMaxBytes), "application/json", event.MediaTypeStructured)
	if err != nil {
		return nil, err
	}
	if len(body) == 0 {
		return nil, problem.New(problem.Malformed, "empty_body", "the body is empty; send the event as a JSON object")
	}
	accepted, err := a.Ingest.Accept(c.ctx, ingest.Event{
		Account: c.caller.Account, Name: c.r.PathValue("event"), Body: body, Header: c.r.Header.Get, Key: c.idempotencyKey,
	})
	if err != nil {
		return nil, err
	}
	c.fields = append(c.fields, zap.String("event_id", accepted.EventID))
	return data(http.StatusAccepted, accepted), nil
}

func (a *API) createPortalLink(c *call) (*answer, error) {
	var in portal.Input
	if err := optional(c, &in); err != nil {
		return nil, err
	}
	issuer := c.caller.Name
	if c.caller.Kind == auth.KindJWT {
		issuer = "" // it ends before the session does
	}
	sealed, link, err := a.Portal.Create(c.ctx, c.caller.Account, issuer, c.caller.Name, in)
	if err != nil {
		return nil, err
	}
	c.object, c.after = link.ID, portalMade{link.Write, link.Webhook, link.Ends}
	c.w.Header().Set("Cache-Control", "no-store")
	return data(http.StatusCreated, portalLink{c.base + "/portal?link=" + url.QueryEscape(sealed), link.Ends}), nil
}

func (a *API) createReplay(c *call) (*answer, error) {
	var in replays.Input
	if err := input(c, &in); err != nil {
		return nil, err
	}
	v, err := a.Replays.Create(c.ctx, c.caller.Account, c.id(), in, c.caller.Name)
	if err != nil {
		return nil, err
	}
	c.object = v.ID
	c.w.Header().Set("Location", Prefix+"/replays/"+v.ID)
	return data(http.StatusCreated, v), nil
}

func (a *API) listReplays(c *call) (*answer, error) {
	number, size, err := c.page()
	if err != nil {
		return nil, err
	}
	views, err := a.Replays.List(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	return paged(c, views, number, size), nil
}

func (a *API) getReplay(c *call) (*answer, error) {
	v, err := a.Replays.Get(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	return data(http.StatusOK, v), nil
}

// moveReplay answers a call that changes a replay's state.
func (a *API) moveReplay(move func(*replays.Service, context.Context, string, string) (replays.View, error)) func(*call) (*answer, error) {
	return func(c *call) (*answer, error) {
		if err := c.noInput(); err != nil {
			return nil, err
		}
		v, err := move(a.Replays, c.ctx, c.caller.Account, c.id())
		if err != nil {
			return nil, err
		}
		return data(http.StatusOK, v), nil
	}
}

func (a *API) cancelReplay(c *call) (*answer, error) {
	if _, err := a.Replays.Cancel(c.ctx, c.caller.Account, c.id()); err != nil {
		return nil, err
	}
	return &answer{status: http.StatusNoContent}, nil
}
