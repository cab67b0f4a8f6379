package suspension

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"gancho/pkg/redistest"
	"gancho/pkg/tlstest"
)

// TestRedisOverTLS: rediss:// reaches a server whose authority is named, and no other.
func TestRedisOverTLS(t *testing.T) {
	t.Parallel()
	files, other := tlstest.New(t), tlstest.New(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // the server takes it
	_, port, _ := net.SplitHostPort(addr)
	redistest.Start(t, "--tls-port", port, "--tls-cert-file", files.Cert, "--tls-key-file", files.Key,
		"--tls-ca-cert-file", files.CA, "--tls-auth-clients", "no", "--requirepass", "hunter2")
	for name, tc := range map[string]struct{ url, wrong string }{
		"its authority":     {"rediss://:hunter2@" + addr + "?ca_file=" + files.CA, ""},
		"by name":           {"rediss://:hunter2@localhost:" + port + "?ca_file=" + files.CA, ""},
		"another authority": {"rediss://:hunter2@" + addr + "?ca_file=" + other.CA, "certificate"},
		"none named":        {"rediss://:hunter2@" + addr, "certificate"},
		"in clear":          {"redis://:hunter2@" + addr, "EOF|reset|timeout|broken pipe"},
		"wrong password":    {"rediss://:wrong@" + addr + "?ca_file=" + files.CA, "WRONGPASS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Open(tc.url)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for deadline := time.Now().Add(20 * time.Second); ; {
				err = c.Ping(t.Context()).Err()
				if err == nil || tc.wrong != "" && !errors.Is(err, context.DeadlineExceeded) || time.Now().After(deadline) {
					break // a busy machine may need more than the client's half second
				}
			}
			if tc.wrong == "" && err != nil {
				t.Errorf("got %v", err)
			}
			if tc.wrong != "" {
				ok := false
				for w := range strings.SplitSeq(tc.wrong, "|") {
					ok = ok || err != nil && strings.Contains(err.Error(), w)
				}
				if !ok {
					t.Errorf("got %v, want %s", err, tc.wrong)
				}
			}
		})
	}
}
