package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"gancho/pkg/service"
	"gancho/services/dispatcher"
	"gancho/services/gancho"
	"gancho/services/management"
	"gancho/services/publisher"
	monitor "gancho/services/suspension-monitor"
)

// program is one service with its settings.
type program struct {
	name   string
	config any
}

func programs() []program {
	return []program{
		{"publisher", &publisher.Config{}},
		{"dispatcher", &dispatcher.Config{}},
		{"suspension-monitor", &monitor.Config{}},
		{"management", &management.Config{}},
	}
}

// variable is one row of the table.
type variable struct {
	service.Field

	readers []string
}

// configuration returns the tables: the variables that all services read, then those of some, then those of
// gancho serve, which reads the others' too.
func configuration(root string) (string, error) {
	var all []*variable
	for _, p := range programs() {
		for _, f := range service.Fields(p.config) {
			at := slices.IndexFunc(all, func(v *variable) bool { return v.Var == f.Var && v.Default == f.Default })
			if at < 0 {
				all = append(all, &variable{Field: f})
				at = len(all) - 1
			}
			all[at].readers = append(all[at].readers, p.name)
		}
	}
	var order []string // headings as they first appear, but the widest first
	groups := map[string][]*variable{}
	for _, v := range all {
		h := heading(v.readers)
		if groups[h] == nil {
			order = append(order, h)
		}
		groups[h] = append(groups[h], v)
	}
	slices.SortStableFunc(order, func(a, b string) int { return len(groups[b][0].readers) - len(groups[a][0].readers) })
	for _, f := range service.Fields(&gancho.Config{}) {
		if f.Struct == reflect.TypeFor[gancho.Config]() {
			groups["gancho serve"] = append(groups["gancho serve"], &variable{Field: f})
		}
	}
	comments := comments{root: root, packages: map[string]map[string]string{}}
	var b strings.Builder
	for _, h := range append(order, "gancho serve") {
		fmt.Fprintf(&b, "\n### %s\n\n| variable | default | allowed | meaning |\n| --- | --- | --- | --- |\n", h)
		for _, v := range groups[h] {
			about, err := comments.of(v.Field)
			if err != nil {
				return "", err
			}
			if v.Secret {
				about += " Or name a file that holds it: `" + v.File() + "`."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", v.Var, code(v.Default), allowed(v.Field), cell(about))
		}
	}
	b.WriteByte('\n')
	return b.String(), nil
}

func heading(readers []string) string {
	switch n := len(readers); n {
	case len(programs()):
		return "all services"
	case 1:
		return readers[0]
	default:
		return strings.Join(readers[:n-1], ", ") + " and " + readers[n-1]
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

func allowed(f service.Field) string {
	if len(f.OneOf) > 0 {
		words := make([]string, len(f.OneOf))
		for i, w := range f.OneOf {
			words[i] = code(w)
		}
		return strings.Join(words, ", ")
	}
	if low, high, ok := strings.Cut(f.Range, ".."); ok {
		return code(low) + " to " + code(high)
	}
	switch f.Value.Interface().(type) {
	case bool:
		return "`true`, `false`"
	case time.Duration:
		return "a duration"
	case int:
		return "a number"
	}
	return ""
}

// cell makes text fit for a cell of a Markdown table.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", `\<`, "*:<token>", `\*:\<token>`).Replace(s)
}

// comments reads the comments of struct fields from the source.
type comments struct {
	root     string
	packages map[string]map[string]string // by import path, then Struct.Field
}

// of returns the field's comment as a sentence that does not begin with the field's name.
func (c *comments) of(f service.Field) (string, error) {
	path := f.Struct.PkgPath()
	if c.packages[path] == nil {
		read, err := readComments(filepath.Join(c.root, strings.TrimPrefix(path, "gancho/")))
		if err != nil {
			return "", err
		}
		c.packages[path] = read
	}
	text := c.packages[path][f.Struct.Name()+"."+f.Name]
	if text == "" {
		return "", fmt.Errorf("%s.%s.%s (%s) has no comment", path, f.Struct.Name(), f.Name, f.Var)
	}
	text = sentence(f.Name, text)
	for _, other := range c.siblings(f) { // readers know a field by its variable
		text = other.name.ReplaceAllString(text, other.variable)
	}
	return text, nil
}

type sibling struct {
	name     *regexp.Regexp
	variable string
}

// siblings are the other fields of f's struct, as comments mention them.
func (c *comments) siblings(f service.Field) []sibling {
	var out []sibling
	for other := range f.Struct.Fields() {
		name, _, _ := strings.Cut(other.Tag.Get("env"), ",")
		if name == "" || other.Name == f.Name || strings.ToUpper(other.Name) == other.Name {
			continue
		}
		out = append(out, sibling{regexp.MustCompile(`\b` + other.Name + `\b`), name})
	}
	return out
}

var (
	defaultSentence = regexp.MustCompile(`(^| )Default [^.]*\.( |$)`)
	defaultClause   = regexp.MustCompile(`[;,] default [^.;,]*\.`)
	spaces          = regexp.MustCompile(`\s+`)
)

// sentence drops the field's name where a verb follows, "is" and "are" with it, and what repeats the column
// of defaults.
func sentence(name, text string) string {
	text = spaces.ReplaceAllString(text, " ")
	text = defaultClause.ReplaceAllString(defaultSentence.ReplaceAllString(text, " "), ".")
	rest := text
	if after, ok := strings.CutPrefix(text, name+" "); ok {
		verb, more, _ := strings.Cut(after, " ")
		switch {
		case verb == "is", verb == "are":
			rest = more
		case strings.HasSuffix(verb, "s"), verb == "also":
			rest = after
		}
	}
	runes := []rune(strings.TrimSpace(rest))
	runes[0] = unicode.ToUpper(runes[0])
	return string(runes)
}

func readComments(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						out[spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
					}
				}
			}
			return false
		})
	}
	return out, nil
}
