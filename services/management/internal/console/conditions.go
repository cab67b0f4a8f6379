package console

import (
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"gancho/pkg/condition"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/dryrun"
	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

const (
	// blankConditions are the empty rows of the form.
	blankConditions = 3
	// recentTried is how many past events a webhook's conditions are held against.
	recentTried = 10
)

// conditionRow is one condition in the form, as it was written.
type conditionRow struct{ Path, Op, Value string }

// conditionRows are those that were sent, without the empty ones.
func conditionRows(v *visit) []conditionRow {
	form := v.r.PostForm
	at := func(name string, i int) string {
		if values := form[name]; i < len(values) {
			return strings.TrimSpace(values[i])
		}
		return ""
	}
	var rows []conditionRow
	for i := range form["condition_path"] {
		r := conditionRow{at("condition_path", i), at("condition_op", i), at("condition_value", i)}
		if r.Path != "" || r.Value != "" {
			rows = append(rows, r)
		}
	}
	return rows
}

// conditions is the member of the API that the rows stand for.
func conditions(rows []conditionRow) webhooks.Field[[]condition.Condition] {
	list := []condition.Condition{}
	for _, r := range rows {
		op := condition.Op(r.Op)
		list = append(list, condition.Condition{Path: r.Path, Op: op, Value: condition.Value(op, r.Value)})
	}
	return webhooks.Set(list)
}

// withConditions returns the form with those rows and empty ones behind them.
func (f hookForm) withConditions(rows []conditionRow) hookForm {
	f.Conditions = slices.Clone(rows)
	for range min(blankConditions, max(0, condition.Max-len(rows))) {
		f.Conditions = append(f.Conditions, conditionRow{})
	}
	return f
}

func written(list []condition.Condition) (rows []conditionRow) {
	for _, c := range list {
		rows = append(rows, conditionRow{c.Path, string(c.Op), c.Written()})
	}
	return rows
}

// ConditionProblem is the problem of a row.
func (f hookForm) ConditionProblem(row int, member string) fieldProblem {
	return f.Problems[conditionField(row, member)]
}

// paths are those of the samples of the events that a pattern matches; of all when it is none.
func (c *Console) paths(p webhook.Pattern) []string {
	var all []string
	for _, t := range c.Catalogue.Types() {
		if p == "" || p.Matches(t.Name) {
			for _, path := range condition.Paths(t.Sample) {
				if !slices.Contains(all, path) {
					all = append(all, path)
				}
			}
		}
	}
	return append([]string{condition.PathChanged, condition.PathOrigin}, all...)
}

// trialPage is the page on which a webhook's conditions are held against events.
type trialPage struct {
	webhooks.View

	Recent []dryrun.Trial
	Form   trialForm
	Result *dryrun.Result
}

type trialForm struct {
	Body, Changed, Origin string
	Problems              []fieldProblem
}

func (c *Console) conditionsPage(v *visit) error {
	w, err := c.Webhooks.Show(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	return c.showTrial(v, http.StatusOK, w, trialForm{Body: c.sampleFor(webhook.Pattern(w.EventName))}, nil)
}

// sampleFor returns the sample of the first event that the pattern matches.
func (c *Console) sampleFor(p webhook.Pattern) string {
	for _, t := range c.Catalogue.Types() {
		if p.Matches(t.Name) {
			return string(t.Sample)
		}
	}
	return "{}"
}

func (c *Console) showTrial(v *visit, status int, w webhooks.View, form trialForm, result *dryrun.Result) error {
	recent, err := c.DryRun.Recent(v.ctx, v.caller.Account, w.ID, recentTried)
	if err != nil {
		return err
	}
	return c.show(v, status, "conditions", page{
		Title: "conditions.title", Name: w.Name, Tab: "webhooks", Data: trialPage{
			View: w, Recent: recent, Form: form, Result: result,
		},
	})
}

func (c *Console) postTrial(v *visit) error {
	w, err := c.Webhooks.Show(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	form := trialForm{
		Body: v.r.PostFormValue("body"), Changed: strings.TrimSpace(v.r.PostFormValue("changed")),
		Origin: strings.TrimSpace(v.r.PostFormValue("origin")),
	}
	in := dryrun.Input{Body: webhooks.Set(jsontext.Value(form.Body))}
	if form.Changed != "" {
		in.Changed = webhooks.Set(strings.FieldsFunc(form.Changed, func(r rune) bool { return r == ',' || r == ' ' }))
	}
	if form.Origin != "" {
		in.Origin = webhooks.Set(form.Origin)
	}
	result, err := dryrun.Result{}, problem.New(problem.Invalid, "bad_json", "this is not one well-formed JSON value")
	if in.Body.Value.IsValid() {
		var e error
		if result, e = c.DryRun.Check(v.ctx, v.caller.Account, w.ID, in); e != nil {
			err = problem.Of(e)
		} else {
			return c.showTrial(v, http.StatusOK, w, form, &result)
		}
	}
	e := problem.Of(err)
	if !refillable(e) {
		return err
	}
	for _, p := range e.Problems {
		form.Problems = append(form.Problems, problemText(p))
	}
	return c.showTrial(v, httpstatus.Of(e), w, form, nil)
}
