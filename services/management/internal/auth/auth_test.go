package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap/zaptest"

	"gancho/pkg/redistest"
	"gancho/pkg/tokens"
	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/problem"
)

func inline(t *testing.T, text string) *Tokens {
	t.Helper()
	known, err := OpenTokens([]byte("names"), text, "")
	if err != nil {
		t.Fatal(err)
	}
	return known
}

func gate(t *testing.T, cfg Config) *Gate {
	t.Helper()
	if cfg.Tokens == nil {
		cfg.Tokens = inline(t, "acme:good,acme:reader:read,*:op")
	}
	if cfg.PerSecond == 0 {
		cfg.PerSecond = 1000
	}
	if cfg.BadPerMinute == 0 {
		cfg.BadPerMinute = 20
	}
	g, err := New(t.Context(), cfg, zaptest.NewLogger(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func request(token, from string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = from
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

// status is 0 when the request is let in.
func status(g *Gate, r *http.Request, write bool) int {
	_, err := g.Check(r, write)
	if err == nil {
		return 0
	}
	return httpstatus.Of(problem.Of(err))
}

func TestTokens(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		text  string
		count int
		bad   string // part of the error
	}{
		"empty":            {"", 0, ""},
		"two kinds":        {"acme:a,acme:b:read,*:c", 3, ""},
		"second is bad":    {"acme:a,acme:", 1, "API_TOKENS: entry 2 has no token"},
		"bad character":    {"acme:s3cr{t", 0, "API_TOKENS: entry 1 has a token with characters"},
		"the same twice":   {"acme:a,globex:a", 1, "API_TOKENS: entry 2 has the token of another entry"},
		"in the file too":  {"acme:infile", 1, "API_TOKENS_FILE: entry 1 has the token of another entry"},
		"all are reported": {"x y:1,acme:,acme:b", 1, "API_TOKENS: entry 2 has no token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens")
			if err := os.WriteFile(path, []byte("# ours\nglobex:infile\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			known, err := OpenTokens([]byte("names"), tc.text, path)
			if err == nil && known.Len() != tc.count+1 {
				t.Errorf("%d tokens, want %d", known.Len(), tc.count+1)
			}
			if (err == nil) != (tc.bad == "") || err != nil && !strings.Contains(err.Error(), tc.bad) {
				t.Errorf("%v, want %q", err, tc.bad)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cr") || strings.Contains(err.Error(), "infile")) {
				t.Errorf("error = %v", err)
			}
		})
	}
	if _, err := OpenTokens(nil, "", "/does/not/exist"); err == nil || !strings.HasPrefix(err.Error(), "API_TOKENS_FILE: ") {
		t.Errorf("a file that is missing: %v", err)
	}
}

// TestTokensAreReadAgain: a change of the file counts without a restart, an open tail ends with its token, and a file
// that cannot be used changes nothing.
func TestTokensAreReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "tokens")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("acme:first")
		known, err := OpenTokens([]byte("names"), "acme:inline", path)
		if err != nil {
			t.Fatal(err)
		}
		g := gate(t, Config{Tokens: known})
		ctx, cancel := context.WithCancel(t.Context())
		hangUp := make(chan os.Signal, 1)
		done := make(chan struct{})
		go func() { known.Watch(ctx, hangUp, zaptest.NewLogger(t)); close(done) }()
		check := func(when string, want map[string]int) {
			t.Helper()
			synctest.Wait()
			for token, expected := range want {
				if got := status(g, request(token, "192.0.2.1:1"), false); got != expected {
					t.Errorf("%s: %s answers %d, want %d", when, token, got, expected)
				}
			}
		}
		check("at the start", map[string]int{"first": 0, "inline": 0, "second": 401})
		caller, err := g.Check(request("first", "192.0.2.1:1"), false)
		if err != nil {
			t.Fatal(err)
		}
		tail, leave := g.While(t.Context(), caller)
		defer leave()

		write("acme:first\nacme:second")
		time.Sleep(lookEvery)
		check("one more", map[string]int{"first": 0, "inline": 0, "second": 0})
		if tail.Err() != nil {
			t.Error("the tail ended although its token is good")
		}
		write("acme:second")
		hangUp <- syscall.SIGHUP
		check("after SIGHUP, at once", map[string]int{"first": 401, "inline": 0, "second": 0})
		if !errors.Is(context.Cause(tail), ErrEnded) {
			t.Error("the tail of a removed token is open")
		}
		for _, broken := range []string{"acme:", "acme:second,acme:second"} {
			write(broken)
			time.Sleep(lookEvery)
			check("a broken file", map[string]int{"first": 401, "inline": 0, "second": 0})
			if why := known.State(); !strings.HasPrefix(why, "API_TOKENS_FILE: entry ") {
				t.Errorf("state: %q", why)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery)
		check("no file", map[string]int{"inline": 0, "second": 0})
		write("")
		time.Sleep(lookEvery)
		check("an empty file", map[string]int{"inline": 0, "second": 401})
		if why := known.State(); why != "" {
			t.Errorf("state: %q", why)
		}
		cancel()
		<-done
	})
}

// TestUseIsKept: what two replicas saw is in Redis when they stop; what Redis did not take is not forgotten.
func TestUseIsKept(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	names := []byte("names")
	stopped, stop := context.WithCancel(t.Context())
	stop()
	use := func(token string) *Tokens {
		t.Helper()
		known, err := OpenTokens(names, "acme:0123456789abcdef,globex:fedcba9876543210", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := known.find(token); !ok {
			t.Fatal("the token is not known")
		}
		known.find("another")
		return known
	}
	replica := use("0123456789abcdef")
	replica.KeepUse(stopped, server.Client())
	use("fedcba9876543210").KeepUse(stopped, server.Client())
	used, err := tokens.ReadUse(t.Context(), server.Client())
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"0123456789abcdef", "fedcba9876543210"} {
		if at := used[tokens.Name(names, token)]; time.Since(at) > time.Minute {
			t.Errorf("used %v", used)
		}
	}
	if len(used) != 2 || len(replica.used) != 0 {
		t.Errorf("used %v, to be recorded %v", used, replica.used)
	}
	server.Stop()
	replica = use("0123456789abcdef")
	replica.KeepUse(stopped, server.Client())
	if len(replica.used) != 1 {
		t.Errorf("to be recorded: %v", replica.used)
	}
}

// TestTokensAreComparedWhole: a value at a token's place is not good before its whole hash is the same.
func TestTokensAreComparedWhole(t *testing.T) {
	t.Parallel()
	known := inline(t, "acme:good,globex:other")
	for _, token := range []string{"good", "other"} {
		if _, ok := known.find(token); !ok {
			t.Errorf("%s is unknown", token)
		}
	}
	h, callers := known.hash("guess"), known.set.Load().callers
	for i := len(place{}); i < len(h); i++ {
		near := h
		near[i] ^= 1
		callers[place(h[:])] = append(callers[place(h[:])], held{near, Caller{Account: "acme"}})
	}
	if c, ok := known.find("guess"); ok {
		t.Errorf("a token is good whose hash only begins like another: %+v", c)
	}
	callers[place(h[:])] = append(callers[place(h[:])], held{h, Caller{Account: "globex"}})
	if c, ok := known.find("guess"); !ok || c.Account != "globex" {
		t.Errorf("of those at one place the right one is not found: %+v", c)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	g := gate(t, Config{})
	for name, tc := range map[string]struct {
		header http.Header
		write  bool
		status int
		want   Caller
	}{
		"good":                {http.Header{"Authorization": {"Bearer good"}}, true, 0, Caller{Account: "acme", Kind: KindToken}},
		"scheme in any case":  {http.Header{"Authorization": {"bEARER good"}}, true, 0, Caller{Account: "acme", Kind: KindToken}},
		"none":                {nil, false, 401, Caller{}},
		"no scheme":           {http.Header{"Authorization": {"good"}}, false, 401, Caller{}},
		"scheme alone":        {http.Header{"Authorization": {"Bearer "}}, false, 401, Caller{}},
		"other scheme":        {http.Header{"Authorization": {"Basic good"}}, false, 401, Caller{}},
		"two headers":         {http.Header{"Authorization": {"Bearer good", "Bearer good"}}, false, 401, Caller{}},
		"bad":                 {http.Header{"Authorization": {"Bearer goo"}}, false, 401, Caller{}},
		"reader reads":        {http.Header{"Authorization": {"Bearer reader"}}, false, 0, Caller{Account: "acme", Kind: KindToken, ReadOnly: true}},
		"reader writes":       {http.Header{"Authorization": {"Bearer reader"}}, true, 403, Caller{}},
		"operator":            {http.Header{"Authorization": {"Bearer op"}, "X-Account-Id": {"globex"}}, true, 0, Caller{Account: "globex", Kind: KindOperator, Operator: true}},
		"operator of none":    {http.Header{"Authorization": {"Bearer op"}}, false, 400, Caller{}},
		"operator of nobody":  {http.Header{"Authorization": {"Bearer op"}, "X-Account-Id": {"a.b"}}, false, 400, Caller{}},
		"operator of all":     {http.Header{"Authorization": {"Bearer op"}, "X-Account-Id": {"*"}}, false, 400, Caller{}},
		"own account named":   {http.Header{"Authorization": {"Bearer good"}, "X-Account-Id": {"acme"}}, false, 0, Caller{Account: "acme", Kind: KindToken}},
		"other account named": {http.Header{"Authorization": {"Bearer good"}, "X-Account-Id": {"globex"}}, false, 403, Caller{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := request("", "192.0.2.1:1000")
			maps.Copy(r.Header, tc.header)
			c, err := g.Check(r, tc.write)
			if err != nil {
				p := problem.Of(err)
				if got := httpstatus.Of(p); got != tc.status {
					t.Errorf("status = %d, want %d", got, tc.status)
				}
				if p.Code() == "no_token" && strings.Contains(p.Problems[0].Detail, "of the form") != (tc.header != nil) {
					t.Errorf("the refusal is told so: %s", p.Problems[0].Detail)
				}
				return
			}
			if strings.Contains(c.Name, "good") || c.Name == "" {
				t.Errorf("name = %q", c.Name)
			}
			if c.Address != "192.0.2.1" {
				t.Errorf("address = %q", c.Address)
			}
			c.Name, c.Address, c.token, c.limit = "", "", digest{}, ""
			if tc.status != 0 || c != tc.want {
				t.Errorf("caller = %+v, want %+v and %d", c, tc.want, tc.status)
			}
		})
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate(t, Config{PerSecond: 50})
		for i := range 50 {
			if s := status(g, request("good", "192.0.2.1:1"), false); s != 0 {
				t.Fatalf("request %d of the burst: %d", i+1, s)
			}
		}
		_, err := g.Check(request("good", "192.0.2.2:1"), false)
		if e := problem.Of(err); e.Kind != problem.Limited || e.RetryAfter != time.Second {
			t.Errorf("after the burst: %v, Retry-After %v", e, e.RetryAfter)
		}
		if s := status(g, request("reader", "192.0.2.1:1"), false); s != 0 {
			t.Errorf("another token: %d", s)
		}
		time.Sleep(100 * time.Millisecond)
		for i := range 5 {
			if s := status(g, request("good", "192.0.2.1:1"), false); s != 0 {
				t.Errorf("request %d after 100 ms: %d", i+1, s)
			}
		}
		if s := status(g, request("good", "192.0.2.1:1"), false); s != 429 {
			t.Errorf("a sixth after 100 ms: %d", s)
		}
	})
}

// TestGuessesHarmNobodyElse: whoever guesses behind an address that others share, as behind a proxy, locks out
// himself alone: a token that was never seen there, a refreshed JWT and a sign-in are let in.
func TestGuessesHarmNobodyElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const secret = "0123456789abcdef0123456789abcdef"
		g := gate(t, Config{JWT: JWT{HMACSecret: secret}})
		const home, away = "192.0.2.1:1", "[2001:db8:1:2::7]:1"
		for i := range 20 {
			if s := status(g, request(fmt.Sprint("guess", i), home), false); s != 401 {
				t.Fatalf("guess %d: %d", i, s)
			}
		}
		fresh := signed(t, jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "acme", "exp": time.Now().Add(time.Hour).Unix()})
		for name, tc := range map[string]struct {
			token, from string
			want        int
		}{
			"another guess":                         {"guess", home, 429},
			"a bad JWT":                             {fresh + "x", home, 429},
			"a token never seen here":               {"reader", home, 0},
			"a fresh JWT":                           {fresh, home, 0},
			"an operator":                           {"op", home, 400},
			"elsewhere nothing is locked":           {"reader", away, 0},
			"nor are guesses elsewhere":             {"guess", away, 401},
			"the same /64 is the same client":       {"guess", "[2001:db8:1:2:ffff::1]:9", 401},
			"no token is told so":                   {"", home, 401},
			"another port is the same client":       {"guess", "192.0.2.1:999", 429},
			"a mapped address is the same client":   {"guess", "[::ffff:192.0.2.1]:5", 429},
			"a neighbour's address is another one ": {"guess", "192.0.2.2:1", 401},
		} {
			if s := status(g, request(tc.token, tc.from), false); s != tc.want {
				t.Errorf("%s: %d, want %d", name, s, tc.want)
			}
		}
		if _, err := g.Identify("good", home); err != nil {
			t.Errorf("a sign-in: %v", err)
		}
		if _, err := g.Visit(fresh, "", home, true); err != nil {
			t.Errorf("a session: %v", err)
		}
		time.Sleep(4 * time.Second)
		if s := status(g, request("guess", home), false); s != 401 {
			t.Errorf("a guess after a pause: %d", s)
		}
	})
}

// TestThousandGuesses: row 95 of the bad inputs. Of 1,000 guesses in a minute as many are looked at as may be, the
// others are refused and counted.
func TestThousandGuesses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate(t, Config{BadPerMinute: 20})
		statuses := map[int]float64{}
		for i := range 1000 {
			statuses[status(g, request(fmt.Sprint("guess", i), "192.0.2.1:1"), false)]++
			time.Sleep(60 * time.Millisecond)
		}
		if looked := statuses[401]; looked < 20 || looked > 40 || looked+statuses[429] != 1000 {
			t.Errorf("answers: %v, want at most 20 at once and 20 in the minute looked at", statuses)
		}
		for reason, status := range map[string]int{"bad_token": 401, "locked_out": 429} {
			var m dto.Metric
			if err := g.refused.WithLabelValues(reason).Write(&m); err != nil || m.GetCounter().GetValue() != statuses[status] {
				t.Errorf("%v are counted as %s (%v), %v were", m.GetCounter().GetValue(), reason, err, statuses[status])
			}
		}
	})
}

// TestLimitsAreBounded: a table that is full forgets one key, the one used longest ago, and no other.
func TestLimitsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(1, 1)
		now := time.Now()
		l.take("guesser", now)
		for i := range 3 * maxKeys {
			l.take(fmt.Sprint(i), now)
			if _, ok := l.take("guesser", now); ok {
				t.Fatalf("after %d other keys the guesser is forgotten", i+1)
			}
		}
		if l.keys.Len() > maxKeys {
			t.Errorf("%d keys, want at most %d", l.keys.Len(), maxKeys)
		}
	})
}

func signed(t *testing.T, m jwt.SigningMethod, key any, claims jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(m, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJWTHS256(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	g := gate(t, Config{JWT: JWT{HMACSecret: secret}, BadPerMinute: 1000})
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	hs256 := func(claims jwt.MapClaims) string {
		if _, set := claims["exp"]; !set {
			claims["exp"] = at(time.Hour)
		}
		return signed(t, jwt.SigningMethodHS256, []byte(secret), claims)
	}
	good := jwt.MapClaims{"account_id": "globex", "exp": at(time.Hour)}
	for name, tc := range map[string]struct {
		token string
		want  string // the account, or part of the refusal
	}{
		"good":                  {hs256(jwt.MapClaims{"account_id": "globex", "sub": "ana"}), "globex"},
		"an integer":            {hs256(jwt.MapClaims{"account_id": 7}), "7"},
		"a large integer":       {hs256(jwt.MapClaims{"account_id": json.Number("123456789012345678901234")}), "123456789012345678901234"},
		"a fraction":            {hs256(jwt.MapClaims{"account_id": 7.5}), "names no account"},
		"an exponent":           {hs256(jwt.MapClaims{"account_id": json.Number("1e3")}), "names no account"},
		"a truth":               {hs256(jwt.MapClaims{"account_id": true}), "names no account"},
		"a list":                {hs256(jwt.MapClaims{"account_id": []string{"globex"}}), "names no account"},
		"none":                  {hs256(jwt.MapClaims{}), "names no account"},
		"another case":          {hs256(jwt.MapClaims{"Account_Id": "globex", "ACCOUNT_ID": "globex"}), "names no account"},
		"another case too":      {hs256(jwt.MapClaims{"account_id": "globex", "Account_id": "acme", "account_ID": "acme"}), "globex"},
		"all accounts":          {hs256(jwt.MapClaims{"account_id": "*"}), "names no account"},
		"no exp":                {signed(t, jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "globex"}), "has no claim exp"},
		"EXP is not exp":        {signed(t, jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "globex", "EXP": at(time.Hour)}), "has no claim exp"},
		"exp is text":           {hs256(jwt.MapClaims{"account_id": "globex", "exp": "soon"}), "has a claim exp of the wrong type"},
		"exp is a fraction":     {hs256(jwt.MapClaims{"account_id": "globex", "exp": json.Number(fmt.Sprintf("%d.75", at(time.Hour)))}), "globex"},
		"nbf is text":           {hs256(jwt.MapClaims{"account_id": "globex", "nbf": "now"}), "has a claim nbf of the wrong type"},
		"a whole fraction":      {hs256(jwt.MapClaims{"account_id": json.Number("7.00")}), "7"},
		"a whole fraction, e":   {hs256(jwt.MapClaims{"account_id": json.Number("7.0e1")}), "names no account"},
		"audiences":             {hs256(jwt.MapClaims{"account_id": "globex", "aud": []string{"a", "b"}}), "globex"},
		"expired":               {hs256(jwt.MapClaims{"account_id": "globex", "exp": at(-time.Hour)}), "has expired"},
		"expired for 20 s":      {hs256(jwt.MapClaims{"account_id": "globex", "exp": at(-20 * time.Second)}), "globex"},
		"expired for 40 s":      {hs256(jwt.MapClaims{"account_id": "globex", "exp": at(-40 * time.Second)}), "has expired"},
		"not yet":               {hs256(jwt.MapClaims{"account_id": "globex", "nbf": at(time.Hour)}), "is not valid yet"},
		"not yet for 20 s":      {hs256(jwt.MapClaims{"account_id": "globex", "nbf": at(20 * time.Second)}), "globex"},
		"wrong secret":          {signed(t, jwt.SigningMethodHS256, []byte(secret+"x"), good), "signature that does not verify"},
		"HS512":                 {signed(t, jwt.SigningMethodHS512, []byte(secret), good), "signature that does not verify"},
		"alg none":              {signed(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good), "signature that does not verify"},
		"ES256":                 {signed(t, jwt.SigningMethodES256, ecKey, good), "signature that does not verify"},
		"not even base64":       {"a.b.c", "well-formed"},
		"no JWT, unknown":       {"abc", "the token is unknown"},
		"claims of other types": {hs256(jwt.MapClaims{"account_id": "globex", "scope": 7, "sub": 9}), "globex"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := g.Check(request(tc.token, "192.0.2.1:1"), false)
			if err == nil {
				if c.Account != tc.want || c.Kind != KindJWT {
					t.Errorf("let in: %+v, want %s", c, tc.want)
				}
				if name == "claims of other types" && c.Name != "9" {
					t.Errorf("the subject 9 is called %q", c.Name)
				}
				return
			}
			// The client and the log both learn the cause.
			p := problem.Of(err)
			if p.Kind != problem.Unauthenticated || !strings.Contains(p.Problems[0].Detail, tc.want) || p.Cause == nil || !strings.Contains(p.Cause.Error(), tc.want) {
				t.Errorf("%v (cause %v), want 401 and %q", err, p.Cause, tc.want)
			}
		})
	}
	if _, err := gate(t, Config{}).Check(request(signed(t, jwt.SigningMethodHS256, []byte(secret), good), "192.0.2.1:1"), false); err == nil || !strings.Contains(err.Error(), "JWTs are not accepted here") {
		t.Errorf("without JWTs: %v", err)
	}
}

// TestJWTScope: a token with a scope writes only where the scope says so.
func TestJWTScope(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	g := gate(t, Config{JWT: JWT{HMACSecret: secret}})
	for name, tc := range map[string]struct {
		claims jwt.MapClaims
		writes bool
	}{
		"none":                   {jwt.MapClaims{}, true},
		"empty":                  {jwt.MapClaims{"scope": ""}, false},
		"read":                   {jwt.MapClaims{"scope": "read"}, false},
		"write":                  {jwt.MapClaims{"scope": "write"}, true},
		"webhooks:write":         {jwt.MapClaims{"scope": "openid webhooks:write"}, true},
		"webhooks:read":          {jwt.MapClaims{"scope": "openid webhooks:read"}, false},
		"part of a word":         {jwt.MapClaims{"scope": "rewrite write:all nowrite"}, false},
		"another case":           {jwt.MapClaims{"scope": "WRITE"}, false},
		"another case's name":    {jwt.MapClaims{"Scope": "read"}, true},
		"scp":                    {jwt.MapClaims{"scp": []string{"read", "write"}}, true},
		"scp without":            {jwt.MapClaims{"scp": []string{"read", "write all"}}, false},
		"scp empty":              {jwt.MapClaims{"scp": []string{}}, false},
		"scp null":               {jwt.MapClaims{"scp": nil}, false},
		"scope null":             {jwt.MapClaims{"scope": nil}, false},
		"scope as array":         {jwt.MapClaims{"scope": []string{"write"}}, true},
		"scp as words":           {jwt.MapClaims{"scp": "read write"}, true},
		"a number":               {jwt.MapClaims{"scope": 1}, false},
		"read, and scp of write": {jwt.MapClaims{"scope": "read", "scp": []string{"webhooks:write"}}, true},
	} {
		tc.claims["account_id"], tc.claims["exp"] = "acme", time.Now().Add(time.Hour).Unix()
		token := signed(t, jwt.SigningMethodHS256, []byte(secret), tc.claims)
		if s := status(g, request(token, "192.0.2.1:1"), false); s != 0 {
			t.Errorf("%s: reading answers %d", name, s)
		}
		if s := status(g, request(token, "192.0.2.1:1"), true); (s == 0) != tc.writes || s != 0 && s != 403 {
			t.Errorf("%s: writing answers %d, may write: %v", name, s, tc.writes)
		}
	}
}

// TestJWTsOfAnAccountCountTogether: an issuer makes as many subjects as it likes; their requests have one limit.
func TestJWTsOfAnAccountCountTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const secret = "0123456789abcdef0123456789abcdef"
		g := gate(t, Config{JWT: JWT{HMACSecret: secret}, PerSecond: 50})
		ask := func(account string, i int) int {
			return status(g, request(signed(t, jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{
				"account_id": account, "sub": fmt.Sprint("user", i), "exp": time.Now().Add(time.Hour).Unix(),
			}), "192.0.2.1:1"), false)
		}
		for i := range 50 {
			if s := ask("acme", i); s != 0 {
				t.Fatalf("request %d: %d", i, s)
			}
		}
		if s := ask("acme", 50); s != 429 {
			t.Errorf("a 51st subject: %d", s)
		}
		if s := ask("globex", 50); s != 0 {
			t.Errorf("another account: %d", s)
		}
		if s := status(g, request("good", "192.0.2.1:1"), false); s != 0 {
			t.Errorf("the account's configured token: %d", s)
		}
	})
}

// TestTailsEndWithTheirJWT: when it expires, and when it is used within the leeway, with that.
func TestTailsEndWithTheirJWT(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const secret = "0123456789abcdef0123456789abcdef"
		g := gate(t, Config{JWT: JWT{HMACSecret: secret}})
		for _, tc := range []struct{ exp, ends time.Duration }{{time.Minute, time.Minute}, {-10 * time.Second, 20 * time.Second}} {
			token := signed(t, jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "acme", "exp": time.Now().Add(tc.exp).Unix()})
			c, err := g.Check(request(token, "192.0.2.1:1"), false)
			if err != nil {
				t.Fatal(err)
			}
			tail, leave := g.While(t.Context(), c)
			time.Sleep(tc.ends - time.Second)
			synctest.Wait()
			if tail.Err() != nil {
				t.Errorf("exp in %v: the tail ended early", tc.exp)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if !errors.Is(context.Cause(tail), ErrEnded) {
				t.Errorf("exp in %v: the tail is open after %v", tc.exp, tc.ends)
			}
			leave()
		}
	})
}

// TestCheckOperator: calls that are no account's are an operator's.
func TestCheckOperator(t *testing.T) {
	t.Parallel()
	g := gate(t, Config{})
	for name, tc := range map[string]struct {
		token, account string
		status         int
	}{
		"operator":                 {"op", "", 0},
		"operator for one":         {"op", "acme", 0},
		"operator for a bad one":   {"op", "a.b", 400},
		"an account's":             {"good", "", 403},
		"an account's for its own": {"good", "acme", 403},
		"nobody":                   {"", "", 401},
	} {
		r := request(tc.token, "192.0.2.1:1")
		if tc.account != "" {
			r.Header.Set("X-Account-Id", tc.account)
		}
		c, err := g.CheckOperator(r, true)
		if err != nil {
			if got := httpstatus.Of(problem.Of(err)); got != tc.status {
				t.Errorf("%s: %d, want %d", name, got, tc.status)
			}
		} else if tc.status != 0 || c.Account != tc.account || !c.Operator {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestJWTWithKeySet(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	part := base64.RawURLEncoding.EncodeToString
	set, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1", "x": part(point[1:33]), "y": part(point[33:]),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(set)
	}))
	t.Cleanup(issuer.Close)
	g := gate(t, Config{JWT: JWT{JWKSURL: issuer.URL}, BadPerMinute: 1000})
	sign := func(kid string, m jwt.SigningMethod, k any) string {
		token := jwt.NewWithClaims(m, jwt.MapClaims{"account_id": "acme", "exp": time.Now().Add(time.Hour).Unix()})
		token.Header["kid"] = kid
		s, err := token.SignedString(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := status(g, request(sign("k1", jwt.SigningMethodES256, key), "192.0.2.1:1"), true); s != 0 {
		t.Errorf("good: %d", s)
	}
	// The public key used as an HMAC secret must not verify.
	if s := status(g, request(sign("k1", jwt.SigningMethodHS256, point), "192.0.2.1:1"), true); s != 401 {
		t.Errorf("HS256 with the public key: %d", s)
	}
	for range 20 {
		if s := status(g, request(sign("k9", jwt.SigningMethodES256, key), "192.0.2.1:1"), true); s != 401 {
			t.Errorf("unknown key id: %d", s)
		}
	}
	if n := asked.Load(); n > 3 {
		t.Errorf("the issuer was asked %d times; unknown key ids must not make a flood", n)
	}
}

// TestJWTIssuerAndAudience: where they are set, a token of another issuer or for another service is refused.
func TestJWTIssuerAndAudience(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	g := gate(t, Config{JWT: JWT{HMACSecret: secret, Issuer: "https://id.example.com/", Audience: "gancho"}, BadPerMinute: 1000})
	for name, tc := range map[string]struct {
		claims jwt.MapClaims
		want   int
	}{
		"good":                {jwt.MapClaims{"iss": "https://id.example.com/", "aud": "gancho"}, 0},
		"one of the audience": {jwt.MapClaims{"iss": "https://id.example.com/", "aud": []string{"crm", "gancho"}}, 0},
		"another issuer":      {jwt.MapClaims{"iss": "https://id.example.com", "aud": "gancho"}, 401},
		"no issuer":           {jwt.MapClaims{"aud": "gancho"}, 401},
		"another audience":    {jwt.MapClaims{"iss": "https://id.example.com/", "aud": "crm"}, 401},
		"no audience":         {jwt.MapClaims{"iss": "https://id.example.com/"}, 401},
	} {
		tc.claims["account_id"], tc.claims["exp"] = "acme", time.Now().Add(time.Hour).Unix()
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, tc.claims).SignedString([]byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		if s := status(g, request(token, "192.0.2.1:1"), true); s != tc.want {
			t.Errorf("%s: status %d, want %d", name, s, tc.want)
		}
	}
}

// TestTokenNames: a name is the same wherever the key is, and reveals nothing to those without it.
func TestTokenNames(t *testing.T) {
	t.Parallel()
	name := func(key, token string) string {
		known, err := OpenTokens([]byte(key), "acme:"+token, "")
		if err != nil {
			t.Fatal(err)
		}
		c, ok := known.find(token)
		if !ok || known.Short() != 1 {
			t.Fatalf("found %v, %d short ones", ok, known.Short())
		}
		return c.Name
	}
	if n := name("key", "t0ken"); !regexp.MustCompile(`^tok_[0-9a-f]{8}$`).MatchString(n) {
		t.Errorf("name = %q", n)
	}
	if a, b := name("key", "t0ken"), name("key", "t0ken"); a != b {
		t.Errorf("names %q and %q of one token", a, b)
	}
	if a, b := name("key", "t0ken"), name("other", "t0ken"); a == b {
		t.Errorf("name %q does not depend on the key: whoever reads it in a log can try tokens", a)
	}
	if a, b := name("key", "t0ken"), name("key", "t1ken"); a == b {
		t.Errorf("two tokens are called %q", a)
	}
}

func TestCheckJWT(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		JWT

		bad string
	}{
		"neither":           {JWT{}, ""},
		"both":              {JWT{JWKSURL: "https://id.example.com/keys", HMACSecret: strings.Repeat("s", 32)}, "JWT_JWKS_URL: it cannot be set together"},
		"short secret":      {JWT{HMACSecret: "short"}, "JWT_HMAC_SECRET: it is too short"},
		"http":              {JWT{JWKSURL: "http://id.example.com/keys"}, "JWT_JWKS_URL: give an https:// address"},
		"loopback":          {JWT{JWKSURL: "http://127.0.0.1:1/keys", Issuer: "x", Audience: "y"}, ""},
		"no URL":            {JWT{JWKSURL: "::"}, "JWT_JWKS_URL"},
		"an issuer of none": {JWT{Issuer: "x"}, "JWT_ISSUER: it has no effect without JWT_JWKS_URL or JWT_HMAC_SECRET"},
		"audience of none":  {JWT{Audience: "y"}, "JWT_AUDIENCE: it has no effect without JWT_JWKS_URL or JWT_HMAC_SECRET"},
	} {
		err := tc.Check()
		if (err == nil) != (tc.bad == "") || err != nil && !strings.Contains(err.Error(), tc.bad) {
			t.Errorf("%s: %v, want %q", name, err, tc.bad)
		}
	}
}
