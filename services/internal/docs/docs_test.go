package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"gancho/pkg/service"
	"gancho/services/gancho"
)

// root is the repository, seen from this package.
const root = "../../.."

var update = flag.Bool("update", false, "write the pages")

func TestPagesAreUpToDate(t *testing.T) {
	t.Parallel()
	pages, err := render(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		path := filepath.Join(root, p.path)
		if *update {
			if err := os.WriteFile(path, p.text, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.Split(string(p.text), "\n"), strings.Split(string(have), "\n")); diff != "" {
			t.Errorf("%s does not say what the code does; run: go run ./services/internal/docs\n(-code +page)\n%s", p.path, diff)
		}
	}
}

func TestEveryVariableIsInTheTable(t *testing.T) {
	t.Parallel()
	table, err := configuration(root)
	if err != nil {
		t.Fatal(err)
	}
	configs := []any{&gancho.Config{}}
	for _, p := range programs() {
		configs = append(configs, p.config)
	}
	for _, c := range configs {
		for _, f := range service.Fields(c) {
			if !strings.Contains(table, "| `"+f.Var+"` |") {
				t.Errorf("%s is missing", f.Var)
			}
		}
	}
}

func TestEveryWordIsExplained(t *testing.T) {
	t.Parallel()
	for _, l := range lists() {
		var have []string
		for _, w := range l.words {
			have = append(have, w.name)
			if w.meaning == "" || strings.Contains(w.meaning+w.action, "\n") || strings.Contains(strings.ReplaceAll(w.meaning+w.action, `\|`, ""), "|") {
				t.Errorf("%s: %s: the text does not fit into the table", l.title, w.name)
			}
		}
		if !slices.Equal(have, l.closed) {
			t.Errorf("%s: explained are %v, the code has %v", l.title, have, l.closed)
		}
	}
}

func TestEveryStreamHasAPurpose(t *testing.T) {
	t.Parallel()
	if table := streams(); strings.Contains(table, "|  |") {
		t.Errorf("a stream is missing in purposes:\n%s", table)
	}
}

func TestSentence(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ field, comment, want string }{
		"is":      {"OpsAddr", "OpsAddr is where metrics are.", "Where metrics are."},
		"verb":    {"CAFile", "CAFile adds an\nauthority. Default none.", "Adds an authority."},
		"of":      {"Replicas", "Replicas of every stream.", "Replicas of every stream."},
		"default": {"Window", "Window is how far back. 1s to 24h; default 10m.", "How far back. 1s to 24h."},
		"listed":  {"Ports", "Ports are open. Default 443,8443. Or not.", "Open. Or not."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := sentence(tc.field, tc.comment); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestBetween(t *testing.T) {
	t.Parallel()
	got, err := between([]byte("a\n<!-- x:begin, note -->\nold\n<!-- x:end -->\nb\n"), "x", "new\n")
	if want := "a\n<!-- x:begin, note -->\nnew\n<!-- x:end -->\nb\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := between([]byte("a"), "x", ""); err == nil {
		t.Error("missing marks must be an error")
	}
}

var (
	links    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headings = regexp.MustCompile(`(?m)^#+ (.+)$`)
	fences   = regexp.MustCompile("(?ms)^```.*?^```")
)

// TestLinks sees that every link inside the repository leads somewhere.
func TestLinks(t *testing.T) {
	t.Parallel()
	var pages []string
	for _, pattern := range []string{"*.md", ".github/*.md", "deploy/docs/*.md", "deploy/docs/runbooks/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links.FindAllStringSubmatch(string(fences.ReplaceAll(text, nil)), -1) {
			path, anchor, _ := strings.Cut(link[1], "#")
			if strings.Contains(path, "://") {
				continue
			}
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: there is no %s", page, link[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(t, target), anchor) {
				t.Errorf("%s: %s has no heading for %s", page, target, link[1])
			}
		}
	}
}

// anchors returns the places in a page that can be linked to.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, h := range headings.FindAllStringSubmatch(string(fences.ReplaceAll(text, nil)), -1) {
		kept := strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) || unicode.IsDigit(r) || r == ' ' || r == '-' || r == '_' {
				return unicode.ToLower(r)
			}
			return -1
		}, h[1])
		out = append(out, strings.ReplaceAll(kept, " ", "-"))
	}
	return out
}

// TestMapOfTheCode: the map of the code has every package that services share, and what it names is there.
func TestMapOfTheCode(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "deploy/docs/development.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`((?:pkg|services|deploy|\\.ci)/[A-Za-z0-9_./-]+)`").FindAllStringSubmatch(string(text), -1) {
		named[strings.TrimSuffix(m[1], "/")] = true
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Errorf("development.md names %s, which is not there", m[1])
		}
	}
	err = filepath.WalkDir(filepath.Join(root, "pkg"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		files, err := filepath.Glob(filepath.Join(path, "*.go"))
		if name := strings.TrimPrefix(path, root+"/"); len(files) > 0 && !named[name] {
			t.Errorf("development.md has no line for %s", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
