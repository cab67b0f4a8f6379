package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"gancho/services/internal/testsystem"
)

// golden is what services/gancho/testdata/metrics.golden says: every metric, its type and labels.
type golden map[string]*struct {
	typ    string
	labels map[string][]string // to their values; "..." stands for an open list
}

func readGolden(t *testing.T) golden {
	t.Helper()
	text, err := os.ReadFile(root("services", "gancho", "testdata", "metrics.golden"))
	must(t, "the list of metrics", err)
	g := golden{}
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		lines := strings.Split(block, "\n")
		name, typ, _ := strings.Cut(lines[0], " ")
		labels := map[string][]string{}
		for _, line := range lines[2:] {
			if label, values, is := strings.Cut(strings.TrimSpace(line), "="); is {
				labels[label] = strings.Split(values, "|")
			}
		}
		g[name] = &struct {
			typ    string
			labels map[string][]string
		}{typ, labels}
	}
	if len(g) < 40 {
		t.Fatalf("%d metrics", len(g))
	}
	return g
}

var (
	// selector is a metric or a recorded series in a query, with its matchers if it has any.
	selector = regexp.MustCompile(`\b((?:gancho[_:]|process_|go_)[a-z0-9_:]+|up|ALERTS)\b(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	grouping = regexp.MustCompile(`\bby \(([a-z_, ]+)\)`)
)

// check fails the test where a query names a metric, a label or a value that no service has. recorded are the
// series that the rules make.
func (g golden) check(t *testing.T, where, query string, recorded []string) (metrics []string) {
	t.Helper()
	labels := []string{"instance", "job", "le"}
	for _, m := range selector.FindAllStringSubmatch(query, -1) {
		name := m[1]
		if strings.HasPrefix(name, "gancho_process_") || strings.HasPrefix(name, "gancho_go_") || name == "up" || name == "ALERTS" {
			continue // of Prometheus and its client library
		}
		if strings.Contains(name, ":") {
			if !slices.Contains(recorded, name) {
				t.Errorf("%s: no rule records %s", where, name)
			}
			continue
		}
		metric := g[name]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, is := strings.CutSuffix(name, suffix); is && g[base] != nil && g[base].typ == "histogram" {
				metric = g[base]
			}
		}
		if metric == nil {
			t.Errorf("%s: there is no metric %s", where, name)
			continue
		}
		metrics = append(metrics, name)
		for label := range metric.labels {
			labels = append(labels, label)
		}
		for _, m := range matcher.FindAllStringSubmatch(m[2], -1) {
			label, op, value := m[1], m[2], m[3]
			if label == "le" || label == "job" || label == "instance" {
				continue
			}
			known := metric.labels[label]
			if known == nil {
				t.Errorf("%s: %s has no label %s", where, name, label)
				continue
			}
			values := []string{value}
			if strings.HasSuffix(op, "~") {
				values = strings.Split(value, "|")
			}
			for _, v := range values {
				if !slices.Contains(known, v) && !slices.Contains(known, "...") {
					t.Errorf("%s: the label %s of %s is never %q", where, label, name, v)
				}
			}
		}
	}
	for _, m := range grouping.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(m[1], ",") {
			if label = strings.TrimSpace(label); !slices.Contains(labels, label) {
				t.Errorf("%s: no metric of the query has the label %s", where, label)
			}
		}
	}
	return metrics
}

// rule is an alert or a recorded series.
type rule struct {
	Alert       string            `yaml:"alert"`
	Record      string            `yaml:"record"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// readRules returns the rules and the names of the recorded series.
func readRules(t *testing.T) (rules []rule, recorded []string) {
	t.Helper()
	text, err := os.ReadFile(root("deploy", "prometheus", "rules", "gancho.yml"))
	must(t, "the rules", err)
	var file struct {
		Groups []struct {
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	must(t, "the rules", yaml.Unmarshal(text, &file))
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			rules = append(rules, r)
			if r.Record != "" {
				recorded = append(recorded, r.Record)
			}
		}
	}
	return rules, recorded
}

// TestAlerts looks at what an alert must have: metrics that exist, a severity, texts, a page that says what to
// do, and tests that set it off and that do not.
func TestAlerts(t *testing.T) {
	t.Parallel()
	rules, recorded := readRules(t)
	metrics := readGolden(t)
	text, err := os.ReadFile(root("deploy", "prometheus", "tests", "gancho_test.yml"))
	must(t, "the tests of the rules", err)
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name string `yaml:"alertname"`
				Exp  []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	must(t, "the tests of the rules", yaml.Unmarshal(text, &tests))
	fired, quiet := map[string]bool{}, map[string]bool{}
	for i, test := range tests.Tests {
		for _, a := range test.Alerts {
			fired[a.Name] = fired[a.Name] || len(a.Exp) > 0
			quiet[a.Name] = quiet[a.Name] || i == 0 && len(a.Exp) == 0
		}
	}
	pages := map[string]bool{}
	for _, r := range rules {
		metrics.check(t, r.Alert+r.Record, r.Expr, recorded)
		if r.Alert == "" {
			continue
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		for _, a := range []string{"summary", "description"} {
			if r.Annotations[a] == "" {
				t.Errorf("%s has no %s", r.Alert, a)
			}
		}
		page := "deploy/docs/runbooks/" + r.Alert + ".md"
		if r.Annotations["runbook_url"] != page {
			t.Errorf("runbook_url of %s is %q, want %s", r.Alert, r.Annotations["runbook_url"], page)
		}
		pages[r.Alert+".md"] = true
		text, err := os.ReadFile(root(filepath.FromSlash(page)))
		if err != nil {
			t.Errorf("%s has no page: %v", r.Alert, err)
		}
		for _, part := range []string{"# " + r.Alert + "\n", "\n## Look\n", "\n## Repair\n"} {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s has no %q", page, strings.TrimSpace(part))
			}
		}
		if !fired[r.Alert] {
			t.Errorf("no test sets %s off", r.Alert)
		}
		if !quiet[r.Alert] {
			t.Errorf("the healthy system's test does not look at %s", r.Alert)
		}
	}
	entries, err := os.ReadDir(root("deploy", "docs", "runbooks"))
	must(t, "the runbooks", err)
	for _, e := range entries {
		if !pages[e.Name()] && e.Name() != "README.md" {
			t.Errorf("deploy/docs/runbooks/%s belongs to no alert", e.Name())
		}
	}
}

// link finds links to files in a page.
var link = regexp.MustCompile(`\]\(([^):#]+)(?:#[^)]*)?\)`)

// TestRunbookLinks sees that what operators are sent to is there.
func TestRunbookLinks(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(root("deploy", "docs", "runbooks", "*.md"))
	must(t, "the runbooks", err)
	for _, page := range append(pages, root("deploy", "docs", "operations.md")) {
		text, err := os.ReadFile(page)
		must(t, page, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), filepath.FromSlash(m[1]))); err != nil {
				t.Errorf("%s links to %s, which is not there", filepath.Base(page), m[1])
			}
		}
	}
}

// tool finds a program of the package prometheus.
func tool(t *testing.T, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skipf("-short: %s may not be installed", name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("install %s (make test does it)", name)
	}
	return path
}

// TestRulesWithPromtool runs the rules' own tests.
func TestRulesWithPromtool(t *testing.T) {
	t.Parallel()
	promtool := tool(t, "promtool")
	tests, err := filepath.Glob(root("deploy", "prometheus", "tests", "*.yml"))
	if err != nil || len(tests) == 0 {
		t.Fatal("no tests of the rules", err)
	}
	for _, args := range [][]string{
		{"check", "config", root("deploy", "prometheus", "prometheus.yml")}, // and the rules that it names
		append([]string{"test", "rules"}, tests...),
	} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args[:2], " "), err, out)
		}
	}
}

// TestScrapedPorts compares prometheus.yml with docker-compose.yml: every service is asked, at its OPS_ADDR.
func TestScrapedPorts(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(root("deploy", "prometheus", "prometheus.yml"))
	must(t, "prometheus.yml", err)
	var file struct {
		Jobs []struct {
			Name        string `yaml:"job_name"`
			HonorLabels bool   `yaml:"honor_labels"`
			DNS         []struct {
				Names []string `yaml:"names"`
				Type  string   `yaml:"type"`
				Port  int      `yaml:"port"`
			} `yaml:"dns_sd_configs"`
		} `yaml:"scrape_configs"`
	}
	must(t, "prometheus.yml", yaml.Unmarshal(text, &file))
	asked := map[string]bool{}
	c := readCompose(t, composeFile)
	for _, job := range file.Jobs {
		if len(job.DNS) == 0 {
			continue
		}
		asked[job.Name] = true
		s := c.Services[job.Name]
		if s == nil || s.Environment["OPS_ADDR"] == nil {
			t.Errorf("docker-compose.yml has no service %s with an OPS_ADDR", job.Name)
			continue
		}
		d := job.DNS[0]
		if want := *s.Environment["OPS_ADDR"]; fmt.Sprintf(":%d", d.Port) != want || d.Type != "A" || !slices.Equal(d.Names, []string{job.Name}) {
			t.Errorf("%s is asked at %v, its OPS_ADDR is %s", job.Name, d, want)
		}
		if !job.HonorLabels {
			t.Errorf("job %s renames the label service", job.Name)
		}
		if !slices.Contains(s.Networks, "backplane") || !slices.Contains(c.Services["prometheus"].Networks, "backplane") {
			t.Errorf("prometheus does not reach %s", job.Name)
		}
	}
	for name, s := range c.Services {
		if s.Environment["OPS_ADDR"] != nil && len(s.Profiles) == 0 && !asked[name] { // those of a profile run a command and end
			t.Errorf("prometheus.yml does not ask %s", name)
		}
	}
}

// panel is what the tests look at of a dashboard's panel.
type panel struct {
	ID         int    `json:"id"`
	Title      string `json:"title"`
	Type       string `json:"type"`
	Datasource struct {
		UID string `json:"uid"`
	} `json:"datasource"`
	GridPos struct{ X, Y, W, H int } `json:"gridPos"`
	Config  struct {
		Defaults struct {
			NoValue string `json:"noValue"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Targets []struct {
		Expr string `json:"expr"`
	} `json:"targets"`
}

func readDashboard(t *testing.T) []panel {
	t.Helper()
	text, err := os.ReadFile(root("deploy", "grafana", "dashboards", "gancho.json"))
	must(t, "the dashboard", err)
	var d struct {
		UID    string  `json:"uid"`
		Title  string  `json:"title"`
		Panels []panel `json:"panels"`
	}
	must(t, "the dashboard", json.Unmarshal(text, &d))
	if d.UID == "" || d.Title == "" || len(d.Panels) < 20 {
		t.Fatalf("the dashboard %q (%q) has %d panels", d.Title, d.UID, len(d.Panels))
	}
	return d.Panels
}

// TestDashboard looks at the dashboard's queries, and that Grafana finds it and its data source.
func TestDashboard(t *testing.T) {
	t.Parallel()
	var sources struct {
		Datasources []struct{ UID, Type, URL string } `yaml:"datasources"`
	}
	text, err := os.ReadFile(root("deploy", "grafana", "provisioning", "datasources", "prometheus.yml"))
	must(t, "the data source", err)
	must(t, "the data source", yaml.Unmarshal(text, &sources))
	if len(sources.Datasources) != 1 || sources.Datasources[0].URL != "http://prometheus:9090" {
		t.Fatalf("data sources: %+v", sources)
	}
	text, err = os.ReadFile(root("deploy", "grafana", "provisioning", "dashboards", "gancho.yml"))
	must(t, "the provider", err)
	var provider struct {
		Providers []struct {
			Options struct {
				Path string `yaml:"path"`
			} `yaml:"options"`
		} `yaml:"providers"`
	}
	must(t, "the provider", yaml.Unmarshal(text, &provider))
	if len(provider.Providers) != 1 || !slices.Contains(readCompose(t, composeFile).Services["grafana"].Volumes, "./deploy/grafana/dashboards:"+provider.Providers[0].Options.Path+":ro") {
		t.Errorf("docker-compose.yml mounts no dashboards at %+v", provider.Providers)
	}

	_, recorded := readRules(t)
	metrics := readGolden(t)
	ids, cells, shown := map[int]string{}, map[[2]int]string{}, map[string]bool{}
	for _, p := range readDashboard(t) {
		if other, is := ids[p.ID]; is {
			t.Errorf("panels %q and %q have the same id", p.Title, other)
		}
		ids[p.ID] = p.Title
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, is := cells[[2]int{x, y}]; is || x >= 24 {
					t.Fatalf("panel %q lies over %q or beyond the edge", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Datasource.UID != sources.Datasources[0].UID {
			t.Errorf("panel %q uses the data source %q", p.Title, p.Datasource.UID)
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		if p.Type == "stat" && p.Config.Defaults.NoValue == "" {
			t.Errorf("panel %q shows \"No data\" and not what that means", p.Title)
		}
		for _, q := range p.Targets {
			for _, name := range metrics.check(t, p.Title, q.Expr, recorded) {
				shown[name] = true
			}
		}
	}
	for name := range metrics {
		if !shown[name] && !shown[name+"_bucket"] && !shown[name+"_count"] {
			t.Logf("no panel shows %s", name)
		}
	}
}

// prometheusServer is a running Prometheus that asks a system's services every second, with the rules that we ship.
type prometheusServer struct {
	s   *system
	url string
}

func (s *system) prometheus() *prometheusServer {
	s.t.Helper()
	path := tool(s.t, "prometheus")
	rules, err := filepath.Abs(root("deploy", "prometheus", "rules", "*.yml"))
	must(s.t, "path of the rules", err)
	var text strings.Builder
	fmt.Fprintf(&text, "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n", rules)
	for _, p := range s.Services() {
		_, addr, _ := strings.Cut(s.Ops(p), "//")
		fmt.Fprintf(&text, "  - {job_name: %s, honor_labels: true, static_configs: [{targets: [%q]}]}\n", p.Name, addr)
	}
	dir := s.t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	must(s.t, "prometheus.yml", os.WriteFile(config, []byte(text.String()), 0o600))
	p := testsystem.NewProcess(s.t, "prometheus", nil, path, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
	p.Start()
	s.t.Cleanup(p.Kill)
	return &prometheusServer{s, "http://" + p.Find(`msg="Listening on".*address=(127\.0\.0\.1:\d+)`)}
}

// get asks the Prometheus and decodes the data of its answer into out.
func (p *prometheusServer) get(path string, out any) error {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: out}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", resp.Status, answer.Error)
	}
	return nil
}

// query returns how many series a query has now.
func (p *prometheusServer) query(q string) (series int, err error) {
	var data struct {
		Result []any `json:"result"`
	}
	err = p.get("/api/v1/query?query="+url.QueryEscape(q), &data)
	return len(data.Result), err
}

// testQueriesOnPrometheus has a real Prometheus ask real services, and asks it what the dashboard would: every
// query is answered, every metric is there, every rule can be evaluated, and no alert is raised.
func testQueriesOnPrometheus(t *testing.T, s *system) {
	rc := newReceiver(t, succeed)
	h := s.register(dealCreated, rc.URL)
	s.waitAll(ids(dealCreated, h, s.publishMany(5)), "delivered")
	p := s.prometheus()
	s.Until("every service was asked", func() bool {
		n, err := p.query("up == 1")
		return err == nil && n == len(s.Services())
	})
	names := map[string]bool{}
	metrics := readGolden(t)
	rules, recorded := readRules(t)
	for _, r := range rules {
		for _, name := range metrics.check(t, r.Alert+r.Record, r.Expr, recorded) {
			names[name] = true
		}
	}
	for _, panel := range readDashboard(t) {
		for _, q := range panel.Targets {
			for _, name := range metrics.check(t, panel.Title, q.Expr, recorded) {
				names[name] = true
			}
			if _, err := p.query(strings.ReplaceAll(q.Expr, "$__rate_interval", "1m")); err != nil {
				t.Errorf("panel %q: %s: %v", panel.Title, q.Expr, err)
			}
		}
	}
	for name := range names {
		s.Until(name+" is there", func() bool {
			n, err := p.query(name)
			return err == nil && n > 0
		})
	}
	if n, err := p.query(`gancho_first_attempt_latency_seconds_bucket{le=~"5|5[.]0"}`); n != 1 || err != nil {
		t.Errorf("%d buckets of first attempts within 5 s, want 1: %v", n, err)
	}
	var data struct {
		Groups []struct {
			Rules []struct {
				Name, Health, LastError, State string
			}
		}
	}
	s.Until("every rule was evaluated", func() bool {
		err := p.get("/api/v1/rules", &data)
		unknown := err != nil || len(data.Groups) == 0
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				unknown = unknown || r.Health == "unknown"
			}
		}
		return !unknown
	})
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			if r.Health != "ok" {
				t.Errorf("rule %s: %s", r.Name, r.LastError)
			}
			if r.State == "firing" {
				t.Errorf("%s is raised by a healthy system", r.Name)
			}
		}
	}
}
