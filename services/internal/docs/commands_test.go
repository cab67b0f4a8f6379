package main

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"gancho/pkg/waittest"
)

// TestCommandsOfTheAPIPage runs every command of deploy/docs/api.md, in order, against gancho serve.
func TestCommandsOfTheAPIPage(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it builds and runs the whole program")
	}
	for _, tool := range []string{"bash", "curl", "jq", "timeout"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("install %s (make test does it)", tool)
		}
	}
	page, err := os.ReadFile(filepath.Join(root, "deploy/docs/api.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(page, -1) {
		script.Write(block[1])
	}
	url, token := startServe(t)
	cmd := exec.CommandContext(t.Context(), "bash", "-u", "-c", script.String())
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "GANCHO_URL="+url, "GANCHO_TOKEN="+token)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	t.Logf("stdout:\n%s\nstderr:\n%s", &stdout, &stderr)
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(stderr.String()) {
		// A notification that is still on its way cannot be sent again, which the page says.
		if !strings.Contains(line, "returned error: 409") {
			t.Errorf("a command failed: %s", line)
		}
	}
	// What the commands print one after another, as far as it is the same each time.
	rest := stdout.String()
	for _, want := range []string{
		`"signing_secret": "whsec_`, `"event_name": "crm_deal_*"`, "tag: ", "Deals\n", "disabled\n", "active\n", `"sequence": `,
		`"attempts_made": `, `"explain": {`, ": attempts follow", `"suspension": null`, "suspended\n", "active\n", `"state": "preview"`,
		"running\n", `"total": `, "whsec_", "204\n",
	} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Errorf("%q is missing in what follows:\n%s", want, rest)
			break
		}
		rest = after
	}
}

// startServe runs gancho serve on free ports until the test ends.
func startServe(t *testing.T) (url, token string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "gancho")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "gancho/services/gancho/cmd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	token, url = "a-token-for-this-test", "http://127.0.0.1:"+freePort(t)
	cmd := exec.Command(program, "serve")
	cmd.Env = []string{
		"DATA_DIR=" + filepath.Join(dir, "data"), "HTTP_ADDR=" + strings.TrimPrefix(url, "http://"), "OPS_ADDR=127.0.0.1:0", "NATS_LISTEN=127.0.0.1:0",
		"NATS_SYNC_INTERVAL=1s", "API_TOKENS=acme:" + token, "RETRY_DELAYS=100ms,100ms,100ms,100ms,100ms",
		"EGRESS_DNS_SERVER=127.0.0.1:" + freePort(t), // no one answers: the page's receiver does not exist
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("gancho serve: %v\n%s", err, &log)
		}
	})
	waittest.Until(t, "gancho serve answers", func() bool {
		resp, err := http.Get(url + "/crm/v2/openapi.json")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return url, token
}
