package gancho

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"gancho/pkg/seal"
)

func TestSetup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var out strings.Builder
	if err := Setup(dir, &out); err != nil {
		t.Fatal(err)
	}
	if _, warnings, err := seal.Load(filepath.Join(dir, "encryption", "keys")); err != nil || len(warnings) > 0 {
		t.Errorf("the key file: %v %v", warnings, err)
	}
	tokens := filepath.Join(dir, "tokens", "api")
	text, err := os.ReadFile(tokens)
	if err != nil {
		t.Fatal(err)
	}
	entry := regexp.MustCompile(`(?m)^\*:(gancho_[A-Za-z0-9_-]{32})$`).FindStringSubmatch(string(text))
	if entry == nil {
		t.Fatalf("no operator's token in %q", text)
	}
	if !strings.Contains(out.String(), "GANCHO_TOKEN="+entry[1]) {
		t.Errorf("the token is not shown: %q", out.String())
	}
	if info, err := os.Stat(tokens); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}

	before := files(t, dir)
	out.Reset()
	if err := Setup(dir, &out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), entry[1]) {
		t.Error("the second run shows the token again")
	}
	if after := files(t, dir); strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("the second run changed files:\n%v\n%v", before, after)
	}
}

func TestSetupRefusesEmptyFiles(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{"key": "encryption/keys", "token": "tokens/api"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			err := Setup(filepath.Dir(filepath.Dir(path)), &strings.Builder{})
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v; it must name the file", err)
			}
		})
	}
}

func TestSetupAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outs := make([]strings.Builder, 8)
	errs := make([]error, len(outs))
	var all sync.WaitGroup
	for i := range outs {
		all.Go(func() { errs[i] = Setup(dir, &outs[i]) })
	}
	all.Wait()
	shown := 0
	for i := range outs {
		if errs[i] != nil {
			t.Error(errs[i])
		}
		shown += strings.Count(outs[i].String(), "GANCHO_TOKEN=")
	}
	if shown != 1 {
		t.Errorf("%d tokens were shown, want 1", shown)
	}
	if got := files(t, dir); len(got) != 2 {
		t.Errorf("files left: %v", got)
	}
}

// files lists every file below dir with its content.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		out = append(out, path+"="+string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
