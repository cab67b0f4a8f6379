package management

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gancho/pkg/seal"
	"gancho/pkg/service"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keys, tokens := filepath.Join(dir, "keys"), filepath.Join(dir, "tokens")
	if err := seal.New().Write(keys); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tokens, []byte("# tokens\nacme:a\nbad entry\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := []string{"ENCRYPTION_KEY_FILE=" + keys, "API_TOKENS=acme:t"}
	for name, tc := range map[string]struct {
		environ []string
		want    []string // beginnings of the lines
	}{
		"good":            {nil, nil},
		"nothing set":     {[]string{"ENCRYPTION_KEY_FILE=", "API_TOKENS="}, []string{"API_TOKENS: no one could use the API", "ENCRYPTION_KEY_FILE"}},
		"addresses":       {[]string{"HTTP_ADDR=8080", "REDIS_URL=localhost", "NATS_URL=x"}, []string{"HTTP_ADDR: \"8080\"", "NATS_URL:", "REDIS_URL"}},
		"tokens":          {[]string{"API_TOKENS=a:b:c,x", "API_TOKENS_FILE=" + tokens}, []string{"API_TOKENS: entry 1", "API_TOKENS: entry 2", "API_TOKENS_FILE: entry 2"}},
		"no token file":   {[]string{"API_TOKENS_FILE=" + tokens + "x"}, []string{"API_TOKENS_FILE: open"}},
		"JWT":             {[]string{"JWT_HMAC_SECRET=short", "JWT_JWKS_URL=ftp://x"}, []string{"JWT_HMAC_SECRET:", "JWT_JWKS_URL: give", "JWT_JWKS_URL: it cannot"}},
		"JWT of nobody":   {[]string{"JWT_ISSUER=x", "JWT_AUDIENCE=y"}, []string{"JWT_AUDIENCE: it has no effect", "JWT_ISSUER: it has no effect"}},
		"event names":     {[]string{"EVENT_NAMES=crm_visit_done,Visit"}, []string{"EVENT_NAMES: \"Visit\""}},
		"rate":            {[]string{"API_RATE_LIMIT=0"}, []string{"API_RATE_LIMIT: 0 is out of range"}},
		"egress":          {[]string{"EGRESS_ALLOW_CIDRS=0.0.0.0/0", "EGRESS_ALLOW_PORTS=x"}, []string{"EGRESS_ALLOW_CIDRS", "EGRESS_ALLOW_PORTS"}},
		"event max bytes": {[]string{"EVENT_MAX_BYTES=1e9"}, []string{"EVENT_MAX_BYTES:"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cfg Config
			got := service.Load(&cfg, append(slices.Clone(good), tc.environ...))
			slices.Sort(got)
			ok := len(got) == len(tc.want)
			for i := range min(len(got), len(tc.want)) {
				ok = ok && strings.HasPrefix(got[i], tc.want[i])
			}
			if !ok {
				t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}
