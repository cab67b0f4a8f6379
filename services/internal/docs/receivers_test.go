package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gancho/pkg/delivery"
	"gancho/pkg/egress"
	"gancho/pkg/waittest"
)

// receivers are the samples of deploy/docs/receivers and how each is started on a port.
var receivers = map[string]func(t *testing.T, file, port string) []string{
	"receiver.go": func(t *testing.T, file, _ string) []string {
		t.Helper()
		program := filepath.Join(t.TempDir(), "receiver")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return []string{program}
	},
	"receiver.py":  func(_ *testing.T, file, _ string) []string { return []string{"python3", "-B", file} },
	"receiver.mjs": func(_ *testing.T, file, _ string) []string { return []string{"node", file} },
	"receiver.php": func(_ *testing.T, file, port string) []string {
		return []string{"php", "-q", "-S", "127.0.0.1:" + port, file}
	},
	"ed25519.mjs": func(_ *testing.T, file, _ string) []string { return []string{"node", file} },
	"receiver.rb": func(_ *testing.T, file, _ string) []string { return []string{"ruby", file} },
}

// TestReceivers sends each sample what a dispatcher sends. A sample whose language is not installed is only
// read; Go's is always run.
func TestReceivers(t *testing.T) {
	t.Parallel()
	dir, err := filepath.Abs(filepath.Join(root, "deploy/docs/receivers"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		start := receivers[f.Name()]
		if start == nil {
			t.Errorf("%s is not tested", f.Name())
			continue
		}
		t.Run(f.Name(), func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			command := start(t, filepath.Join(dir, f.Name()), port)
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Logf("%s is not installed: the sample was not run", command[0])
				return
			}
			if strings.HasPrefix(f.Name(), "ed25519") {
				tryEd25519(t, command, port)
				return
			}
			tryReceiver(t, command, port)
		})
	}
}

// startSample starts a sample until the test ends and returns what it prints.
func startSample(t *testing.T, command []string, port, key string) *bufio.Scanner {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), key, "PORT="+port)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	waitForPort(t, port)
	return bufio.NewScanner(out)
}

func newSender(t *testing.T) *delivery.Sender {
	t.Helper()
	policy, err := egress.New(egress.Config{AllowHTTPURLs: true, AllowCIDRs: []string{"127.0.0.0/8"}, AllowPorts: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	sender, err := delivery.New(delivery.Config{Timeout: 10 * time.Second}, policy, "Gancho/test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sender.Close() })
	return sender
}

// tryEd25519 sends a sample what a dispatcher sends to a webhook that signs with a key pair.
func tryEd25519(t *testing.T, command []string, port string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, secret := delivery.NewSecret()
	lines := startSample(t, command, port, "PUBLIC_KEY="+delivery.PublicKey(public))
	sender := newSender(t)
	for name, c := range map[string]struct {
		status int
		hmac   [][]byte
		keys   []ed25519.PrivateKey
	}{
		"good":                  {204, nil, []ed25519.PrivateKey{key}},
		"rotating":              {204, nil, []ed25519.PrivateKey{other, key}},
		"after a secret":        {204, [][]byte{secret}, []ed25519.PrivateKey{key}},
		"another key":           {401, nil, []ed25519.PrivateKey{other}},
		"a secret and no key":   {401, [][]byte{secret}, nil},
		"the public key as one": {401, [][]byte{public}, nil},
	} {
		o := sender.Send(t.Context(), delivery.Request{
			Method: http.MethodPost, URL: "http://127.0.0.1:" + port + "/hooks", Body: []byte(`{"document": {"name": "Padaria São João"}}`),
			EventName: "crm_deal_created", NotificationID: "3c0f7d0a-52b9-5d5c-8a3e-6a4f3a1c9b22", Attempt: 1, Secrets: c.hmac, Ed25519: c.keys,
		})
		if o.Status != c.status {
			t.Errorf("%s: got %d %s %s, want %d", name, o.Status, o.Reason, o.Detail, c.status)
		}
	}
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "crm_deal_created {") {
		t.Errorf("printed %q, want the event", lines.Text())
	}
}

func tryReceiver(t *testing.T, command []string, port string) {
	t.Helper()
	shown, secret := delivery.NewSecret()
	_, other := delivery.NewSecret()
	lines := startSample(t, command, port, "SECRET="+shown)
	sender := newSender(t)
	request := delivery.Request{
		Method: http.MethodPost, URL: "http://127.0.0.1:" + port + "/hooks", Body: []byte(`{"document": {"name": "Padaria São João", "n": 9007199254740993}}`),
		EventName: "crm_deal_created", NotificationID: "3c0f7d0a-52b9-5d5c-8a3e-6a4f3a1c9b22", Attempt: 1, Secrets: [][]byte{secret},
	}
	send := func(name string, status int, change func(*delivery.Request)) {
		t.Helper()
		r := request
		change(&r)
		o := sender.Send(t.Context(), r)
		if o.Status/100 != status/100 || o.Delivered != (status/100 == 2) {
			t.Errorf("%s: got %d %s %s, want %d", name, o.Status, o.Reason, o.Detail, status)
		}
	}
	prints := func(name string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != name+" "+string(request.Body) {
			t.Errorf("printed %q, want the event %s", lines.Text(), name)
		}
	}
	send("good", 204, func(*delivery.Request) {})
	prints("crm_deal_created")
	if !strings.HasSuffix(command[len(command)-1], ".php") { // which keeps nothing from one request to the next
		send("the same again", 204, func(*delivery.Request) {})
	}
	send("wrong secret", 401, func(r *delivery.Request) { r.NotificationID, r.Secrets = "1", [][]byte{other} })
	send("rotating", 204, func(r *delivery.Request) {
		r.NotificationID, r.EventName, r.Secrets = "2", "crm_deal_updated", [][]byte{other, secret}
	})
	prints("crm_deal_updated")
	send("no event for GET", 204, func(r *delivery.Request) {
		r.NotificationID, r.EventName, r.Method = "3", "crm_task_created", http.MethodPut
	})
	prints("crm_task_created")

	for name, change := range map[string]func(h http.Header, ts time.Time){
		"old": func(h http.Header, ts time.Time) { signed(h, ts.Add(-6*time.Minute), request.Body, secret) },
		"from the future": func(h http.Header, ts time.Time) {
			signed(h, ts.Add(6*time.Minute), request.Body, secret)
		},
		"other body":   func(h http.Header, ts time.Time) { signed(h, ts, []byte(`{}`), secret) },
		"no signature": func(h http.Header, _ time.Time) { h.Del("webhook-signature") },
		"no headers":   func(h http.Header, _ time.Time) { clear(h) },
		"bad time":     func(h http.Header, _ time.Time) { h.Set("webhook-timestamp", "yesterday") },
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, request.URL, bytes.NewReader(request.Body))
		if err != nil {
			t.Fatal(err)
		}
		signed(req.Header, time.Now(), request.Body, secret)
		change(req.Header, time.Now())
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: got %d, want 401", name, resp.StatusCode)
		}
	}
}

func signed(h http.Header, at time.Time, body, secret []byte) {
	h.Set("webhook-id", "4")
	h.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	h.Set("webhook-signature", delivery.Sign("4", at, body, [][]byte{secret}))
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func waitForPort(t *testing.T, port string) {
	t.Helper()
	waittest.Until(t, "the receiver listens", func() bool {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}
