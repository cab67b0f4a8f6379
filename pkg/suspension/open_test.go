package suspension

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"gancho/pkg/redistest"
)

func TestOpenSingle(t *testing.T) {
	t.Parallel()
	type opened struct {
		Network, Addr, User, Password string
		DB                            int
		TLS                           bool
	}
	tests := map[string]struct {
		url  string
		want opened
	}{
		"host":      {"redis://cache.example", opened{"tcp", "cache.example:6379", "", "", 0, false}},
		"all":       {"redis://gancho:s%40crit@cache.example:6380/3", opened{"tcp", "cache.example:6380", "gancho", "s@crit", 3, false}},
		"password":  {"redis://:pw@127.0.0.1:6379", opened{"tcp", "127.0.0.1:6379", "", "pw", 0, false}},
		"IPv6":      {"redis://[::1]:6379/0", opened{"tcp", "[::1]:6379", "", "", 0, false}},
		"TLS":       {"rediss://cache.example/1", opened{"tcp", "cache.example:6379", "", "", 1, true}},
		"socket":    {"unix:///run/redis.sock?db=2", opened{"unix", "/run/redis.sock", "", "", 2, false}},
		"pool size": {"redis://cache.example?pool_size=3", opened{"tcp", "cache.example:6379", "", "", 0, false}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := Open(test.url)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			o := client.(*redis.Client).Options() //nolint:errcheck // Open returns nothing else here
			got := opened{o.Network, o.Addr, o.Username, o.Password, o.DB, o.TLSConfig != nil}
			if diff := gocmp.Diff(test.want, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
			if o.ReadTimeout != opTimeout || o.MaxRetries > 0 || !o.ContextTimeoutEnabled {
				t.Errorf("timeouts: read %v, %d retries, context %v", o.ReadTimeout, o.MaxRetries, o.ContextTimeoutEnabled)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ url, want string }{
		"nothing":              {"", "begin with a scheme"},
		"no scheme":            {"cache.example:6379", "begin with a scheme"},
		"other scheme":         {"http://:hunter2@cache.example", "scheme"},
		"bad port":             {"redis://:hunter2@cache.example:x/0", "port"},
		"bad database":         {"redis://:hunter2@cache.example/zero", "path"},
		"raw password":         {"redis://:hunter2%zz@cache.example", "percent-encoded"},
		"raw space":            {"redis://:hunter2 x@cache.example", "percent-encoded"},
		"unknown parameter":    {"redis://:hunter2@cache.example?colour=red", "name=value"},
		"raw @":                {"redis://:p@ss/hunter2@cache.example/0", "percent-encoded"},
		"raw slash":            {"redis://:p/hunter2@cache.example/0", "percent-encoded"},
		"raw hash":             {"redis://:p#hunter2@cache.example/0", "percent-encoded"},
		"raw question mark":    {"redis://:p?hunter2@cache.example/0", "percent-encoded"},
		"a parameter's value":  {"redis://cache.example?pool_size=hunter2", "value"},
		"a file's name":        {"rediss://cache.example?ca_file=/hunter2", "ca_file"},
		"bad parameter":        {"redis://:hunter2@cache.example?a=%zz", "name=value"},
		"hosts without master": {"redis://:hunter2@s1,s2/0", "master_name"},
		"login without master": {"redis://s1/0?sentinel_password=hunter2", "master_name"},
		"unverified":           {"rediss://:hunter2@cache.example?skip_verify=true", "ca_file"},
		"CA without TLS":       {"redis://:hunter2@cache.example?ca_file=/x", "rediss://"},
		"CA that is missing":   {"rediss://:hunter2@cache.example?ca_file=/missing", "ca_file names no file"},
		"empty sentinel":       {"redis://:hunter2@s1,,s2/0?master_name=m", "names no host"},
		"sentinel by socket":   {"unix:///run/s.sock?master_name=m", "socket"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(test.url)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "REDIS_URL: ") {
				t.Errorf("got %q, want it to say %q", err, test.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the password is in the error: %q", err)
			}
		})
	}
}

func TestOpenFindsTheMasterThroughSentinels(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--requirepass", "hunter2")
	sentinel := redistest.StartSentinel(t, server, "main", "hunter2")
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close() // a Sentinel that is down
	client, err := Open("redis://:hunter2@" + gone.Addr().String() + "," + sentinel.Addr + "/0?master_name=main")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	store := newStore(t, client, testRules())
	if lost, err := store.Lost(ctx); err != nil || !lost {
		t.Fatalf("Lost of an empty server: %v, %v", lost, err)
	}
	if _, err := store.Restore(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if ds, err := store.Observe(ctx, nil); err != nil || len(ds) != 0 {
		t.Errorf("Observe: %v, %v", ds, err)
	}
}
