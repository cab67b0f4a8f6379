// Package prose holds comments, texts and pages to plain English.
package prose

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// columns is where a comment's line ends at the latest; a tab counts as four.
const columns = 120

// banned are words with plainer ones, and "what" as a noun ("removes what is acknowledged" for "removes acknowledged
// messages"). An indirect question ("says what is wrong") is English.
var banned = []*regexp.Regexp{
	regexp.MustCompile(`(?i)\b(?:anew|beside|somebody|nobody|told)\b|\bthe leave\b`),
	regexp.MustCompile(`(?i)(?:^|[;:.] |\b(?:of|for|from|to|in|on|with|than|by|at|over|behind|before|after|beyond|into|under|as|is|are|` +
		`was|not|only|all|keeps?|holds?|reads?|removes?|drops?|deletes?|repeats?|restores?|repairs?|counts?|loses?|lost) )` +
		`what (?:is|was|were|are|has|had|have|they|it|we|waits?|comes?|came|follows?|lies|fails?|failed|goes|stands|others|` +
		`belongs?|changed|remains?|became|becomes?)\b`),
}

// allowed are sentences in which a banned word is the right one, with the reason.
var allowed = map[string]string{
	"every state and reason: what it means": "an indirect question",
	"crm.events.nobody.crm_deal_created":    "a name",
}

// fault returns the banned words of a text, "" if it has none. Questions may ask for "what".
func fault(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	for sentence := range allowed {
		text = strings.ReplaceAll(text, sentence, "")
	}
	for _, b := range banned {
		for _, at := range b.FindAllStringIndex(text, -1) {
			if end := strings.IndexAny(text[at[1]:], ".?"); end >= 0 && text[at[1]+end] == '?' {
				continue
			}
			return text[max(0, at[0]-30):min(len(text), at[1]+30)]
		}
	}
	return ""
}

func TestFault(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"It removes what is acknowledged.":             true,
		"The log, oldest first. What was parked goes.": true,
		"The consumer is made\n\tanew.":                true,
		"The leave is not the leave of a tree":         true,
		"Somebody edited it.":                          true,
		"What is it waiting for?":                      false,
		"It says on stderr what is wrong.":             false,
		"The others are besides the point, retold.":    false,
		"a request of its own":                         false,
	} {
		if got := fault(text); (got != "") != want {
			t.Errorf("%q: got %q, want a fault: %v", text, got, want)
		}
	}
}

// TestPlainEnglish reads comments, the strings of programs, and pages and configuration for operators.
func TestPlainEnglish(t *testing.T) {
	t.Parallel()
	root := os.DirFS("../../..")
	pages := 0
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "node_modules", "testdata", "static"}, d.Name()):
			return fs.SkipDir
		case d.IsDir():
			return nil
		case filepath.Ext(path) == ".go":
			return readCode(t, root, path)
		case !slices.Contains([]string{".md", ".yml", ".conf", ".acl", ".sh", ".html"}, filepath.Ext(path)):
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		pages++
		for paragraph := range strings.SplitSeq(string(text), "\n\n") {
			if f := fault(strings.ReplaceAll(paragraph, "\n#", "\n")); f != "" {
				t.Errorf("%s: ... %s ...", path, f)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pages < 50 {
		t.Errorf("only %d pages were read", pages)
	}
}

func readCode(t *testing.T, root fs.FS, path string) error {
	t.Helper()
	if path == "services/internal/prose/prose_test.go" {
		return nil // it names the words
	}
	text, err := fs.ReadFile(root, path)
	if err != nil {
		return err
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, group := range file.Comments {
		if f := fault(group.Text()); f != "" {
			t.Errorf("%s: ... %s ...", files.Position(group.Pos()), f)
		}
	}
	for i, line := range strings.Split(string(text), "\n") {
		wide := strings.ReplaceAll(line, "\t", "    ")
		if strings.HasPrefix(strings.TrimSpace(line), "// ") && utf8.RuneCountInString(wide) > columns {
			t.Errorf("%s:%d: a comment of %d columns, at most %d", path, i+1, utf8.RuneCountInString(wide), columns)
		}
	}
	if strings.HasSuffix(path, "_test.go") {
		return nil
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING {
			if f := fault(s.Value); f != "" {
				t.Errorf("%s: ... %s ...", files.Position(s.Pos()), f)
			}
		}
		return true
	})
	return nil
}
