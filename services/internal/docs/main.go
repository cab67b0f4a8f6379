// Docs writes the parts of the documentation that follow from the code: the tables of configuration variables
// and streams, the samples of receivers, and the pages of metrics and of closed lists of words. Run it from
// anywhere in the repository:
//
//	go run ./services/internal/docs
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "docs:", err)
		os.Exit(1)
	}
}

func run() error {
	root, err := findRoot()
	if err != nil {
		return err
	}
	pages, err := render(root)
	if err != nil {
		return err
	}
	for _, p := range pages {
		path := filepath.Join(root, p.path)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, p.text) {
			continue
		}
		if err := os.WriteFile(path, p.text, 0o644); err != nil { //nolint:gosec // a page that all may read
			return err
		}
		fmt.Println("written:", p.path) //nolint:forbidigo // a command for developers
	}
	return nil
}

// page is one file as it should be.
type page struct {
	path string // from the root, with slashes
	text []byte
}

// render returns all pages. Parts of a page that are not generated come from its file.
func render(root string) ([]page, error) {
	variables, err := configuration(root)
	if err != nil {
		return nil, err
	}
	samples, err := receiverSamples(root)
	if err != nil {
		return nil, err
	}
	measured, err := metrics(root)
	if err != nil {
		return nil, err
	}
	pages := []page{{"deploy/docs/reasons.md", []byte(reasons())}, {"deploy/docs/metrics.md", []byte(measured)}}
	copies, err := consoleReceivers(root)
	if err != nil {
		return nil, err
	}
	pages = append(pages, copies...)
	for path, parts := range map[string]map[string]string{
		"README.md":                   {"configuration": variables},
		"deploy/docs/architecture.md": {"streams": streams()},
		"deploy/docs/delivery.md":     samples,
	} {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return nil, err
		}
		for name, part := range parts {
			if text, err = between(text, name, part); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		pages = append(pages, page{path, text})
	}
	return pages, nil
}

// consoleReceivers are the copies of the receivers that the console shows: its binary can hold only files below it.
func consoleReceivers(root string) (pages []page, err error) {
	files, err := filepath.Glob(filepath.Join(root, "deploy/docs/receivers/*.*"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		name := filepath.Base(f)
		if filepath.Ext(name) == ".go" { // it would be a package there
			name += ".txt"
		}
		pages = append(pages, page{"services/management/internal/console/receivers/" + name, text})
	}
	return pages, nil
}

// receiverSamples returns the samples of receivers by their files' names, each as a block of code.
func receiverSamples(root string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(root, "deploy/docs/receivers/*.*"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name := filepath.Base(file)
		language := map[string]string{".py": "python", ".mjs": "js", ".rb": "ruby"}[filepath.Ext(name)]
		if language == "" {
			language = filepath.Ext(name)[1:]
		}
		out[name] = "\n```" + language + "\n" + string(text) + "```\n\n"
	}
	return out, nil
}

// between replaces the text between <!-- name:begin --> and <!-- name:end -->.
func between(text []byte, name, with string) ([]byte, error) {
	begin, end := []byte("<!-- "+name+":begin"), []byte("<!-- "+name+":end -->")
	before, rest, ok := bytes.Cut(text, begin)
	comment, rest, closed := bytes.Cut(rest, []byte("-->\n"))
	_, after, ended := bytes.Cut(rest, end)
	if !ok || !closed || !ended {
		return nil, fmt.Errorf("the marks %s ... --> and %s are missing", begin, end)
	}
	return bytes.Join([][]byte{before, begin, comment, []byte("-->\n" + with), end, after}, nil), nil
}

// findRoot returns the repository's folder, seen from the working directory.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.work here or above: run it in the repository")
		}
		dir = filepath.Dir(dir)
	}
}
