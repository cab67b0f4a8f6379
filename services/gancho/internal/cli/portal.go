package cli

import (
	"time"

	"gancho/pkg/client"
)

type portalLinkCmd struct {
	Webhook  string        `placeholder:"ID" help:"The session sees only this webhook."`
	Write    bool          `help:"It may change things; without this it may only read."`
	TTL      time.Duration `name:"ttl" default:"15m" help:"How long the link can be used: 1m to 24h."`
	Session  time.Duration `default:"1h" help:"How long its session lasts: 1m to 24h."`
	Language string        `enum:",en,pt-BR" default:"" help:"en or pt-BR; as the browser asks without it."`
	apiFlags
}

func (portalLinkCmd) Help() string {
	return `The link opens the console of the account once. Example:

	gancho portal-link --webhook ID --write --session 8h`
}

func (c portalLinkCmd) Run(a *app) error {
	link := client.PortalLink{
		TTL: int(c.TTL.Seconds()), SessionTTL: int(c.Session.Seconds()), Scope: "read", WebhookID: c.Webhook,
		Language: c.Language,
	}
	if c.Write {
		link.Scope = "write"
	}
	r, err := a.client.CreatePortalLink(a.ctx, link)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	return a.pairs(pair{"link", r.Value.URL}, pair{"usable until", stamp(r.Value.ExpiresAt)})
}
