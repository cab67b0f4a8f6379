package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"gancho/pkg/client"
	"gancho/pkg/condition"
)

type applyCmd struct {
	File   string `short:"f" required:"" type:"path" placeholder:"FILE" help:"File with the webhooks, in YAML or JSON; - is standard input."`
	Prune  bool   `help:"Delete the account's webhooks that are not in the file."`
	DryRun bool   `help:"Show what would change, and change nothing."`
	apiFlags
}

func (applyCmd) Help() string {
	return `The file has a list, webhooks, of objects with the members of the API; the name of a webhook is its identity. A member that is left out gets its default. ${NAME} in a text is the environment variable of that name, for secrets. A condition may be written as on the command line. Example:

	webhooks:
	  - name: Won deals
	    event_name: crm_deal_updated
	    url: https://erp.example.com/won
	    auth_header: Authorization
	    auth_key: Bearer ${ERP_TOKEN}
	    conditions: ["$changed contains deal_stage", "document.amount_total gt 1000"]
	    notify: {emails: [ana@example.com], language: pt-BR}
	  - name: Bank
	    event_name: "*"
	    url: https://api.example.com/in
	    auth: {type: oauth2, token_url: "https://auth.example.com/token", client_id: crm, client_secret: "${BANK_SECRET}"}

	gancho apply -f webhooks.yaml --dry-run
	gancho apply -f webhooks.yaml --prune

It stops at the first error; run again, it goes on. Signing secrets of new webhooks are shown this once.`
}

func (c applyCmd) Run(a *app) error {
	text, err := a.read(c.File)
	if err != nil {
		return err
	}
	wanted, err := readWebhooks(text, a.environment())
	if err != nil {
		return usage("%s: %s", c.File, err)
	}
	p := &plan{a: a, dryRun: c.DryRun, counts: map[string]int{}}
	var present []client.Result[client.Webhook]
	for w, err := range a.client.Webhooks(a.ctx) {
		if err != nil {
			return err
		}
		present = append(present, w)
	}
	return p.run(wanted, present, c.Prune)
}

// environment returns the variables of the process.
func (a *app) environment() map[string]string {
	vars := map[string]string{}
	for _, e := range a.Environ {
		name, value, _ := strings.Cut(e, "=")
		vars[name] = value
	}
	return vars
}

// wantedWebhook is one of the file. Its members are JSON.
type wantedWebhook struct {
	name    string
	members map[string]json.RawMessage
	secret  map[string]bool // members that hold a secret
}

// defaults are the members of a webhook that the file may leave out.
func defaults() map[string]string {
	return map[string]string{
		"http_method": `"POST"`, "auth_header": "null", "status": `"active"`, "conditions": "[]", "signature": `"hmac"`,
		"stale": `"send"`, "max_per_minute": "null", "notify": "null", "auth": "null",
	}
}

// plan is the steps of an apply, and its progress.
type plan struct {
	a      *app
	dryRun bool
	counts map[string]int
	done   []map[string]any // for JSON
}

func (p *plan) run(wanted []wantedWebhook, present []client.Result[client.Webhook], prune bool) error {
	byName := map[string][]client.Result[client.Webhook]{}
	for _, w := range present {
		byName[w.Value.Name] = append(byName[w.Value.Name], w)
	}
	var missing []wantedWebhook
	for _, w := range wanted {
		switch same := byName[w.name]; len(same) {
		case 0:
			missing = append(missing, w)
			continue
		case 1:
		default:
			return usage("%d webhooks of the account are called %q, so the name does not say which one is meant; rename them (%s, %s)", len(same), w.name, same[0].Value.ID, same[1].Value.ID)
		}
	}
	inFile := func(name string) bool {
		return slices.ContainsFunc(wanted, func(w wantedWebhook) bool { return w.name == name })
	}
	left := slices.DeleteFunc(slices.Clone(present), func(w client.Result[client.Webhook]) bool { return inFile(w.Value.Name) })
	if prune {
		// One that has another name in the file keeps its identity, its secret and its waiting notifications.
		missing = slices.DeleteFunc(missing, func(w wantedWebhook) bool {
			at := slices.IndexFunc(left, func(o client.Result[client.Webhook]) bool {
				return asText(o.Value.EventName) == string(w.members["event_name"]) && asText(o.Value.URL) == string(w.members["url"])
			})
			if at >= 0 {
				byName[w.name] = left[at : at+1 : at+1]
				left = slices.Delete(slices.Clone(left), at, at+1)
			}
			return at >= 0
		})
		for _, w := range left {
			if err := p.delete(w.Value); err != nil {
				return err
			}
		}
	}
	for _, w := range wanted {
		if old := byName[w.name]; old != nil {
			if err := p.change(w, old[0]); err != nil {
				return err
			}
		}
	}
	for _, w := range missing {
		if err := p.create(w); err != nil {
			return err
		}
	}
	return p.end(len(left), prune)
}

func asText(s string) string {
	out, _ := json.Marshal(s) // a string always encodes
	return string(out)
}

func (p *plan) delete(w client.Webhook) error {
	p.say("- %s  %s", w.Name, w.ID)
	p.note("deleted", w.Name, w.ID, nil, "")
	if p.dryRun {
		return nil
	}
	return p.a.client.DeleteWebhook(p.a.ctx, w.ID)
}

func (p *plan) create(w wantedWebhook) error {
	p.say("+ %s", w.name)
	var changed []string
	for _, name := range slices.Sorted(maps.Keys(w.members)) {
		if name != "name" {
			changed = append(changed, name)
			p.say("    %s: %s", name, w.shown(name))
		}
	}
	id, secret := "", ""
	if !p.dryRun {
		r, err := p.a.client.CreateWebhookFrom(p.a.ctx, w.members)
		if err != nil {
			return fmt.Errorf("webhook %q: %w", w.name, err)
		}
		if id, secret = r.Value.ID, r.Value.SigningSecret; secret != "" {
			p.say("    signing secret: %s  (shown this once)", secret)
		}
		p.sayNotifySecret(r.Value)
	}
	p.note("created", w.name, id, changed, secret)
	return nil
}

func (p *plan) change(w wantedWebhook, old client.Result[client.Webhook]) error {
	var now map[string]json.RawMessage
	if err := json.Unmarshal(old.Raw, &now); err != nil {
		return fmt.Errorf("webhook %s: %w", old.Value.ID, err)
	}
	if string(now["status"]) == `"suspended"` {
		now["status"] = json.RawMessage(`"active"`)
	}
	set, hidden := map[string]json.RawMessage{}, false
	for name, value := range w.members {
		before, shown := now[name]
		switch {
		case w.secret[name] && (!shown || name == "auth") && string(value) != "null":
			set[name], hidden = value, true // only the API knows whether it is another one
		case name == "notify" && sameNotify(before, value):
		case !equalJSON(before, value):
			set[name] = value
		}
	}
	for name, value := range defaults() {
		if _, given := w.members[name]; !given && now[name] != nil && !equalJSON(now[name], json.RawMessage(value)) {
			set[name] = json.RawMessage(value)
		}
	}
	if set["auth_header"] != nil && string(set["auth_header"]) == "null" {
		set["auth_key"] = json.RawMessage("null")
	}
	var changed []string
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if !w.secret[name] && name != "auth_key" {
			changed = append(changed, name)
		}
	}
	if len(set) == 0 || p.dryRun && len(changed) == 0 {
		p.counts["unchanged"]++
		if hidden {
			p.say("= %s  (whether its secrets are others, only the API knows)", w.name)
		}
		return nil
	}
	after := old
	if !p.dryRun {
		var err error
		if after, err = p.a.client.UpdateWebhookFrom(p.a.ctx, old.Value.ID, set); err != nil {
			return fmt.Errorf("webhook %q: %w", w.name, err)
		}
		if after.Value.UpdatedAt.Equal(old.Value.UpdatedAt) {
			p.counts["unchanged"]++
			return nil
		}
	}
	p.say("~ %s  %s", w.name, old.Value.ID)
	for _, name := range changed {
		to := string(compactJSON(set[name]))
		if w.members[name] != nil {
			to = w.shown(name)
		}
		p.say("    %s: %s -> %s", name, compactJSON(now[name]), to)
	}
	if len(changed) == 0 {
		p.say("    a secret")
	}
	if s := after.Value.SigningSecret; s != "" {
		p.say("    signing secret: %s  (shown this once)", s)
	}
	p.sayNotifySecret(after.Value)
	p.note("changed", w.name, old.Value.ID, changed, after.Value.SigningSecret)
	return nil
}

func (p *plan) sayNotifySecret(w client.Webhook) {
	if w.NotifySecret != "" {
		p.say("    secret of notices: %s  (shown this once)", w.NotifySecret)
	}
}

// sameNotify reports whether the file's notify means the one that is there: members left out have their defaults.
func sameNotify(before, value json.RawMessage) bool {
	var is, wanted *client.Notify
	if json.Unmarshal(before, &is) != nil || json.Unmarshal(value, &wanted) != nil || is == nil || wanted == nil {
		return false
	}
	return slices.Equal(is.Emails, wanted.Emails) && is.URL == wanted.URL && is.Language == cmp.Or(wanted.Language, "en")
}

// shown is a member as it may be printed.
func (w *wantedWebhook) shown(name string) string {
	if w.secret[name] {
		return "***"
	}
	return string(compactJSON(w.members[name]))
}

func (p *plan) say(format string, args ...any) {
	if p.a.output != "json" {
		fmt.Fprintln(p.a.Stdout, clean(fmt.Sprintf(format, args...)))
	}
}

func (p *plan) note(what, name, id string, changed []string, secret string) {
	p.counts[what]++
	done := map[string]any{"action": what, "name": name}
	if id != "" {
		done["id"] = id
	}
	if changed != nil {
		done["members"] = changed
	}
	if secret != "" {
		done["signing_secret"] = secret
	}
	p.done = append(p.done, done)
}

func (p *plan) end(left int, pruned bool) error {
	if p.a.output == "json" {
		if p.done == nil {
			p.done = []map[string]any{}
		}
		raw, err := json.Marshal(p.done)
		if err != nil {
			return fmt.Errorf("print as JSON: %w", err)
		}
		return p.a.asJSON(raw)
	}
	format := "%d created, %d changed, %d deleted; %d as they are"
	if p.dryRun {
		format = "%d to create, %d to change, %d to delete; %d as they are"
	}
	p.say(format, p.counts["created"], p.counts["changed"], p.counts["deleted"], p.counts["unchanged"])
	if left > 0 && !pruned {
		p.say("%d of the account are not in the file; --prune deletes them", left)
	}
	return nil
}

func compactJSON(raw json.RawMessage) []byte {
	var out bytes.Buffer
	if json.Compact(&out, raw) != nil {
		return []byte("nothing")
	}
	return out.Bytes()
}

// equalJSON reports whether both are the same value, numbers as they are written.
func equalJSON(a, b json.RawMessage) bool {
	read := func(raw json.RawMessage) (any, error) {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		var v any
		err := d.Decode(&v)
		return v, err
	}
	x, errX := read(a)
	y, errY := read(b)
	if errX != nil || errY != nil {
		return false
	}
	left, errX := json.Marshal(x)
	right, errY := json.Marshal(y)
	return errX == nil && errY == nil && bytes.Equal(left, right)
}

// readWebhooks reads the file. The error names the place of the problem.
func readWebhooks(text []byte, vars map[string]string) ([]wantedWebhook, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	r := &yamlReader{vars: vars}
	if len(doc.Content) != 1 {
		return nil, fmt.Errorf("it is empty; it has a list, webhooks")
	}
	root, err := r.members(doc.Content[0])
	if err != nil {
		return nil, err
	}
	list := root["webhooks"]
	for name, node := range root {
		if name != "webhooks" {
			return nil, fmt.Errorf("line %d: %s is unknown; the file has a list, webhooks", node.Line, name)
		}
	}
	if list == nil || list.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("it has no list, webhooks")
	}
	var all []wantedWebhook
	seen := map[string]bool{}
	for _, node := range list.Content {
		w, err := r.webhook(node)
		if err != nil {
			return nil, err
		}
		if seen[w.name] {
			return nil, fmt.Errorf("line %d: two webhooks are called %q; the name is what tells them apart", node.Line, w.name)
		}
		seen[w.name] = true
		all = append(all, w)
	}
	return all, nil
}

// yamlReader turns YAML into the JSON that it stands for, numbers digit by digit.
type yamlReader struct {
	vars   map[string]string
	nodes  int
	secret bool // the value read last holds an environment variable
}

// maxNodes bounds files whose aliases repeat one another.
const maxNodes = 1_000_000

func (r *yamlReader) webhook(node *yaml.Node) (wantedWebhook, error) {
	w := wantedWebhook{members: map[string]json.RawMessage{}, secret: map[string]bool{}}
	members, err := r.members(node)
	if err != nil {
		return w, err
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		r.secret = name == "auth_key" || name == "auth"
		value := members[name]
		if name == "conditions" && value.Kind == yaml.SequenceNode {
			w.members[name], err = r.conditions(value)
		} else {
			w.members[name], err = r.value(value)
		}
		if err != nil {
			return w, err
		}
		w.secret[name] = r.secret
	}
	if json.Unmarshal(w.members["name"], &w.name) != nil || w.name == "" {
		return w, fmt.Errorf("line %d: the webhook has no name", node.Line)
	}
	return w, nil
}

// members returns the entries of a mapping.
func (r *yamlReader) members(node *yaml.Node) (map[string]*yaml.Node, error) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: here must be members, such as name: value", node.Line)
	}
	all := map[string]*yaml.Node{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name := node.Content[i]
		if all[name.Value] != nil {
			return nil, fmt.Errorf("line %d: %s stands twice", name.Line, name.Value)
		}
		all[name.Value] = node.Content[i+1]
	}
	return all, nil
}

// conditions reads a list of conditions: objects, or lines as on the command line.
func (r *yamlReader) conditions(node *yaml.Node) (json.RawMessage, error) {
	list := []json.RawMessage{}
	for _, item := range node.Content {
		raw, err := r.value(item)
		if err != nil {
			return nil, err
		}
		var line string
		if json.Unmarshal(raw, &line) == nil {
			c, err := condition.Parse(line)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", item.Line, err)
			}
			if raw, err = json.Marshal(c); err != nil {
				return nil, err
			}
		}
		list = append(list, raw)
	}
	return json.Marshal(list)
}

// reference is an environment variable in a text; a second $ in front makes it plain text.
var reference = regexp.MustCompile(`\$?\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

func (r *yamlReader) value(node *yaml.Node) (json.RawMessage, error) {
	if r.nodes++; r.nodes > maxNodes {
		return nil, fmt.Errorf("line %d: the file is too large", node.Line)
	}
	switch node.Kind {
	case yaml.AliasNode:
		return r.value(node.Alias)
	case yaml.MappingNode:
		members, err := r.members(node)
		if err != nil {
			return nil, err
		}
		out := map[string]json.RawMessage{}
		for name, value := range members {
			if out[name], err = r.value(value); err != nil {
				return nil, err
			}
		}
		return json.Marshal(out)
	case yaml.SequenceNode:
		out := []json.RawMessage{}
		for _, item := range node.Content {
			raw, err := r.value(item)
			if err != nil {
				return nil, err
			}
			out = append(out, raw)
		}
		return json.Marshal(out)
	case yaml.ScalarNode:
		return r.scalar(node)
	case yaml.DocumentNode:
	}
	return nil, fmt.Errorf("line %d: this is not a value", node.Line)
}

func (r *yamlReader) scalar(node *yaml.Node) (json.RawMessage, error) {
	switch tag := node.ShortTag(); tag {
	case "!!null":
		return json.RawMessage("null"), nil
	case "!!bool":
		return json.RawMessage(strings.ToLower(node.Value)), nil
	case "!!int", "!!float":
		if !json.Valid([]byte(node.Value)) {
			return nil, fmt.Errorf("line %d: %s is not a number of JSON; write it in digits", node.Line, node.Value)
		}
		return json.RawMessage(node.Value), nil
	}
	var unset string
	text := reference.ReplaceAllStringFunc(node.Value, func(found string) string {
		if plain, ok := strings.CutPrefix(found, "$$"); ok {
			return "$" + plain
		}
		name := found[2 : len(found)-1]
		value, set := r.vars[name]
		if !set || value == "" {
			unset = name
		}
		r.secret = true
		return value
	})
	if unset != "" {
		return nil, fmt.Errorf("line %d: the environment variable %s is not set", node.Line, unset)
	}
	return json.Marshal(text)
}
