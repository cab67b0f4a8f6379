package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gancho/pkg/redistest"
	"gancho/pkg/seal"
	"gancho/pkg/tokens"
)

// TestTokens adds tokens, finds them under the names that logs have, and removes one; files stay as they were when a
// command is refused.
func TestTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keys, file := filepath.Join(dir, "keys"), filepath.Join(dir, "api")
	ring := seal.New()
	if err := ring.Write(keys); err != nil {
		t.Fatal(err)
	}
	redisURL := ""
	run := func(args ...string) (int, string, string) {
		var stdout, stderr strings.Builder
		code := Run(Program{
			Args: append([]string{"tokens"}, args...), Stdout: &stdout, Stderr: &stderr,
			Environ: []string{"API_TOKENS_FILE=" + file, "ENCRYPTION_KEY_FILE=" + keys, "REDIS_URL=" + redisURL},
		})
		return code, stdout.String(), stderr.String()
	}
	shown := regexp.MustCompile(`(?s)^(tok_[0-9a-f]{8}) in .*GANCHO_TOKEN=(\S+)\n$`)
	var names []string
	for _, args := range [][]string{{"add", "acme"}, {"add", "acme", "--read"}, {"add", "*"}} {
		code, out, stderr := run(args...)
		m := shown.FindStringSubmatch(out)
		if code != exitOK || m == nil {
			t.Fatalf("%v: exit %d, %q %q", args, code, out, stderr)
		}
		if want := tokens.Name(ring.Derive(tokens.Purpose), m[2]); m[1] != want {
			t.Errorf("%v: called %s, logs have %s", args, m[1], want)
		}
		names = append(names, m[1])
	}
	list := func(want ...string) {
		t.Helper()
		code, out, stderr := run("list")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if code != exitOK || len(lines) != len(want)+1 {
			t.Fatalf("list: exit %d, %q %q", code, out, stderr)
		}
		for i, w := range want {
			if got := strings.Join(strings.Fields(lines[i+1]), " "); got != w {
				t.Errorf("line %d: %q, want %q", i+1, got, w)
			}
		}
	}
	list(names[0]+" acme read and write ?", names[1]+" acme read ?", names[2]+" * read and write ?")
	server := redistest.Start(t)
	redisURL = server.URL()
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	if err := tokens.WriteUse(t.Context(), server.Client(), map[string]time.Time{names[1]: at}); err != nil {
		t.Fatal(err)
	}
	list(names[0]+" acme read and write never", names[1]+" acme read 2026-11-27T12:00:00Z", names[2]+" * read and write never")
	server.Stop()
	list(names[0]+" acme read and write ?", names[1]+" acme read ?", names[2]+" * read and write ?")
	if code, out, _ := run("remove", names[0]); code != exitOK || !strings.Contains(out, names[0]+" of acme") {
		t.Errorf("remove: exit %d, %q", code, out)
	}
	list(names[1]+" acme read ?", names[2]+" * read and write ?")

	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"remove", names[0]}, {"add", "no account"}, {"list", "--file", filepath.Join(dir, "none")}} {
		if code, _, stderr := run(args...); code == exitOK || stderr == "" {
			t.Errorf("%v: exit %d, %q", args, code, stderr)
		}
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("a refused command changed the file: %q, %v", after, err)
	}
	keys += "-none"
	if code, _, stderr := run("list"); code != exitUsage || !strings.Contains(stderr, "ENCRYPTION_KEY_FILE") {
		t.Errorf("without the key: exit %d, %q", code, stderr)
	}
}
