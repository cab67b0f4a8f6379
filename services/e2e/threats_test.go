package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestThreatsAreProved: the page of threats has all of them, and the tests it names exist where it says.
func TestThreatsAreProved(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	page, err := os.ReadFile(filepath.Join(root, "deploy", "docs", "threats.md"))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z0-9/_-]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	sources := map[string]string{} // test files of a directory, together
	exists := func(dir, test string) bool {
		text, known := sources[dir]
		if !known {
			files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				raw, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				text += string(raw)
			}
			sources[dir] = text
		}
		return strings.Contains(text, "\nfunc "+test+"(")
	}
	rows := map[int]int{}
	for line := range strings.Lines(string(page)) {
		named := name.FindAllStringSubmatch(line, -1)
		for _, m := range named {
			if !exists(m[1], m[2]) {
				t.Errorf("%s has no %s", m[1], m[2])
			}
		}
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			if n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(cells[1]), "T")); err == nil {
				rows[n]++
				if len(named) == 0 {
					t.Errorf("T%d names no test", n)
				}
			}
		}
	}
	for n := 1; n <= 36; n++ {
		if rows[n] != 1 {
			t.Errorf("T%d has %d rows", n, rows[n])
		}
	}
}

// TestLicencesAreListed: every module that a program links is on the page of licences, in its version.
func TestLicencesAreListed(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "deploy", "docs", "licenses.md"))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"list", "-deps", "-f", "{{with .Module}}{{if not .Main}}| `{{.Path}}` | {{.Version}} |{{end}}{{end}}"}
	for _, program := range append([]string{"gancho"}, allServices...) {
		args = append(args, "gancho/services/"+program+"/cmd")
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	seen := 0
	for row := range strings.Lines(string(out)) {
		if row = strings.TrimSpace(row); row == "" || strings.Contains(row, "`gancho/") {
			continue
		}
		seen++
		if !strings.Contains(string(page), row) {
			t.Errorf("not listed; run make licenses: %s", row)
		}
	}
	if seen < 100 { // packages, not modules
		t.Errorf("only %d packages seen", seen)
	}
}
