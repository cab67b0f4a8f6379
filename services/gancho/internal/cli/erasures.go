package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gancho/pkg/client"
)

type erasuresCmd struct {
	Create erasuresCreate `cmd:"" help:"Begin one. It cannot be undone."`
	Get    erasuresGet    `cmd:"" help:"Show one and its progress."`
	List   erasuresList   `cmd:"" help:"List those of the account, newest first."`
}

type erasuresCreate struct {
	Document    string `xor:"what" required:"" placeholder:"ID" help:"Every event of the document with this id."`
	Transaction string `xor:"what" required:"" placeholder:"UUID" help:"Every event with this transaction_uuid."`
	Event       string `xor:"what" required:"" placeholder:"ID" help:"This event."`
	apiFlags
}

func (erasuresCreate) Help() string {
	return `Overwrites the events and the recorded answers of their notifications in every stream, and cancels what is on its
way. Stop the CRM from publishing them first. Examples:

	gancho erasures create --account acme --document 8f14e45f
	gancho erasures get --account acme ERASURE`
}

func (c erasuresCreate) Run(a *app) error {
	return a.showErasure(a.client.Erase(a.ctx, client.EraseInput{DocumentID: c.Document, TransactionUUID: c.Transaction, EventID: c.Event}))
}

type erasuresGet struct {
	ID string `arg:"" help:"Id of the erasure."`
	apiFlags
}

func (c erasuresGet) Run(a *app) error {
	return a.showErasure(a.client.Erasure(a.ctx, c.ID))
}

func (a *app) showErasure(r client.Result[client.Erasure], err error) error {
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	e := r.Value
	var erased, left []string
	for _, stream := range slices.Sorted(maps.Keys(e.Erased)) {
		erased = append(erased, fmt.Sprintf("%d on %s", e.Erased[stream], stream))
	}
	for _, n := range e.NotReached {
		left = append(left, n.Place+": "+n.Why)
	}
	return a.pairs(
		pair{"id", e.ID},
		pair{"state", e.State},
		pair{"by", e.Kind},
		pair{"events", fmt.Sprint(e.Matched)},
		pair{"erased", strings.Join(erased, ", ")},
		pair{"not reached", strings.Join(left, "; ")},
		pair{"problem", e.Problem},
	)
}

type erasuresList struct {
	apiFlags
}

func (c erasuresList) Run(a *app) error {
	rows := [][]string{{"ID", "STATE", "BY", "EVENTS", "BEGAN"}}
	var all []json.RawMessage
	for r, err := range a.client.Erasures(a.ctx) {
		if err != nil {
			return err
		}
		e := r.Value
		all = append(all, r.Raw)
		rows = append(rows, []string{e.ID, e.State, e.Kind, fmt.Sprint(e.Matched), stamp(e.CreatedAt)})
	}
	if a.output == "json" {
		return a.allAsJSON(all)
	}
	return a.rows(rows)
}
