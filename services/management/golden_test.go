package management_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gancho/pkg/delivery"
	"gancho/pkg/redistest"
	"gancho/services/management"
)

var update = flag.Bool("update", false, "write the golden files again")

var (
	uuids   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	times   = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( UTC|Z)`)
	secrets = regexp.MustCompile(`whsec_[A-Za-z0-9+/=]+`)
	cursors = regexp.MustCompile(`page%5Bafter%5D=[A-Za-z0-9_-]+`)
)

// golden compares an answer with a file, with what differs from run to run replaced: ids by <id 1>, <id 2> in
// order of appearance, times and secrets by a word.
type golden struct {
	t   *testing.T
	ids map[string]string
	url string
}

func (g *golden) check(name string, r reply) {
	g.t.Helper()
	var pretty bytes.Buffer
	fmt.Fprintf(&pretty, "%d %s\n", r.status, r.header.Get("Content-Type"))
	for _, h := range []string{"Location", "Retry-After", "WWW-Authenticate", "Allow"} {
		if v := r.header.Get(h); v != "" {
			fmt.Fprintf(&pretty, "%s: %s\n", h, v)
		}
	}
	pretty.WriteByte('\n')
	if len(r.raw) > 0 {
		if err := json.Indent(&pretty, r.raw, "", "  "); err != nil {
			g.t.Fatal(err)
		}
	}
	got := uuids.ReplaceAllStringFunc(pretty.String(), func(id string) string {
		if g.ids[id] == "" {
			g.ids[id] = fmt.Sprintf("<id %d>", len(g.ids)+1)
		}
		return g.ids[id]
	})
	got = strings.ReplaceAll(got, g.url, "<url>")
	got = times.ReplaceAllString(got, "<time>")
	got = secrets.ReplaceAllString(got, "<secret>")
	got = cursors.ReplaceAllString(got, "page%5Bafter%5D=<cursor>")
	file := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			g.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			g.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		g.t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		g.t.Errorf("%s differs; run with -update if that is meant:\n%s", name, diff)
	}
}

// TestAnswers pins what clients see.
func TestAnswers(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	s := start(t, func(c *management.Config) { c.RedisURL = redis.URL() })
	s.monitor(t.Context())
	g := &golden{t, map[string]string{}, s.url}

	created := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/deals?loja=3", "auth_header", "X-Api-Key", "auth_key", "k"))
	g.check("webhook-created", created)
	hookID := created.want(201).id()
	path := "/crm/v2/webhooks/" + hookID
	g.check("webhook", s.do(acme, "GET", path, nil))
	g.check("webhook-twice", s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/deals?loja=3")))
	g.check("webhook-refused", s.do(acme, "POST", "/crm/v2/webhooks", map[string]any{"name": "", "url": "http://10.0.0.1/", "http_method": "TRACE"}))
	g.check("webhook-suspended", s.do(acme, "POST", path+"/suspend", nil))
	g.check("webhook-resumed", s.do(acme, "POST", path+"/resume", nil))
	g.check("webhook-changed", s.do(acme, "PUT", path, map[string]any{"name": "Outro", "status": "disabled"}))
	g.check("secret-rotated", s.do(acme, "POST", path+"/rotate_secret", nil))
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/second")).want(201)
	g.check("webhook-list", s.do(acme, "GET", "/crm/v2/webhooks?page[size]=1", nil))

	g.check("event-accepted", s.do(acme, "POST", "/crm/v2/events/crm_deal_created", `{"transaction_uuid":"golden"}`))
	g.check("event-refused", s.do(acme, "POST", "/crm/v2/events/crm_deal_created", `{"event_name":"crm_task_created"}`))
	n := s.matched("acme", hookID, `{"transaction_uuid":"n"}`)
	s.attempted(n, delivery.Timeout)
	g.check("notification-retrying", s.do(acme, "GET", "/crm/v2/notifications/"+n.ID, nil))
	s.attempted(n, "")
	g.check("notification-delivered", s.do(acme, "GET", "/crm/v2/notifications/"+n.ID, nil))
	g.check("notification-resent", s.do(acme, "POST", "/crm/v2/notifications/"+n.ID+"/resend", nil))
	g.check("notification-on-its-way", s.do(acme, "POST", "/crm/v2/notifications/"+n.ID+"/resend", nil))
	s.attempted(s.matched("acme", hookID, `{"transaction_uuid":"m"}`), "")
	list := path + "/notifications?page[size]=1"
	s.until("both are listed", func() bool {
		r := s.do(acme, "GET", list, nil)
		return r.status == 200 && r.json["has_more"] == true && r.json["partial"] == nil
	})
	g.check("notification-list", s.do(acme, "GET", list, nil))
	g.check("replay-preview", s.do(acme, "POST", path+"/replays", map[string]any{"from": "2026-01-01T00:00:00Z", "rate": 10}))
	g.check("openapi", s.do("", "GET", "/crm/v2/openapi.json", nil))

	g.check("no-token", s.do("", "GET", path, nil))
	g.check("read-only", s.do(acmeRead, "DELETE", path, nil))
	g.check("not-found", s.do(other, "GET", path, nil))
	g.check("wrong-method", s.do(acme, "PATCH", path, nil))
	g.check("unknown-member", s.do(acme, "PUT", path, `{"data":{"URL":"https://x.example.com/"}}`))
	redis.Kill()
	s.until("Redis is missed", func() bool { return s.do(acme, "GET", list, nil).status == 503 })
	g.check("index-away", s.do(acme, "GET", list, nil))
}
