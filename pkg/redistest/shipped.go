package redistest

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/redis/go-redis/v9"
)

// The users of deploy/redis/users.acl.
const (
	UserMonitor    = "monitor"
	UserManagement = "management"
	UserHealth     = "health" // of the container's health check
)

// passwords of the shipped users. They differ, so that no user can log in with another's.
var passwords = map[string]string{UserMonitor: "of the monitor", UserManagement: "of management", UserHealth: "any"}

// StartShipped runs a server as docker-compose.yml does: with the configuration, the users and the start script of
// deploy/redis. The folder Dir holds its data. As returns a client of one of the users; Client and URL are those of a
// further user with every right, for the test itself.
func StartShipped(t testing.TB) *Server {
	t.Helper()
	s := shipped(t, filepath.Join("redis", "start.sh"), nil)
	s.startAnywhere()
	return s
}

// StartReplicated runs a primary and its replica as deploy/cluster does, without Sentinels. See StartShipped.
func StartReplicated(t testing.TB) (primary, replica *Server) {
	t.Helper()
	script := filepath.Join("cluster", "redis", "redis.sh")
	environ := func(first func() string) func(self string) []string {
		return func(self string) []string {
			if first != nil {
				return []string{"REDIS_SELF=" + self, "REDIS_FIRST_PRIMARY=" + first()}
			}
			return []string{"REDIS_SELF=" + self, "REDIS_FIRST_PRIMARY=" + self}
		}
	}
	primary = shipped(t, script, environ(nil))
	primary.startAnywhere()
	replica = shipped(t, script, environ(func() string { return primary.Addr }))
	replica.startAnywhere()
	return primary, replica
}

// shipped prepares a server that a script below deploy starts.
func shipped(t testing.TB, script string, environ func(self string) []string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if testing.Short() {
			t.Skip("-short: redis-server is not installed")
		}
		t.Fatal("install redis-server (make test does it)")
	}
	conf, data := t.TempDir(), t.TempDir()
	for _, name := range []string{"redis", filepath.Join("cluster", "redis")} {
		if err := os.CopyFS(filepath.Join(conf, name), os.DirFS(filepath.Join(deploy(t), name))); err != nil {
			t.Fatalf("copy deploy/%s: %v", name, err)
		}
	}
	acl := filepath.Join(conf, "redis", "users.acl")
	users, err := os.ReadFile(acl)
	if err != nil {
		t.Fatal(err)
	}
	users = fmt.Appendf(bytes.TrimSpace(users), "\nuser %s on nopass ~* &* +@all\n", testUser)
	if err := os.WriteFile(acl, users, 0o600); err != nil { //nolint:gosec // a file of the test's own folder
		t.Fatal(err)
	}
	return &Server{
		t: t, Dir: data, user: testUser, password: "any",
		program: []string{"/bin/sh", filepath.Join(conf, script)},
		command: func(host, port string) []string { return []string{"--bind", host, "--port", port} },
		environ: func(self string) []string {
			env := append(os.Environ(), "TMPDIR="+conf, "SENTINELS=127.0.0.1:1", "REDIS_PASSWORD_LOOKUP=lookup",
				"REDIS_PASSWORD_SENTINEL=sentinel",
				"REDIS_PASSWORD_REPLICATION=replication", "REDIS_PASSWORD_MONITOR="+passwords[UserMonitor],
				"REDIS_PASSWORD_MANAGEMENT="+passwords[UserManagement])
			if environ != nil {
				env = append(env, environ(self)...)
			}
			return env
		},
	}
}

const testUser = "test"

// As returns a client of a user of deploy/redis/users.acl, closed with the test. The server must be a shipped one.
func (s *Server) As(user string) *redis.Client {
	return s.client(&redis.Options{Addr: s.Addr, Username: user, Password: passwords[user]})
}

// URLOf returns the REDIS_URL of a user of deploy/redis/users.acl.
func (s *Server) URLOf(user string) string {
	return fmt.Sprintf("redis://%s:%s@%s/0", user, url.PathEscape(passwords[user]), s.Addr)
}

// deploy returns the folder of that name, at the root of the repository.
func deploy(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return filepath.Join(dir, "deploy")
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("the test does not run inside the repository: no go.work above it")
		}
		dir = filepath.Dir(dir)
	}
}
