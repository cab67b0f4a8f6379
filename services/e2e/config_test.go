package e2e

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/services/dispatcher"
	"gancho/services/gancho"
	"gancho/services/management"
	"gancho/services/publisher"
	monitor "gancho/services/suspension-monitor"
)

// loaders read the configuration of each program from an environment.
var loaders = map[string]func(environ []string) []string{
	"publisher":          func(e []string) []string { return service.Load(&publisher.Config{}, e) },
	"dispatcher":         func(e []string) []string { return service.Load(&dispatcher.Config{}, e) },
	"suspension-monitor": func(e []string) []string { return service.Load(&monitor.Config{}, e) },
	"management":         func(e []string) []string { return service.Load(&management.Config{}, e) },
	"gancho":             func(e []string) []string { return service.Load(&gancho.Config{}, e) },
}

var allServices = []string{"publisher", "dispatcher", "suspension-monitor", "management"}

// files are what variables can name.
type files struct{ keys, empty, noBase64, shortKey, tokens, crlfKeys, notPEM, missing string }

func writeFiles(t *testing.T) files {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	f := files{
		keys: filepath.Join(dir, "keys"), missing: filepath.Join(dir, "missing"),
		empty: write("empty", ""), noBase64: write("nobase64", "k1:CANARY-not base64\nk2:CANARY-neither\n"),
		shortKey: write("short", "k1:"+base64.StdEncoding.EncodeToString([]byte("CANARY"))+"\n"),
		tokens:   write("tokens", "# of the CRM\nacme:CANARY-token-1\n\nother:CANARY-token-2:read\n"),
		crlfKeys: write("crlf", "k1:"+base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("k"), 32))+"  \r\n\r\n"),
		notPEM:   write("notpem", "CANARY: not a certificate"),
	}
	if err := seal.New().Write(f.keys); err != nil {
		t.Fatal(err)
	}
	return f
}

// good is an environment with which every service starts.
func (f files) good() []string {
	return []string{"ENCRYPTION_KEY_FILE=" + f.keys, "API_TOKENS=acme:CANARY-token"}
}

// TestConfigurationIsRefused has rows 73 to 81 of the bad inputs, for the variables of this project.
func TestConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	f := writeFiles(t)
	type row struct {
		set   []string // over the good environment
		line  string   // a pattern of one problem; "" for none at all
		count int      // how many problems, 1 if 0
		of    []string // the services that read it; all but gancho if nil
	}
	d, m, s := []string{"dispatcher"}, []string{"management"}, []string{"suspension-monitor"}
	both := []string{"dispatcher", "management"}
	for name, tc := range map[string]row{
		"nothing wrong": {},

		"73 timeout 0":           {set: []string{"ATTEMPT_TIMEOUT=0"}, line: `^ATTEMPT_TIMEOUT: .* from 100ms to 60s`, of: d},
		"73 timeout negative":    {set: []string{"ATTEMPT_TIMEOUT=-1s"}, line: `^ATTEMPT_TIMEOUT: -1s is out of range; .* from 100ms to 60s`, of: d},
		"73 timeout no unit":     {set: []string{"ATTEMPT_TIMEOUT=5"}, line: `^ATTEMPT_TIMEOUT: "5" is not a duration; .* unit from 100ms to 60s`, of: d},
		"73 timeout 1h":          {set: []string{"ATTEMPT_TIMEOUT=1h"}, line: `^ATTEMPT_TIMEOUT: 1h is out of range`, of: d},
		"73 timeout empty":       {set: []string{"ATTEMPT_TIMEOUT="}, of: d},
		"73 stop before timeout": {set: []string{"ATTEMPT_TIMEOUT=30s"}, line: `^SHUTDOWN_TIMEOUT: 25s must exceed ATTEMPT_TIMEOUT \(30s\)`, of: d},
		"73 stop 0":              {set: []string{"SHUTDOWN_TIMEOUT=0s"}, line: `^SHUTDOWN_TIMEOUT: .* from 1s to 10m`},

		"74 in flight -1":      {set: []string{"MAX_IN_FLIGHT=-1"}, line: `^MAX_IN_FLIGHT: -1 is out of range; give a number from 8 to 100000`, of: d},
		"74 in flight 5.0":     {set: []string{"MAX_IN_FLIGHT=50.0"}, line: `^MAX_IN_FLIGHT: "50.0" is not a number`, of: d},
		"74 in flight a word":  {set: []string{"MAX_IN_FLIGHT=many"}, line: `^MAX_IN_FLIGHT: "many" is not a number`, of: d},
		"74 in flight huge":    {set: []string{"MAX_IN_FLIGHT=99999999999999999999"}, line: `^MAX_IN_FLIGHT: `, of: d},
		"74 per URL above all": {set: []string{"MAX_IN_FLIGHT=10", "MAX_IN_FLIGHT_PER_URL=11"}, line: `^MAX_IN_FLIGHT_PER_URL: 11 exceeds MAX_IN_FLIGHT \(10\)`, of: d},
		"74 jitter NaN":        {set: []string{"RETRY_JITTER=NaN"}, line: `^RETRY_JITTER: NaN is out of range; give a number from 0 to 0.9`, of: d},
		"74 jitter 1":          {set: []string{"RETRY_JITTER=1"}, line: `^RETRY_JITTER: `, of: d},
		"74 rate limit 0":      {set: []string{"API_RATE_LIMIT=0"}, line: `^API_RATE_LIMIT: 0 is out of range; give a number from 1 to 1000000`, of: m},
		"74 replicas 2":        {set: []string{"STREAM_REPLICAS=2"}, line: `^STREAM_REPLICAS: 2 is out of range; give one of 1, 3, 5`},
		"74 event size 0":      {set: []string{"EVENT_MAX_BYTES=0"}, line: `^EVENT_MAX_BYTES: .* from 1024 to 67108864`},
		"74 bool a word":       {set: []string{"ALLOW_HTTP_URLS=maybe"}, line: `^ALLOW_HTTP_URLS: "maybe" is neither true nor false`, of: both},

		"75 window 0":           {set: []string{"SUSPENSION_WINDOW=0s"}, line: `^SUSPENSION_WINDOW: .* from 1s to 24h`, of: s}, // not that the span no longer fits
		"75 span over window":   {set: []string{"SUSPENSION_WINDOW=30s"}, line: `^SUSPENSION_MIN_SPAN: 1m0s is out of range; set it to 0s to SUSPENSION_WINDOW \(30s\)`, of: s},
		"75 first over longest": {set: []string{"SUSPENSION_MAX_DURATION=1m"}, line: `^SUSPENSION_DURATION: 5m0s is out of range`, of: s},
		"75 longest 31 days":    {set: []string{"SUSPENSION_MAX_DURATION=744h"}, line: `^SUSPENSION_MAX_DURATION: .* from 1s to 720h`, of: s},
		"75 failures 0":         {set: []string{"SUSPENSION_MIN_FAILURES=0"}, line: `^SUSPENSION_MIN_FAILURES: .* from 1 to 1000000`, of: s},
		"75 parked over log":    {set: []string{"LOG_MAX_AGE=24h"}, line: `^PARKED_MAX_AGE: 168h0m0s must be less than LOG_MAX_AGE \(24h0m0s\)`, of: d},

		"76 broker other scheme": {set: []string{"NATS_URL=http://127.0.0.1:4222"}, line: `^NATS_URL: address 1 cannot be used: .* give nats://`},
		"76 broker no host":      {set: []string{"NATS_URL=nats://"}, line: `^NATS_URL: address 1`},
		"76 broker second bad":   {set: []string{"NATS_URL=nats://a:4222,b:4222"}, line: `^NATS_URL: address 2`},
		"76 broker bad password": {set: []string{"NATS_URL=nats://user:CANARY%zz@127.0.0.1:4222"}, line: `^NATS_URL: address 1 .* percent-encoded`},
		"76 broker raw @":        {set: []string{"NATS_URL=nats://u:p@ss/CANARY@127.0.0.1:4222"}, line: `^NATS_URL: address 1 .* percent-encoded`},
		"76 broker raw #":        {set: []string{"NATS_URL=nats://u:p#CANARY@127.0.0.1:4222"}, line: `^NATS_URL: address 1 .* percent-encoded`},
		"76 broker no file":      {set: []string{"NATS_URL=", "NATS_URL_FILE=/CANARY"}, line: `^NATS_URL_FILE: the file cannot be read`},
		"76 broker empty":        {set: []string{"NATS_URL="}}, // its default
		"76 creds missing":       {set: []string{"NATS_CREDS_FILE=" + f.missing}, line: `^NATS_CREDS_FILE: .*missing`},
		"76 creds no creds":      {set: []string{"NATS_CREDS_FILE=" + f.notPEM}, line: `^NATS_CREDS_FILE: .* is not a credentials file`},
		"76 CA missing":          {set: []string{"NATS_CA_FILE=" + f.missing}, line: `^NATS_CA_FILE: `},
		"76 CA no certificate":   {set: []string{"NATS_CA_FILE=" + f.notPEM}, line: `^NATS_CA_FILE: .* holds no certificate`},
		"76 Redis other scheme":  {set: []string{"REDIS_URL=http://:CANARY@127.0.0.1"}, line: `^REDIS_URL: `, of: []string{"suspension-monitor", "management"}},
		"76 Redis raw @":         {set: []string{"REDIS_URL=redis://:p@ss/CANARY@127.0.0.1/0"}, line: `^REDIS_URL: .* percent-encoded`, of: []string{"suspension-monitor", "management"}},
		"76 Redis raw ?":         {set: []string{"REDIS_URL=redis://:p?CANARY@127.0.0.1/0"}, line: `^REDIS_URL: .* percent-encoded`, of: []string{"suspension-monitor", "management"}},
		"76 Redis raw /":         {set: []string{"REDIS_URL=redis://:p/CANARY@127.0.0.1/0"}, line: `^REDIS_URL: .* percent-encoded`, of: []string{"suspension-monitor", "management"}},
		"76 Redis bad password":  {set: []string{"REDIS_URL=redis://user:CANARY%zz@127.0.0.1"}, line: `^REDIS_URL: `, of: []string{"suspension-monitor", "management"}},

		"77 four delays": {set: []string{"RETRY_DELAYS=1s,2s,3s,4s"}, line: `^RETRY_DELAYS: it has 4 delays; give exactly five from 100ms to 24h`, of: d},
		"77 six delays":  {set: []string{"RETRY_DELAYS=1s,2s,3s,4s,5s,6s"}, line: `^RETRY_DELAYS: it has 6 delays`, of: d},
		"77 descending":  {set: []string{"RETRY_DELAYS=1s,2s,3s,2s,5s"}, line: `^RETRY_DELAYS: a delay is shorter`, of: d},
		"77 too short":   {set: []string{"RETRY_DELAYS=1ms,2s,3s,4s,5s"}, line: `^RETRY_DELAYS: 1ms is out of range; give durations from 100ms to 24h`, of: d},
		"77 no unit":     {set: []string{"RETRY_DELAYS=10,60,300,1800,7200"}, line: `^RETRY_DELAYS: "10" is not a duration`, of: d},

		"78 keys not set":       {set: []string{"ENCRYPTION_KEY_FILE="}, line: `^ENCRYPTION_KEY_FILE: not set; give a file`, of: both},
		"78 keys missing":       {set: []string{"ENCRYPTION_KEY_FILE=" + f.missing}, line: `^ENCRYPTION_KEY_FILE: `, of: both},
		"78 keys empty":         {set: []string{"ENCRYPTION_KEY_FILE=" + f.empty}, line: `^ENCRYPTION_KEY_FILE: .* holds no key`, of: both},
		"78 keys not base64":    {set: []string{"ENCRYPTION_KEY_FILE=" + f.noBase64}, line: `^ENCRYPTION_KEY_FILE: .*line 2 .* is not base64`, count: 2, of: both},
		"78 key too short":      {set: []string{"ENCRYPTION_KEY_FILE=" + f.shortKey}, line: `^ENCRYPTION_KEY_FILE: .* a key of 6 bytes; it must have 32`, of: both},
		"78 white space":        {set: []string{"ENCRYPTION_KEY_FILE=" + f.crlfKeys}, of: both},
		"78 tokens missing":     {set: []string{"API_TOKENS=", "API_TOKENS_FILE=" + f.missing}, line: `^API_TOKENS_FILE: `, of: m},
		"78 tokens from a file": {set: []string{"API_TOKENS=", "API_TOKENS_FILE=" + f.tokens}, of: m},
		"78 nobody may enter":   {set: []string{"API_TOKENS="}, line: `^API_TOKENS: no one could use the API`, of: m},
		"78 token no account":   {set: []string{"API_TOKENS=CANARY-token"}, line: `^API_TOKENS: entry 1 `, of: m},
		"78 two bad tokens":     {set: []string{"API_TOKENS=a b:CANARY-1,acme:CANARY-2:write"}, line: `^API_TOKENS: entry 2 `, count: 2, of: m},
		"78 short JWT secret":   {set: []string{"JWT_HMAC_SECRET=CANARY"}, line: `^JWT_HMAC_SECRET: it is too short; HS256 needs at least 32`, of: m},
		"78 JWKS in clear":      {set: []string{"JWT_JWKS_URL=http://idp.example/CANARY"}, line: `^JWT_JWKS_URL: give an https:// address`, of: m},

		"79 all open":       {set: []string{"EGRESS_ALLOW_CIDRS=0.0.0.0/0"}, line: `^EGRESS_ALLOW_CIDRS: "0.0.0.0/0" is too wide; IPv4 ranges may be /8 to /32`, of: both},
		"79 all open, v6":   {set: []string{"EGRESS_ALLOW_CIDRS=::/0"}, line: `^EGRESS_ALLOW_CIDRS: "::/0" is too wide; IPv6 ranges may be /32 to /128`, of: both},
		"79 all v4 as v6":   {set: []string{"EGRESS_ALLOW_CIDRS=::ffff:0.0.0.0/96"}, line: `^EGRESS_ALLOW_CIDRS: `, of: both},
		"79 three bad ones": {set: []string{"EGRESS_ALLOW_CIDRS=x,10.0.0.1/8,1.2.3.4"}, line: `^EGRESS_ALLOW_CIDRS: "1.2.3.4" is not a range`, count: 3, of: both},
		"79 ports":          {set: []string{"EGRESS_ALLOW_PORTS=0,70000,9-1"}, line: `^EGRESS_ALLOW_PORTS: "70000" is not a port; write numbers or ranges from 1 to 65535`, count: 3, of: both},
		"79 proxy":          {set: []string{"EGRESS_PROXY_URL=socks5://user:CANARY@proxy"}, line: `^EGRESS_PROXY_URL: `, of: both},
		"79 CA":             {set: []string{"EGRESS_CA_FILE=" + f.notPEM}, line: `^EGRESS_CA_FILE: .* holds no certificate`, of: both},
		"79 name server":    {set: []string{"EGRESS_DNS_SERVER=localhost"}, line: `^EGRESS_DNS_SERVER: `, of: both},

		"81 log level":        {set: []string{"LOG_LEVEL=verbose"}, line: `^LOG_LEVEL: "verbose" is unknown; give one of debug, info, warn, error`},
		"81 port 70000":       {set: []string{"OPS_ADDR=:70000"}, line: `^OPS_ADDR: ":70000" is not host:port; .* from 0 \(any\) to 65535`},
		"81 no port":          {set: []string{"OPS_ADDR=localhost"}, line: `^OPS_ADDR: "localhost" is not host:port`},
		"81 API without port": {set: []string{"HTTP_ADDR=localhost"}, line: `^HTTP_ADDR: "localhost" is not host:port`, of: m},
		"81 event name":       {set: []string{"EVENT_NAMES=crm_lead_deleted,Deal"}, line: `^EVENT_NAMES: "Deal" is not an event name`, of: m},
		"81 broker listens":   {set: []string{"NATS_LISTEN=4222"}, line: `^NATS_LISTEN: "4222" is not host:port`, of: []string{"gancho"}},
		"81 flush interval":   {set: []string{"NATS_SYNC_INTERVAL=never"}, line: `^NATS_SYNC_INTERVAL: "never" is neither always nor a duration`, of: []string{"gancho"}},

		"all at once": {
			set:  []string{"ATTEMPT_TIMEOUT=5", "RETRY_JITTER=2", "RETRY_DELAYS=1s", "OPS_ADDR=x", "NATS_URL=x", "EGRESS_ALLOW_CIDRS=x", "ENCRYPTION_KEY_FILE=", "LOG_LEVEL=x"},
			line: `^RETRY_DELAYS: `, count: 8, of: d,
		},
	} {
		for _, program := range append(allServices, "gancho") {
			if tc.of == nil && program == "gancho" || tc.of != nil && !slices.Contains(tc.of, program) {
				continue
			}
			t.Run(name+"/"+program, func(t *testing.T) {
				t.Parallel()
				problems := loaders[program](append(f.good(), tc.set...))
				want := max(tc.count, 1)
				if tc.line == "" {
					want = 0
				}
				if len(problems) != want {
					t.Errorf("got %d problems, want %d: %q", len(problems), want, problems)
				}
				if tc.line != "" && !slices.ContainsFunc(problems, regexp.MustCompile(tc.line).MatchString) {
					t.Errorf("no line matches %s: %q", tc.line, problems)
				}
				checkLines(t, problems)
			})
		}
	}
}

// checkLines asserts the form of problems: one line each, beginning with the variable's name, and nothing
// secret in them.
func checkLines(t *testing.T, problems []string) {
	t.Helper()
	form := regexp.MustCompile(`^[A-Z][A-Z0-9_]+: .+$`)
	for _, p := range problems {
		if !form.MatchString(p) || strings.ContainsAny(p, "\r\n") {
			t.Errorf("not NAME: and one line: %q", p)
		}
		if strings.Contains(p, "CANARY") {
			t.Errorf("a secret is repeated: %q", p)
		}
	}
}

// start runs a program with an environment of its own until it ends, at most a minute.
func start(t *testing.T, program string, env ...string) (code int, stderr string) {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, program))
	var errs bytes.Buffer
	cmd.Env, cmd.Stderr, cmd.WaitDelay = env, &errs, time.Second
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), errs.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, errs.String()
}

// TestProgramsRefuseToStart sees the same from outside: exit code 2 and one line per problem on stderr.
func TestProgramsRefuseToStart(t *testing.T) {
	t.Parallel()
	f := writeFiles(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	taken := l.Addr().String()
	ops := "OPS_ADDR=127.0.0.1:0"
	for name, tc := range map[string]struct {
		program string
		set     []string
		want    []string // what the lines of stderr begin with, in any order
	}{
		"publisher, three":   {"publisher", []string{"LOG_LEVEL=verbose", "SHUTDOWN_TIMEOUT=5", "NATS_URL=nats://u:CANARY%zz@h"}, []string{"LOG_LEVEL: ", "SHUTDOWN_TIMEOUT: ", "NATS_URL: "}},
		"dispatcher":         {"dispatcher", []string{"RETRY_DELAYS=1s,2s", "ENCRYPTION_KEY_FILE=" + f.noBase64}, []string{"RETRY_DELAYS: ", "ENCRYPTION_KEY_FILE: ", "ENCRYPTION_KEY_FILE: "}},
		"suspension-monitor": {"suspension-monitor", []string{"SUSPENSION_WINDOW=48h", "REDIS_URL=redis://:CANARY%zz@h"}, []string{"SUSPENSION_WINDOW: ", "REDIS_URL: "}},
		"management":         {"management", []string{"API_TOKENS=", "HTTP_ADDR=:99999", "JWT_HMAC_SECRET=CANARY"}, []string{"JWT_HMAC_SECRET: "}},
		"port in use":        {"publisher", []string{"OPS_ADDR=" + taken}, []string{"OPS_ADDR: "}},
		"API port in use":    {"management", []string{ops, "HTTP_ADDR=" + taken}, []string{"HTTP_ADDR: "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, stderr := start(t, tc.program, append(append(f.good(), ops), tc.set...)...)
			if code != service.ExitConfig {
				t.Errorf("exit code: got %d, want %d", code, service.ExitConfig)
			}
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			checkLines(t, lines)
			if len(lines) < len(tc.want) {
				t.Errorf("stderr: got %q, want %q", lines, tc.want)
			}
			for _, prefix := range tc.want {
				if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, prefix) }) {
					t.Errorf("no line begins with %q: %q", prefix, lines)
				}
			}
		})
	}
}
