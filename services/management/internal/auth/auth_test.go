package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap/zaptest"

	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/problem"
)

func tokens(t *testing.T, text string) *Tokens {
	t.Helper()
	set := NewTokens([]byte("names"))
	if err := set.Add("API_TOKENS", text); err != nil {
		t.Fatal(err)
	}
	return set
}

func gate(t *testing.T, cfg Config) *Gate {
	t.Helper()
	if cfg.Tokens == nil {
		cfg.Tokens = tokens(t, "acme:good,acme:reader:read,*:op")
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
		"commas":           {"acme:a, globex:b ,*:c", 3, ""},
		"lines":            {"# ours\nacme:a\n\n  globex:b:read\r\n", 2, ""},
		"base64":           {"acme:YWJj/+==", 1, ""},
		"no account":       {"token", 0, "entry 1 has no token"},
		"bad account":      {"ac me:a", 0, "entry 1 does not begin with an account id"},
		"second is bad":    {"acme:a,acme:", 1, "entry 2 has no token"},
		"bad character":    {"acme:s3cr{t", 0, "entry 1 has a token with characters"},
		"unknown right":    {"acme:a:write", 0, "entry 1 ends in something else than :read"},
		"the same twice":   {"acme:a,globex:a", 1, "entry 2 has the token of another entry"},
		"all are reported": {"x y:1,acme:,acme:b", 1, "entry 2 has no token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := NewTokens([]byte("names"))
			err := set.Add("API_TOKENS", tc.text)
			if set.Len() != tc.count || (err == nil) != (tc.bad == "") || err != nil && !strings.Contains(err.Error(), tc.bad) {
				t.Errorf("%d tokens, %v; want %d and %q", set.Len(), err, tc.count, tc.bad)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cr") || !strings.HasPrefix(err.Error(), "API_TOKENS: ")) {
				t.Errorf("error = %v", err)
			}
		})
	}
}

// TestTokensAreComparedWhole: what stands at a token's place is not good before its whole hash is the same.
func TestTokensAreComparedWhole(t *testing.T) {
	t.Parallel()
	set := tokens(t, "acme:good,globex:other")
	for _, token := range []string{"good", "other"} {
		if _, ok := set.find(token); !ok {
			t.Errorf("%s is unknown", token)
		}
	}
	h := set.hash("guess")
	for i := len(place{}); i < len(h); i++ {
		near := h
		near[i] ^= 1
		set.grants[place(h[:])] = append(set.grants[place(h[:])], held{near, Grant{Account: "acme"}})
	}
	if g, ok := set.find("guess"); ok {
		t.Errorf("a token is good whose hash only begins like another: %+v", g)
	}
	set.grants[place(h[:])] = append(set.grants[place(h[:])], held{h, Grant{Account: "globex"}})
	if g, ok := set.find("guess"); !ok || g.Account != "globex" {
		t.Errorf("of those at one place the right one is not found: %+v", g)
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
		"good":                {http.Header{"Authorization": {"Bearer good"}}, true, 0, Caller{Account: "acme"}},
		"scheme in any case":  {http.Header{"Authorization": {"bEARER good"}}, true, 0, Caller{Account: "acme"}},
		"none":                {nil, false, 401, Caller{}},
		"other scheme":        {http.Header{"Authorization": {"Basic good"}}, false, 401, Caller{}},
		"two headers":         {http.Header{"Authorization": {"Bearer good", "Bearer good"}}, false, 401, Caller{}},
		"bad":                 {http.Header{"Authorization": {"Bearer goo"}}, false, 401, Caller{}},
		"reader reads":        {http.Header{"Authorization": {"Bearer reader"}}, false, 0, Caller{Account: "acme", ReadOnly: true}},
		"reader writes":       {http.Header{"Authorization": {"Bearer reader"}}, true, 403, Caller{}},
		"operator":            {http.Header{"Authorization": {"Bearer op"}, "X-Account-Id": {"globex"}}, true, 0, Caller{Account: "globex", Operator: true}},
		"operator of none":    {http.Header{"Authorization": {"Bearer op"}}, false, 400, Caller{}},
		"operator of nobody":  {http.Header{"Authorization": {"Bearer op"}, "X-Account-Id": {"a.b"}}, false, 400, Caller{}},
		"operator of all":     {http.Header{"Authorization": {"Bearer op"}, "X-Account-Id": {"*"}}, false, 400, Caller{}},
		"own account named":   {http.Header{"Authorization": {"Bearer good"}, "X-Account-Id": {"acme"}}, false, 0, Caller{Account: "acme"}},
		"other account named": {http.Header{"Authorization": {"Bearer good"}, "X-Account-Id": {"globex"}}, false, 403, Caller{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := request("", "192.0.2.1:1000")
			maps.Copy(r.Header, tc.header)
			c, err := g.Check(r, tc.write)
			if err != nil {
				if got := httpstatus.Of(problem.Of(err)); got != tc.status {
					t.Errorf("status = %d, want %d", got, tc.status)
				}
				return
			}
			if strings.Contains(c.Name, "good") || c.Name == "" {
				t.Errorf("name = %q", c.Name)
			}
			if c.Name = ""; tc.status != 0 || c != tc.want {
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

func TestLockOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate(t, Config{})
		const home, away = "192.0.2.1:1", "[2001:db8:1:2::7]:1"
		if s := status(g, request("good", home), false); s != 0 {
			t.Fatal(s)
		}
		for i := range 20 {
			if s := status(g, request(fmt.Sprint("guess", i), home), false); s != 401 {
				t.Fatalf("guess %d: %d", i, s)
			}
		}
		for name, tc := range map[string]struct {
			token, from string
			want        int
		}{
			"another guess":                         {"guess", home, 429},
			"a lucky guess is not told":             {"reader", home, 429},
			"a token that was good here goes on":    {"good", home, 0},
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
		time.Sleep(4 * time.Second)
		if s := status(g, request("reader", home), false); s != 0 {
			t.Errorf("after a pause: %d", s)
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

func TestBucketsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, r := newBuckets(1, 1), newRecent(time.Hour)
		for i := range 3 * maxBuckets {
			b.take(fmt.Sprint(i), time.Now())
			r.add(fmt.Sprint(i), time.Now())
			if i%1000 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		if len(b.keys) > maxBuckets || len(r.keys) > maxBuckets {
			t.Errorf("%d and %d keys, want at most %d", len(b.keys), len(r.keys), maxBuckets)
		}
	})
}

func TestJWTHS256(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	g := gate(t, Config{JWT: JWT{HMACSecret: secret}, BadPerMinute: 1000})
	sign := func(m jwt.SigningMethod, key any, claims jwt.MapClaims) string {
		s, err := jwt.NewWithClaims(m, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	soon, past := time.Now().Add(time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	for name, tc := range map[string]struct {
		token string
		want  int
	}{
		"good":            {sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "globex", "exp": soon, "sub": "ana"}), 0},
		"no exp":          {sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "globex"}), 401},
		"expired":         {sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "globex", "exp": past}), 401},
		"not yet":         {sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "globex", "exp": soon, "nbf": soon}), 401},
		"no account":      {sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"exp": soon}), 401},
		"all accounts":    {sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "*", "exp": soon}), 401},
		"account no text": {sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": 7, "exp": soon}), 401},
		"wrong secret":    {sign(jwt.SigningMethodHS256, []byte(secret+"x"), jwt.MapClaims{"account_id": "globex", "exp": soon}), 401},
		"HS512":           {sign(jwt.SigningMethodHS512, []byte(secret), jwt.MapClaims{"account_id": "globex", "exp": soon}), 401},
		"alg none":        {sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"account_id": "globex", "exp": soon}), 401},
		"ES256":           {sign(jwt.SigningMethodES256, ecKey, jwt.MapClaims{"account_id": "globex", "exp": soon}), 401},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s := status(g, request(tc.token, "192.0.2.1:1"), true); s != tc.want {
				t.Errorf("status = %d, want %d", s, tc.want)
			}
		})
	}
	read := sign(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"account_id": "globex", "exp": soon, "scope": "read"})
	if s := status(g, request(read, "192.0.2.1:1"), true); s != 403 {
		t.Errorf("scope read writes: %d", s)
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

// TestTokenNames: a name is the same wherever the key is, and tells nothing to those without it.
func TestTokenNames(t *testing.T) {
	t.Parallel()
	name := func(key, token string) string {
		set := NewTokens([]byte(key))
		if err := set.Add("API_TOKENS", "acme:"+token); err != nil {
			t.Fatal(err)
		}
		grant, ok := set.find(token)
		if !ok || set.Short() != 1 {
			t.Fatalf("found %v, %d short ones", ok, set.Short())
		}
		return grant.Name
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
