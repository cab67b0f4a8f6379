package bustest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gancho/pkg/waittest"
)

// StartOld starts the nats-server that the operating system installed (Debian 12 has 2.9) and returns its URL and
// version. A test that runs where that one is not older than 2.12 is skipped.
func StartOld(t testing.TB) (url, version string) {
	t.Helper()
	program, err := exec.LookPath("nats-server")
	if err != nil { // Debian keeps it where only root looks
		program, err = exec.LookPath("/usr/sbin/nats-server")
	}
	if err != nil {
		if testing.Short() {
			t.Skip("-short: nats-server is not installed")
		}
		t.Fatal("install nats-server (make test does it)")
	}
	said, err := exec.CommandContext(t.Context(), program, "--version").Output() //nolint:gosec // of the machine
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ = strings.Cut(strings.TrimSpace(string(said)), " v")
	if !strings.HasPrefix(version, "2.9.") && !strings.HasPrefix(version, "2.10.") &&
		!strings.HasPrefix(version, "2.11.") {
		t.Skipf("the installed nats-server is not an old one: %s", said)
	}
	dir := t.TempDir()
	cmd := exec.Command(program, "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", dir, "--ports_file_dir", dir, "-l", filepath.Join(dir, "log")) //nolint:noctx,gosec // it ends with the test; the program is the machine's
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var ports struct{ Nats []string }
	waittest.Until(t, "nats-server has written its address", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "*.ports"))
		if len(files) == 0 {
			return false
		}
		text, err := os.ReadFile(files[0])
		return err == nil && json.Unmarshal(text, &ports) == nil && len(ports.Nats) > 0
	})
	return ports.Nats[0], version
}
