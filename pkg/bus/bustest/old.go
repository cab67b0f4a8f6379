package bustest

import (
	"os/exec"
	"strings"
	"testing"
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
	s := &Server{t: t, program: program, dir: t.TempDir(), store: t.TempDir(), port: "-1"}
	s.Run()
	return s.URL(), version
}
