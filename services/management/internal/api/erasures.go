package api

import (
	"net/http"

	"gancho/services/management/internal/erasures"
)

// erasureCreate describes erasures.Input in the OpenAPI document.
type erasureCreate struct {
	DocumentID      string `json:"document_id,omitempty" minLength:"1" maxLength:"128" doc:"document.id of the events, as text, whatever the document is"`
	TransactionUUID string `json:"transaction_uuid,omitempty" pattern:"^[A-Za-z0-9_-]{1,128}$"`
	EventID         string `json:"event_id,omitempty" format:"uuid"`
}

func (a *API) createErasure(c *call) (*answer, error) {
	var in erasures.Input
	if err := input(c, &in); err != nil {
		return nil, err
	}
	v, err := a.Erasures.Create(c.ctx, c.caller.Account, in)
	if err != nil {
		return nil, err
	}
	c.object, c.after = v.ID, v
	c.w.Header().Set("Location", Prefix+"/erasures/"+v.ID)
	return data(http.StatusAccepted, v), nil
}

func (a *API) listErasures(c *call) (*answer, error) {
	number, size, err := c.page()
	if err != nil {
		return nil, err
	}
	return paged(c, a.Erasures.List(c.caller.Account), number, size), nil
}

func (a *API) getErasure(c *call) (*answer, error) {
	v, err := a.Erasures.Get(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	return data(http.StatusOK, v), nil
}
