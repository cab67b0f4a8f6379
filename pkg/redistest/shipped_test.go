package redistest_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"gancho/pkg/redistest"
	"gancho/pkg/suspension"
	"gancho/pkg/waittest"
)

// fill writes as the services do: windows and suspensions by scripts, lists by transactions and scripts.
func fill(t *testing.T, s *redistest.Server) {
	t.Helper()
	ctx := t.Context()
	rules := suspension.DefaultRules()
	rules.MinFailures, rules.MinSpan = 3, 0
	store, err := suspension.NewStore(s.As(redistest.UserMonitor), rules)
	must(t, err)
	_, err = store.Restore(ctx, nil)
	must(t, err)
	key := func(i int) suspension.Key {
		return suspension.Key{Account: "acme", URLKey: fmt.Sprintf("%032x", i)}
	}
	for i := range 8 {
		_, err = store.Observe(ctx, []suspension.Observation{{
			Key: key(i), URLHost: "example.com", Seq: uint64(i) + 1, Result: suspension.Result{At: time.Now(), Reason: "timeout"},
		}})
		must(t, err)
	}
	for i := range 6 {
		_, err = store.SuspendByHand(ctx, suspension.Command{Key: key(100 + i), URLHost: "example.com", Seq: uint64(i) + 1, At: time.Now()})
		must(t, err)
	}
	for i := range 3 { // resumed, and so without a suspension and with a window
		_, err = store.Resume(ctx, suspension.Command{Key: key(100 + i), Seq: uint64(i) + 100, At: time.Now()})
		must(t, err)
	}
	lists := s.As(redistest.UserManagement)
	script := redis.NewScript(`redis.call('HSET', KEYS[1], 'a', '1') redis.call('ZADD', KEYS[2], 1, 'a') redis.call('ZADD', KEYS[2], 2, 'b')
		redis.call('ZREMRANGEBYRANK', KEYS[2], 0, 0) return 0`)
	for i := range 8 {
		name := fmt.Sprintf("gancho:log:%d", i)
		must(t, script.Run(ctx, lists, []string{name + ":rows", name}).Err())
		_, err := lists.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, name+":floor", i, 0)
			p.ZAdd(ctx, "gancho:log:webhooks", redis.Z{Score: float64(i), Member: name})
			return nil
		})
		must(t, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// contents returns every key with its value, in a form that can be compared.
func contents(t *testing.T, c *redis.Client) map[string]string {
	t.Helper()
	ctx := t.Context()
	all := map[string]string{}
	names, err := c.Keys(ctx, "*").Result()
	must(t, err)
	for _, name := range names {
		switch kind := c.Type(ctx, name).Val(); kind {
		case "string":
			all[name] = c.Get(ctx, name).Val()
		case "zset":
			all[name] = fmt.Sprint(c.ZRangeWithScores(ctx, name, 0, -1).Val())
		case "hash":
			all[name] = fmt.Sprint(c.HGetAll(ctx, name).Val())
		default:
			t.Fatalf("key %s is of type %q", name, kind)
		}
	}
	return all
}

// TestShippedServerKeepsEverything: Redis with the shipped users loads all that was written before it stopped.
func TestShippedServerKeepsEverything(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	fill(t, s)
	want := contents(t, s.Client())
	if len(want) < 35 {
		t.Fatalf("only %d keys were written", len(want))
	}
	for name, end := range map[string]func(){"stop": s.Stop, "kill -9": s.Kill} {
		end()
		s.Restart()
		if diff := cmp.Diff(want, contents(t, s.Client())); diff != "" {
			t.Errorf("after %s (-before +after):\n%s", name, diff)
		}
	}
	must(t, s.Client().BgRewriteAOF(t.Context()).Err())
	waittest.Until(t, "the file is rewritten", func() bool {
		return strings.Contains(s.Client().Info(t.Context(), "persistence").Val(), "aof_rewrite_in_progress:0")
	})
	s.Kill()
	s.Restart()
	if diff := cmp.Diff(want, contents(t, s.Client())); diff != "" {
		t.Errorf("after a rewrite and kill -9 (-before +after):\n%s", diff)
	}
}

// TestNoLoginAsDefault: the user default keeps its rights for the append-only file and is of no use to a client.
func TestNoLoginAsDefault(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	for _, o := range []redis.Options{{}, {Password: "any"}, {Username: "default"}, {Username: "default", Password: "any"}} {
		o.Addr, o.MaxRetries = s.Addr, -1
		c := redis.NewClient(&o)
		for _, command := range [][]any{{"PING"}, {"GET", "gancho:epoch"}, {"FLUSHALL"}, {"ACL", "WHOAMI"}} {
			if err := c.Do(t.Context(), command...).Err(); err == nil {
				t.Errorf("%v without a login is answered", command)
			}
		}
		must(t, c.Close())
	}
}

// TestPromotedReplicaKeepsEverything: a replica that is made primary holds the same, also after it was restarted.
func TestPromotedReplicaKeepsEverything(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	primary, replica := redistest.StartReplicated(t)
	fill(t, primary)
	want := contents(t, primary.Client())
	waittest.Until(t, "the replica has everything", func() bool { return maps.Equal(want, contents(t, replica.Client())) })
	primary.Kill()
	must(t, replica.Client().Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())
	if diff := cmp.Diff(want, contents(t, replica.Client())); diff != "" {
		t.Errorf("after the promotion (-before +after):\n%s", diff)
	}
	must(t, replica.Client().Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())
	primary.Restart()
	if diff := cmp.Diff(want, contents(t, primary.Client())); diff != "" {
		t.Errorf("the old primary after its restart (-before +after):\n%s", diff)
	}
}

// TestTornAppendOnlyFile: whatever a power cut leaves of the append-only file, Redis starts.
func TestTornAppendOnlyFile(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	const manifest, log, base = "appendonly.aof.manifest", "appendonly.aof.1.incr.aof", "appendonly.aof.1.base.rdb"
	change := func(name string, f func([]byte) []byte) func(dir string) {
		return func(dir string) {
			file := filepath.Join(dir, "appendonlydir", name)
			body, err := os.ReadFile(file)
			must(t, err)
			must(t, os.WriteFile(file, f(body), 0o600))
		}
	}
	zeros := func(n int) []byte { return make([]byte, n) }
	s := redistest.StartShipped(t)
	must(t, s.Client().Set(t.Context(), "first", "1", 0).Err())
	fill(t, s)
	s.Stop()
	whole := t.TempDir()
	must(t, os.CopyFS(whole, os.DirFS(s.Dir)))
	for _, c := range []struct {
		name string
		tear func(dir string)
		kept bool // keys written before the damage are still there
	}{
		{"cut in a command", change(log, func(b []byte) []byte { return b[:len(b)-5] }), true},
		{"cut in a transaction", change(log, func(b []byte) []byte { return b[:bytes.LastIndex(b, []byte("*1\r\n$4\r\nEXEC"))] }), true},
		{"zeros at the end", change(log, func(b []byte) []byte { return append(b, zeros(4096)...) }), true},
		{"a command of zeros at the end", change(log, func(b []byte) []byte { return append(b[:len(b)-40], zeros(40)...) }), true},
		{"garbage at the end", change(log, func(b []byte) []byte { return append(b, "\x8a\xff*3\r\n$"...) }), true},
		{"zeros in the middle", change(log, func(b []byte) []byte { copy(b[len(b)/2:], zeros(512)); return b }), true},
		{"all zeros", change(log, func(b []byte) []byte { return zeros(len(b)) }), false},
		{"no manifest", func(dir string) { must(t, os.Remove(filepath.Join(dir, "appendonlydir", manifest))) }, false},
		{"an empty manifest", change(manifest, func([]byte) []byte { return nil }), false},
		{"a manifest of zeros", change(manifest, func(b []byte) []byte { return zeros(len(b)) }), false},
		{"a cut manifest", change(manifest, func(b []byte) []byte { return b[:len(b)-20] }), false},
		{"a cut base", change(base, func(b []byte) []byte { return b[:len(b)-9] }), false},
		{"no log", func(dir string) { must(t, os.Remove(filepath.Join(dir, "appendonlydir", log))) }, false},
	} {
		s.Kill()
		must(t, os.RemoveAll(s.Dir))
		must(t, os.CopyFS(s.Dir, os.DirFS(whole)))
		c.tear(s.Dir)
		s.Restart()
		if got := s.Client().Get(t.Context(), "first").Val(); c.kept && got != "1" {
			t.Errorf("%s: the first key is %q, want 1: more was dropped than what is damaged", c.name, got)
		}
		must(t, s.Client().Set(t.Context(), "second", "2", 0).Err())
	}
	s.Kill()
	s.Restart()
	if got := s.Client().Get(t.Context(), "second").Val(); got != "2" {
		t.Errorf("a key that was written after a repair is %q after a restart, want 2", got)
	}
}
