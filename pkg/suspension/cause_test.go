package suspension

import (
	"strings"
	"testing"

	"gancho/pkg/redistest"
)

// TestCause: an operator learns why Redis cannot be used, and no password.
func TestCause(t *testing.T) {
	t.Parallel()
	shipped := redistest.StartShipped(t)
	for name, test := range map[string]struct{ url, want string }{
		"wrong password": {"redis://monitor:hunter2@" + shipped.Addr + "/0", "login refused"},
		"no login":       {"redis://" + shipped.Addr + "/0", "login refused"},
		"another's user": {shipped.URLOf(redistest.UserManagement), "the user may not do this"},
		"unknown name":   {"redis://:hunter2@redis.invalid:6379/0", "name"},
		"closed port":    {"redis://:hunter2@127.0.0.1:1/0", "connection refused"},
		"TLS to plain":   {"rediss://:hunter2@" + shipped.Addr + "/0", "no answer in time"},
	} {
		client, err := Open(test.url)
		if err != nil {
			t.Fatal(err)
		}
		_, err = newStore(t, client, testRules()).Observe(t.Context(), nil)
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		if cause := Cause(err); !strings.Contains(cause, test.want) || strings.Contains(cause, "hunter2") {
			t.Errorf("%s: cause %q of %v, want %q", name, cause, err, test.want)
		}
		if hosts := Hosts(test.url); strings.Contains(hosts, "@") || !strings.Contains(hosts, ":") {
			t.Errorf("%s: hosts %q", name, hosts)
		}
		_ = client.Close()
	}
}
