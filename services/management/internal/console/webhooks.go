package console

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap"

	"gancho/pkg/condition"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/explain"
	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/notices"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/webhooks"
)

const (
	webhooksPerPage      = 25
	notificationsPerPage = 25
	replaysShown         = 5
	suspensionSearched   = 50 // notifications listed to find the last failed attempt
	suspensionRead       = 3  // of those, how many are read whole
)

// How often pages ask for their newest state.
const (
	pollList   = 10 * time.Second
	pollDetail = 3 * time.Second
	pollFast   = time.Second
)

// hookRow is one webhook of a list.
type hookRow struct {
	webhooks.View

	Chart         chart
	LastDelivered time.Time
	Trouble       string // key of the catalogue: how an active one fails, "" when it does not
}

// hookList is the page of webhooks.
type hookList struct {
	Rows        []hookRow
	Query       string
	Total       int
	Page, Pages int
	Away        bool // no health: the index does not answer
	Partial     bool
}

// Link returns the address of another page of the list.
func (l hookList) Link(number int) string {
	q := url.Values{"page": {strconv.Itoa(number)}}
	if l.Query != "" {
		q.Set("q", l.Query)
	}
	return "/webhooks?" + q.Encode()
}

// Before and After are the neighbouring pages, 0 for none.
func (l hookList) Before() int { return l.Page - 1 }

// After is the next page.
func (l hookList) After() int {
	if l.Page < l.Pages {
		return l.Page + 1
	}
	return 0
}

func (c *Console) webhooksPage(v *visit) error {
	query := v.r.URL.Query()
	data := hookList{Query: clip(query.Get("q"), 200), Page: 1}
	if n, err := strconv.Atoi(query.Get("page")); err == nil && n > 0 && n < 1<<20 {
		data.Page = n
	}
	views, total := c.Webhooks.Search(v.ctx, v.caller.Account, webhooks.Query{Text: data.Query, Offset: (data.Page - 1) * webhooksPerPage, Limit: webhooksPerPage})
	data.Total, data.Pages = total, (total+webhooksPerPage-1)/webhooksPerPage
	ids := make([]string, 0, len(views))
	for _, w := range views {
		ids = append(ids, w.ID)
	}
	now := time.Now()
	health, partial, err := c.health(v, ids, now)
	if err != nil {
		return err
	}
	data.Away, data.Partial = health == nil, partial
	for i, w := range views {
		row := hookRow{View: w}
		if health != nil {
			row.Chart = v.lang.draw(health[i], now, 5, 2, 32)
			row.LastDelivered = health[i].Delivered
			row.Trouble = trouble(w, health[i])
		}
		data.Rows = append(data.Rows, row)
	}
	return c.show(v, http.StatusOK, "webhooks", page{Title: "webhooks.title", Tab: "webhooks", Poll: pollList, Data: data})
}

// health returns the health of webhooks; nil when the index is down, which no page depends on.
func (c *Console) health(v *visit, ids []string, now time.Time) ([]index.Activity, bool, error) {
	health, partial, err := c.Notifications.Health(v.ctx, ids, spans(), now)
	if err != nil {
		if problem.Of(err).Kind != problem.Unavailable {
			return nil, false, err
		}
		v.fields = append(v.fields, zap.NamedError("health", err))
		return nil, false, nil
	}
	if health == nil {
		health = []index.Activity{}
	}
	return health, partial, nil
}

// trouble says how an active webhook fares when it does not fare well.
func trouble(w webhooks.View, a index.Activity) string {
	if w.Status != webhooks.StatusActive {
		return ""
	}
	// The newest few decide: a webhook that failed in the morning and works now is no trouble.
	delivered, failed := 0, 0
	for _, s := range a.Newest {
		switch s {
		case notification.Delivered:
			delivered++
		case notification.PermanentlyFailed, notification.Retrying:
			failed++
		case notification.Pending, notification.Parked, notification.Cancelled:
		}
	}
	switch {
	case failed == 0:
		return ""
	case delivered == 0:
		return "health.failing"
	}
	return "health.some"
}

// hookPage is the page of one webhook.
type hookPage struct {
	webhooks.View

	Chart         chart
	Figures       *figures // nil when they cannot be had
	LastDelivered time.Time
	Trouble       string
	LastFailed    *failedAttempt // of a suspended webhook
	Recent        []notices.Recent
	Away          bool
	Partial       bool

	State notification.State // of the filter, "" for all
	listFilter

	Notifications []notifications.Listed
	First         bool   // the newest are shown
	Next          string // address of the next page, "" for none

	Replays []replays.View
	Replay  replayForm
}

// StateLink returns the address of this page with another state in its filter.
func (p hookPage) StateLink(state any) string {
	s, _ := state.(notification.State)
	return p.link(s, "")
}

// link returns the address of this page with that state, behind that cursor.
func (p hookPage) link(state notification.State, after string) string {
	q := p.query("state", string(state), "after", after)
	if len(q) == 0 {
		return "/webhooks/" + p.ID + "#notifications"
	}
	return "/webhooks/" + p.ID + "?" + q.Encode() + "#notifications"
}

// listFilter is the part of a list's filter that all lists of notifications have.
type listFilter struct {
	Event        string // a name, "" for all
	Since, Until string // days in UTC, both included
}

// read takes the filter from a form. Values that make no sense do not limit. From is included, to is not.
func (l *listFilter) read(form url.Values) (name string, from, to time.Time) {
	if name = form.Get("event_name"); !event.ValidName(name) {
		name = ""
	}
	l.Event = name
	if day, err := time.Parse(time.DateOnly, form.Get("since")); err == nil {
		from, l.Since = day, form.Get("since")
	}
	if day, err := time.Parse(time.DateOnly, form.Get("until")); err == nil {
		to, l.Until = day.AddDate(0, 0, 1), form.Get("until")
	}
	return name, from, to
}

// query returns the filter and more pairs of names and values, without the empty ones.
func (l listFilter) query(more ...string) url.Values {
	q := url.Values{}
	pairs := append([]string{"event_name", l.Event, "since", l.Since, "until", l.Until}, more...)
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// Limits reports whether the filter leaves anything out.
func (l listFilter) Limits() bool { return l != listFilter{} }

// filter reads the filter of the list of notifications. Values that make no sense do not limit.
func (p *hookPage) filter(query url.Values) notifications.Filter {
	f := notifications.Filter{Limit: notificationsPerPage}
	for _, s := range notification.States() {
		if query.Get("state") == string(s) {
			f.State, p.State = s, s
		}
	}
	f.EventName, f.From, f.To = p.read(query)
	if after, ok := notifications.ParseCursor(query.Get("after")); ok {
		f.After, p.First = after, false
	}
	return f
}

func (c *Console) webhookPage(v *visit) error { return c.showWebhook(v, http.StatusOK, replayForm{}) }

func (c *Console) showWebhook(v *visit, status int, form replayForm) error {
	w, err := c.Webhooks.Show(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	query := v.r.URL.Query()
	data := hookPage{View: w, Replay: form, First: true}
	now := time.Now()
	health, partial, err := c.health(v, []string{w.ID}, now)
	if err != nil {
		return err
	}
	if data.Partial = partial; health == nil {
		data.Away = true
	} else {
		data.Chart = v.lang.draw(health[0], now, 22, 8, 96)
		data.LastDelivered, data.Trouble = health[0].Delivered, trouble(w, health[0])
		data.Figures = c.webhookFigures(v, w.ID)
		found, err := c.Notifications.List(v.ctx, v.caller.Account, w.ID, data.filter(query))
		if err != nil {
			return err
		}
		data.Notifications = found.Notifications
		if w.Suspension != nil && w.Suspension.Evidence.Failures > 0 {
			if data.LastFailed, err = c.lastFailed(v, w.ID); err != nil {
				return err
			}
		}
		if !found.Next.IsZero() {
			data.Next = data.link(data.State, found.Next.String())
		}
	}
	if known := c.Webhooks.Known(v.caller.Account, w.ID); known != nil && !data.Away {
		if data.Recent, err = c.Notices.Recent(v.ctx, known, string(v.lang)); err != nil {
			return err
		}
	}
	if data.Replays, err = c.Replays.List(v.ctx, v.caller.Account, w.ID); err != nil {
		return err
	}
	data.Replays = data.Replays[:min(len(data.Replays), replaysShown)]
	return c.show(v, status, "webhook", page{Title: "webhook.title", Name: w.Name, Tab: "webhooks", Poll: pollDetail, Data: data})
}

// failedAttempt is an attempt and the notification it belongs to.
type failedAttempt struct {
	ID string
	notifications.Attempt
}

// lastFailed returns the newest failed attempt of a webhook, nil when its last notifications have none. It reads
// the histories of a few: the list no longer shows the attempts of a notification that has been parked since.
func (c *Console) lastFailed(v *visit, id string) (*failedAttempt, error) {
	found, err := c.Notifications.List(v.ctx, v.caller.Account, id, notifications.Filter{Limit: suspensionSearched})
	if err != nil {
		return nil, err
	}
	tried := slices.DeleteFunc(found.Notifications, func(n notifications.Listed) bool {
		return n.AttemptsMade == 0 || n.State == string(notification.Delivered)
	})
	slices.SortFunc(tried, func(a, b notifications.Listed) int { return b.UpdatedAt.Compare(a.UpdatedAt) })
	var last *failedAttempt
	for _, n := range tried[:min(len(tried), suspensionRead)] {
		whole, err := c.Notifications.Get(v.ctx, v.caller.Account, n.ID)
		if err != nil {
			return nil, err
		}
		a := explain.LastAttempt(whole.History, whole.Sends)
		if a != nil && a.Outcome == notification.OutcomeFailed && (last == nil || a.StartedAt.After(last.StartedAt)) {
			last = &failedAttempt{n.ID, notifications.ShowAttempt(a)}
		}
	}
	return last, nil
}

// hookForm is the form of a new or changed webhook. Its fields are named as in the API.
type hookForm struct {
	ID       string // "" for a new one
	Revision string
	Shown    string // the name it has now
	Values   map[string]string
	HasKey   bool
	HasAuth  string // type of the auth that it has now, "" for none
	Problems map[string]fieldProblem
	General  []fieldProblem // of no field
	Names    []string       // of events
	Paths    []string       // suggested for conditions
	Ops      []condition.Op
	// Conditions end with empty rows.
	Conditions []conditionRow
	Methods    []string
}

// fieldProblem is the problem of a field.
type fieldProblem struct {
	Text   string // key of the catalogue, "" for none
	Detail string // as the API says it, in English
}

// formFields are those of the form, in the API's names.
func formFields() []string {
	return []string{
		"name", "event_name", "http_method", "url", "auth_header", "auth_key", "status", "signature", "stale", "max_per_minute", "notify_emails", "notify_url", "notify_language",
		"auth_type", "auth_token_url", "auth_client_id", "auth_client_secret", "auth_scope", "auth_audience", "auth_certificate", "auth_private_key",
	}
}

func (c *Console) newForm() hookForm {
	return hookForm{Values: map[string]string{"http_method": webhook.Methods()[0], "status": string(webhook.Active), "signature": string(webhook.HMAC)}, Names: c.Webhooks.Names(), Methods: webhook.Methods(), Ops: condition.Ops(), Paths: c.paths("")}.withConditions(nil)
}

func (c *Console) newWebhookPage(v *visit) error {
	if v.caller.ReadOnly {
		return errReadOnly
	}
	return c.showForm(v, http.StatusOK, c.newForm())
}

var errReadOnly = problem.New(problem.Forbidden, "read_only", "this token may only read")

func (c *Console) showForm(v *visit, status int, f hookForm) error {
	title := "form.new"
	if f.ID != "" {
		title = "form.edit"
	}
	return c.show(v, status, "form", page{Title: title, Name: f.Shown, Tab: "webhooks", Data: f})
}

// filled returns the form with its sent values and their problems.
func (f hookForm) filled(v *visit, e *problem.Error) hookForm {
	for _, name := range formFields() {
		f.Values[name] = v.chosen(name)
	}
	f = f.withConditions(conditionRows(v))
	for _, secret := range []string{"auth_key", "auth_client_secret", "auth_private_key"} {
		f.Values[secret] = "" // it is not repeated into the page
	}
	f.Problems = map[string]fieldProblem{}
	for _, p := range e.Problems {
		fp := problemText(p)
		field := strings.TrimPrefix(p.Pointer, "/data/")
		if at := conditionPointer.FindStringSubmatch(field); at != nil {
			field = at[1]
		}
		if rest, found := strings.CutPrefix(field, "notify/"); found {
			part, _, _ := strings.Cut(rest, "/")
			field = "notify_" + part
		}
		if rest, found := strings.CutPrefix(field, "auth/"); found {
			field = "auth_" + rest
		} else if field == "auth" {
			field = "auth_type"
		}
		if p.Pointer == "" {
			f.General = append(f.General, fp)
		} else if _, twice := f.Problems[field]; !twice {
			f.Problems[field] = fp
		}
	}
	return f
}

// conditionPointer matches a pointer into a condition; the first group is the row's field.
var conditionPointer = regexp.MustCompile(`^(conditions/\d+/(?:path|op|value))`)

// conditionField is the key of a row's problem.
func conditionField(row int, member string) string {
	return fmt.Sprintf("conditions/%d/%s", row, member)
}

func problemText(p problem.Problem) fieldProblem {
	fp := fieldProblem{Detail: p.Detail}
	if key := "problem." + p.Code; known(key) {
		fp.Text = key
	}
	return fp
}

// refillable reports whether the form can be shown again for its sender to put right.
func refillable(e *problem.Error) bool {
	switch e.Kind { //nolint:exhaustive // all others are not the form's
	case problem.Malformed, problem.Conflict, problem.Changed, problem.Invalid:
		return true
	}
	return false
}

func (c *Console) postWebhook(v *visit) error {
	var in webhooks.Input
	value := v.r.PostFormValue
	in.Name, in.EventName, in.URL = given(value("name")), given(strings.TrimSpace(value("event_name"))), given(strings.TrimSpace(value("url")))
	in.Method, in.Signature, in.Stale = given(value("http_method")), given(value("signature")), given(v.chosen("stale"))
	in.MaxPerMinute = v.maxPerMinute()
	if rows := conditionRows(v); rows != nil {
		in.Conditions = conditions(rows)
	}
	in.Notify = v.notify()
	if in.Auth = v.auth(); in.Auth.Null {
		in.Auth = webhooks.Field[webhooks.AuthInput]{}
	}
	if h, k := value("auth_header"), value("auth_key"); h != "" || k != "" {
		in.AuthHeader, in.AuthKey = present(h), present(k)
		if h == "" {
			in.AuthHeader = webhooks.Field[string]{}
		}
		if k == "" {
			in.AuthKey = webhooks.Field[string]{}
		}
	}
	w, secret, err := c.Webhooks.Create(v.ctx, v.caller.Account, in)
	if err != nil {
		e := problem.Of(err)
		if !refillable(e) {
			return err
		}
		return c.showForm(v, httpstatus.Of(e), c.newForm().filled(v, e))
	}
	c.changed(v, "createWebhook", w.ID, nil)
	v.fields = append(v.fields, zap.String("webhook_id", w.ID), zap.String("url_host", webhook.URLHost(w.URL)))
	return c.done(v, "/webhooks/"+w.ID, flash{Key: "done.created", Secret: secret, Notify: w.NotifySecret})
}

// chosen is the last value of a field, "" when the form has none: a ticked box comes behind the value of an empty one.
func (v *visit) chosen(name string) string {
	if values := v.r.PostForm[name]; len(values) > 0 {
		return values[len(values)-1]
	}
	return ""
}

// maxPerMinute is the limit that the form sets; absent when the form does not ask. Text that is no number is a limit
// that cannot be.
func (v *visit) maxPerMinute() webhooks.Field[int] {
	value := strings.TrimSpace(v.r.PostFormValue("max_per_minute"))
	if value == "" {
		return webhooks.Field[int]{Present: v.r.PostForm.Has("max_per_minute"), Null: true}
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		n = -1
	}
	return webhooks.Set(n)
}

// notify is the recipients that the form sets; absent when the form does not ask.
func (v *visit) notify() webhooks.Field[webhooks.NotifyInput] {
	if !v.r.PostForm.Has("notify_emails") {
		return webhooks.Field[webhooks.NotifyInput]{}
	}
	in := webhooks.NotifyInput{URL: given(strings.TrimSpace(v.r.PostFormValue("notify_url"))), Language: given(v.r.PostFormValue("notify_language"))}
	in.Emails = strings.FieldsFunc(v.r.PostFormValue("notify_emails"), func(r rune) bool { return r == ',' || r == ';' || unicode.IsSpace(r) })
	return webhooks.Set(in)
}

// auth is how requests prove who sends them, as the form says; absent when it does not ask. An empty secret is absent,
// so that the one that is there stays.
func (v *visit) auth() webhooks.Field[webhooks.AuthInput] {
	if !v.r.PostForm.Has("auth_type") {
		return webhooks.Field[webhooks.AuthInput]{}
	}
	value := func(name string) webhooks.Field[string] {
		return given(strings.TrimSpace(v.r.PostFormValue("auth_" + name)))
	}
	in := webhooks.AuthInput{Type: value("type")}
	switch in.Type.Value {
	case "":
		return webhooks.Field[webhooks.AuthInput]{Present: true, Null: true}
	case webhook.OAuth2:
		in.TokenURL, in.ClientID, in.ClientSecret = value("token_url"), value("client_id"), given(v.r.PostFormValue("auth_client_secret"))
		in.Scope, in.Audience = value("scope"), value("audience")
	case webhook.MTLS:
		in.Certificate, in.PrivateKey = value("certificate"), value("private_key")
	}
	return webhooks.Set(in)
}

func present(s string) webhooks.Field[string] { return webhooks.Set(s) }

// given is a field that is absent when it is empty.
func given(s string) webhooks.Field[string] {
	if s == "" {
		return webhooks.Field[string]{}
	}
	return webhooks.Set(s)
}

func (c *Console) editForm(v *visit) (hookForm, error) {
	w, err := c.Webhooks.Show(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return hookForm{}, err
	}
	f := c.newForm()
	f = f.withConditions(written(w.Conditions))
	f.Paths = c.paths(webhook.Pattern(w.EventName))
	f.ID, f.Revision, f.Shown, f.HasKey = w.ID, strconv.FormatUint(w.Revision, 10), w.Name, w.AuthHeader != nil
	status := string(webhook.Active)
	if w.Status == webhooks.StatusDisabled {
		status = string(webhook.Disabled)
	}
	f.Values = map[string]string{"name": w.Name, "event_name": w.EventName, "http_method": w.Method, "url": w.URL, "status": status, "signature": w.Signature, "stale": w.Stale}
	if w.MaxPerMinute != nil {
		f.Values["max_per_minute"] = strconv.Itoa(*w.MaxPerMinute)
	}
	if a := w.Auth; a != nil {
		f.HasAuth = a.Type
		for name, value := range map[string]string{"type": a.Type, "token_url": a.TokenURL, "client_id": a.ClientID, "scope": a.Scope, "audience": a.Audience} {
			f.Values["auth_"+name] = value
		}
	}
	if n := w.Notify; n != nil {
		f.Values["notify_emails"], f.Values["notify_language"] = strings.Join(n.Emails, ", "), n.Language
		if n.URL != nil {
			f.Values["notify_url"] = *n.URL
		}
	}
	if w.AuthHeader != nil {
		f.Values["auth_header"] = *w.AuthHeader
	}
	return f, nil
}

func (c *Console) editWebhookPage(v *visit) error {
	if v.caller.ReadOnly {
		return errReadOnly
	}
	f, err := c.editForm(v)
	if err != nil {
		return err
	}
	return c.showForm(v, http.StatusOK, f)
}

func (c *Console) postWebhookChange(v *visit) error {
	value := v.r.PostFormValue
	in := webhooks.Input{
		Name: present(value("name")), EventName: present(strings.TrimSpace(value("event_name"))), URL: present(strings.TrimSpace(value("url"))),
		Method: given(value("http_method")), Status: given(value("status")), Signature: given(value("signature")), Stale: given(v.chosen("stale")), MaxPerMinute: v.maxPerMinute(), Notify: v.notify(), Auth: v.auth(),
	}
	switch h, k := value("auth_header"), value("auth_key"); {
	case h == "" && k == "":
		in.AuthHeader, in.AuthKey = webhooks.Field[string]{Present: true, Null: true}, webhooks.Field[string]{Present: true, Null: true}
	case k == "": // the key stays
		in.AuthHeader = present(h)
	default:
		in.AuthHeader, in.AuthKey = present(h), present(k)
	}
	if v.r.PostForm.Has("condition_path") {
		in.Conditions = conditions(conditionRows(v))
	}
	var match webhooks.Match
	if revision, err := strconv.ParseUint(value("revision"), 10, 64); err == nil {
		match = func(r uint64) bool { return r == revision }
	}
	before := c.webhook(v, v.id())
	w, settled, err := c.Webhooks.Update(v.ctx, v.caller.Account, v.id(), in, match, v.caller.Name)
	if err != nil {
		e := problem.Of(err)
		if !refillable(e) {
			return err
		}
		f, err := c.editForm(v)
		if err != nil {
			return err
		}
		return c.showForm(v, httpstatus.Of(e), f.filled(v, e))
	}
	c.changed(v, "updateWebhook", v.id(), before)
	n := flash{Key: "done.changed", Secret: w.SigningSecret, Notify: w.NotifySecret}
	if !settled {
		n.Key = "done.changed_soon"
	}
	return c.done(v, "/webhooks/"+v.id(), n)
}

func (c *Console) postSuspend(v *visit) error {
	before := c.webhook(v, v.id())
	_, settled, err := c.Webhooks.Suspend(v.ctx, v.caller.Account, v.id(), v.caller.Name)
	if err == nil {
		c.changed(v, "suspendWebhook", v.id(), before)
	}
	return c.doneByHand(v, "done.suspended", settled, err)
}

func (c *Console) postResume(v *visit) error {
	before := c.webhook(v, v.id())
	_, settled, err := c.Webhooks.Resume(v.ctx, v.caller.Account, v.id(), v.caller.Name)
	if err == nil {
		c.changed(v, "resumeWebhook", v.id(), before)
	}
	return c.doneByHand(v, "done.resumed", settled, err)
}

func (c *Console) doneByHand(v *visit, key string, settled bool, err error) error {
	if err != nil {
		return err
	}
	if !settled {
		key = "done.soon"
	}
	return c.done(v, "/webhooks/"+v.id(), flash{Key: key})
}

func (c *Console) postTest(v *visit) error {
	n, err := c.Notifications.Test(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	c.changed(v, "testWebhook", v.id(), nil)
	v.fields = append(v.fields, zap.String("notification_id", n.ID))
	return c.done(v, "/notifications/"+n.ID, flash{Key: "done.test"})
}

func (c *Console) postRotate(v *visit) error {
	before := c.webhook(v, v.id())
	w, secret, err := c.Webhooks.RotateSecret(v.ctx, v.caller.Account, v.id(), false)
	if err != nil {
		return err
	}
	c.changed(v, "rotateSecret", v.id(), before)
	n := flash{Key: "done.rotated", Secret: secret}
	if w.PublicKey != "" {
		n.Key = "done.rotated_key"
	}
	return c.done(v, "/webhooks/"+v.id(), n)
}

func (c *Console) postDelete(v *visit) error {
	w, err := c.Webhooks.Show(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	if err := c.Webhooks.Delete(v.ctx, v.caller.Account, v.id(), nil, v.caller.Name); err != nil {
		return err
	}
	c.changed(v, "deleteWebhook", v.id(), w)
	return c.done(v, "/webhooks", flash{Key: "done.deleted", Args: map[string]string{"name": w.Name}})
}

// clip cuts s to at most n bytes of whole characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
