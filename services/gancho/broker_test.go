package gancho

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/redistest"
	"gancho/pkg/topology"
)

// command is one of the commands that talk to the broker, with its output.
type command struct {
	code     int
	out, err string
}

func runCommand(s *bustest.Server, f func(environ []string, stdout, stderr *strings.Builder) int, env ...string) command {
	var stdout, stderr strings.Builder
	code := f(append(env, "NATS_URL="+s.URL()), &stdout, &stderr)
	return command{code, stdout.String(), stderr.String()}
}

func doctor(s *bustest.Server) command {
	return runCommand(s, func(e []string, o, x *strings.Builder) int { return Doctor(e, false, o, x) })
}

func runTopology(s *bustest.Server, apply bool, env ...string) command {
	return runCommand(s, func(e []string, o, x *strings.Builder) int { return Topology(e, apply, o, x) }, env...)
}

func backup(s *bustest.Server, dir string) command {
	return runCommand(s, func(e []string, o, x *strings.Builder) int { return Backup(e, dir, o, x) })
}

func restore(s *bustest.Server, dir string, env ...string) command {
	return runCommand(s, func(e []string, o, x *strings.Builder) int { return Restore(e, dir, false, o, x) }, env...)
}

func (c command) want(t *testing.T, code int, patterns ...string) {
	t.Helper()
	if c.code != code {
		t.Errorf("exit %d, want %d\n%s%s", c.code, code, c.out, c.err)
	}
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(c.out + c.err) {
			t.Errorf("%q is missing in\n%s%s", p, c.out, c.err)
		}
	}
}

// notify stores n notifications and settles them: the first is lost, the others are recorded as delivered.
func notify(t *testing.T, b *bus.Bus, n int, lose bool) {
	t.Helper()
	first, err := lane.First(t.Context(), b, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	for i := range n {
		hook := uuid.New()
		id := event.ID("acme", "crm_deal_created", hook.String())
		m := &notification.Notification{
			Account: "acme", ID: event.NotificationID(id, hook), WebhookID: hook.String(), EventID: id, EventName: "crm_deal_created",
			EventTime: time.Now().Add(-time.Hour), Send: 1, Body: []byte("{}"),
		}
		if err := lane.Notify(b, m).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		for got := 0; got == 0; {
			got, err = first.Pull(t.Context(), 1, bus.Unbounded, func(d *lane.Delivery) {
				if i > 0 || !lose {
					_, err := journal.Write(t.Context(), b, &notification.Record{
						Kind: notification.KindAttempt, At: time.Now(), Account: "acme", NotificationID: m.ID, WebhookID: m.WebhookID, Send: 1, State: notification.Delivered,
					})
					if err != nil {
						t.Error(err)
					}
				}
				last = d.Sequence
				d.Ack()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for acked := uint64(0); acked < last; {
		if acked, err = lane.Settled(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDoctor(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	doctor(s).want(t, 1, `missing on the broker: .*NOTIFICATIONS`, `gancho topology --apply`)
	b := s.Topology(bustest.Limits())
	notify(t, b, 3, false)
	doctor(s).want(t, 0, `matched +3`, `delivered +3`, `unaccounted +0`, `The books balance`, `the books have not been kept yet`, `Redis was not asked`)
}

// TestDoctorAsksRedis: every cause for which Redis cannot be used is named with its host, and without its password.
func TestDoctorAsksRedis(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := taken.Addr().String()
	_ = taken.Close()
	server := redistest.Start(t, "--requirepass", "CANARY")
	admin := server.Client()
	do := func(args ...any) {
		t.Helper()
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	do("ACL", "SETUSER", "reader", "on", ">CANARY", "+@all", "-@write", "~*")
	do("ACL", "SETUSER", "monitor", "on", ">CANARY", "+@all", "-@dangerous", "~gancho:window:*")
	do("ACL", "SETUSER", "management", "on", ">CANARY", "+@all", "-@dangerous", "~gancho:log:*")
	with := func(login string) string { return "redis://" + login + "@" + server.Addr + "/0" }
	ask := func(url, want string, serious bool) {
		t.Helper()
		d := &diagnosis{}
		d.findRedis(t.Context(), url)
		if want == "" {
			if len(d.Findings) > 0 {
				t.Errorf("found %+v", d.Findings)
			}
			return
		}
		if len(d.Findings) != 1 || !strings.Contains(d.Findings[0].What, want) || d.Findings[0].Serious != serious || strings.Contains(fmt.Sprint(d.Findings), "CANARY") {
			t.Errorf("%s: found %+v, want %q", strings.ReplaceAll(url, "CANARY", "***"), d.Findings, want)
		}
	}
	ask("", "Redis was not asked", false)
	ask("redis://:p@ss/CANARY@127.0.0.1/0", "REDIS_URL: ", true)
	ask("redis://:CANARY@"+closed+"/0", "Redis ("+closed+") cannot be used: connection refused", true)
	ask("redis://no-such-host.invalid:6379/0", "Redis (no-such-host.invalid:6379) cannot be used: ", true)
	ask(with(":wrong"), "cannot be used: login refused", true)
	ask(with("reader:CANARY"), "the user may not do this", true)
	ask(with("monitor:CANARY"), "", false)
	ask(with("management:CANARY"), "", false)
	do("CONFIG", "SET", "maxmemory", "1")
	ask(with(":CANARY"), "memory is full", true)
	do("CONFIG", "SET", "maxmemory", "0")
	do("CONFIG", "SET", "appendonly", "no")
	ask(with(":CANARY"), "keeps nothing over a restart", false)
	do("REPLICAOF", "127.0.0.1", "1")
	ask(with(":CANARY"), "it is a replica", true)
}

func TestDoctorFindsALostNotification(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	notify(t, b, 3, true)
	var got command
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); { // it does not judge what changed a moment ago
		if got = doctor(s); got.code != 0 {
			break
		}
	}
	got.want(t, 1, `matched +3`, `delivered +2`, `pending +0`, `unaccounted +1`, `account acme: 1 unaccounted`, `stuck: notification [0-9a-f-]{36}`, `PROBLEM`)
}

func TestTopologyCommand(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	runTopology(s, false).want(t, 1, `stream +NOTIFICATIONS +publisher .*missing`)
	runTopology(s, true).want(t, 0, `created stream RETRIES`)
	runTopology(s, false).want(t, 0, `stream +NOTIFICATIONS +publisher +0 +0 B +ok`, `consumer +RETRIES > dispatcher-retries .*its service makes it`)
	runTopology(s, false, "EVENTS_MAX_AGE=336h").want(t, 1, `max_age 168h0m0s -> 336h0m0s \(--apply\)`)
	runTopology(s, true, "EVENTS_MAX_AGE=336h").want(t, 0, `stream CRM_EVENTS: max_age 168h0m0s -> 336h0m0s`)
	runTopology(s, true, "EVENTS_MAX_AGE=24h").want(t, 1, `nothing to create or loosen`, `Not applied`, `max_age is 336h0m0s, expected 24h0m0s`)
	runTopology(s, true, "EVENTS_MAX_AGE=soon").want(t, 2, `EVENTS_MAX_AGE`)
}

// TestTopologyOfACluster: a person's environment does not name the replicas that the services asked for.
func TestTopologyOfACluster(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.StartCluster(t, 30<<30)[0]
	l := bustest.Limits()
	l.Replicas = 3
	s.Topology(l)
	runTopology(s, false).want(t, 0, `NOTIFICATIONS +publisher .*ok`)
	runTopology(s, false, "STREAM_REPLICAS=1").want(t, 1, `replicas 3 -> 1 \(not applied\)`)
}

func TestBackupAndRestore(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	from, to := bustest.Start(t), bustest.Start(t)
	dir := filepath.Join(t.TempDir(), "backup")
	backup(from, dir).want(t, 1, `no stream of Gancho`)
	_ = os.RemoveAll(dir)
	b := from.Topology(bustest.Limits())
	notify(t, b, 5, false)
	backup(from, dir).want(t, 0, `NOTIFICATIONS +5 messages`, `ATTEMPTS +5 messages`, `encryption key`)
	backup(from, dir).want(t, 1, `is not empty`)
	restore(from, dir).want(t, 1, `holds messages already \(.*ATTEMPTS`)

	// A damaged file is refused before anything is restored.
	path := filepath.Join(dir, "ATTEMPTS.snapshot")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte{}, whole...)
	damaged[len(damaged)/2] ^= 1
	for _, content := range [][]byte{damaged, whole[:len(whole)-1]} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		restore(to, dir).want(t, 1, `ATTEMPTS.snapshot differs from the backup's`)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	const more = "EVENTS_MAX_AGE=400h"
	restore(to, dir, more).want(t, 0, `ATTEMPTS +5 messages`, `Restored as of`)
	runTopology(to, false, more).want(t, 1, `CRM_EVENTS .*max_age \S+ -> 400h0m0s \(--apply\)`) // limits are as they were backed up
	doctor(to).want(t, 0, `matched +5`, `delivered +5`, `The books balance`)
	restore(to, dir).want(t, 1, `holds messages already`)
	restore(to, t.TempDir()).want(t, 1, `no complete backup`)
}

// TestBackupNamesItsKeys: without the keys of its time a restored installation sends nothing, so that is said before.
func TestBackupNamesItsKeys(t *testing.T) {
	t.Parallel()
	from, to := bustest.Start(t), bustest.Start(t)
	right, other := writeKeys(t, "old:"+strings.Repeat("A", 43)+"=\n"), writeKeys(t, "new:"+strings.Repeat("E", 43)+"=\n")
	b := from.Topology(bustest.Limits())
	bucket, err := b.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	put(t, bucket, loadKeys(t, right), sealedWebhook(loadKeys(t, right), 0))
	inspect := func(s *bustest.Server, keys string) command {
		return runCommand(s, func(e []string, o, x *strings.Builder) int { return Doctor(e, false, o, x) }, "ENCRYPTION_KEY_FILE="+keys)
	}
	inspect(from, "").want(t, 0, `note: the webhooks are sealed under the encryption keys old \(1 webhooks\)`)
	inspect(from, right).want(t, 0, `The books balance`)
	inspect(from, other).want(t, 1, `PROBLEM: webhooks are sealed under encryption keys that are not in ENCRYPTION_KEY_FILE: old \(1 webhooks\)`)

	dir := filepath.Join(t.TempDir(), "backup")
	backup(from, dir).want(t, 0, `A restore also needs.*: old \(1 webhooks\); and the API tokens`)
	restore(to, dir).want(t, 1, `the backup needs the encryption keys old \(1 webhooks\): ENCRYPTION_KEY_FILE: not set`, `--without-keys`)
	restore(to, dir, "ENCRYPTION_KEY_FILE="+other).want(t, 1, `needs encryption keys that \S+ does not have: old \(1 webhooks\)`)
	doctor(to).want(t, 1, `missing on the broker`) // nothing was restored
	restore(to, dir, "ENCRYPTION_KEY_FILE="+right).want(t, 0, `Restored as of`)
	third := bustest.Start(t)
	runCommand(third, func(e []string, o, x *strings.Builder) int { return Restore(e, dir, true, o, x) }).want(t, 0, `Restored as of`)
}

// TestDoctorOfAnOldBroker: a broker that drops schedules without a word is refused by every command.
func TestDoctorOfAnOldBroker(t *testing.T) {
	t.Parallel()
	url, version := bustest.StartOld(t)
	var out, problem strings.Builder
	code := Doctor([]string{"NATS_URL=" + url}, false, &out, &problem)
	command{code, out.String(), problem.String()}.want(t, 1, `NATS_URL: nats-server `+version+` is too old: 2\.12\.0 or newer is needed, .*allow_msg_schedules`)
}

func TestNoBroker(t *testing.T) {
	t.Parallel()
	var out, problem strings.Builder
	if code := Doctor([]string{"NATS_URL=http://127.0.0.1:4222"}, false, &out, &problem); code != 2 || !strings.Contains(problem.String(), "NATS_URL") {
		t.Errorf("exit %d, %s", code, problem.String())
	}
}
