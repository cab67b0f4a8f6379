package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"gancho/pkg/address"
	"gancho/pkg/event"
)

// clockSkew is how far the issuer's clock may be from ours.
const clockSkew = 30 * time.Second

// maxSubject is how much of a JWT's subject is kept, in bytes.
const maxSubject = 128

// minHMACBytes is what HS256 needs (RFC 7518, section 3.2).
const minHMACBytes = 32

// verifier checks JWTs. The algorithm is fixed by the configuration, never by the token.
type verifier struct {
	parser *jwt.Parser
	key    jwt.Keyfunc
}

// JWT says whose tokens are good: those signed with a key of the set at JWKSURL or with HMACSecret. With
// neither there are none. Issuer and Audience, where they are set, must be the token's iss and among its aud.
type JWT struct{ JWKSURL, HMACSecret, Issuer, Audience string }

// Check reports the problems of the settings, one a line, each beginning with the variable's name.
func (c JWT) Check() error {
	jwksURL, hmacSecret := c.JWKSURL, c.HMACSecret
	var errs []error
	if jwksURL == "" && hmacSecret == "" {
		for _, v := range []struct{ name, value string }{{"JWT_ISSUER", c.Issuer}, {"JWT_AUDIENCE", c.Audience}} {
			if v.value != "" {
				errs = append(errs, fmt.Errorf("%s: it has no effect without JWT_JWKS_URL or JWT_HMAC_SECRET; set "+
					"one of them, or leave it out", v.name))
			}
		}
	}
	if jwksURL != "" && hmacSecret != "" {
		errs = append(errs, errors.New("JWT_JWKS_URL: it cannot be set together with JWT_HMAC_SECRET; give one of them"))
	}
	if hmacSecret != "" && len(hmacSecret) < minHMACBytes {
		errs = append(errs, fmt.Errorf("JWT_HMAC_SECRET: it is too short; HS256 needs at least %d bytes", minHMACBytes))
	}
	if jwksURL != "" {
		u, err := url.Parse(jwksURL)
		if err != nil || u.Host == "" || u.Scheme != "https" &&
			!(u.Scheme == "http" && address.Loopback(u.Hostname())) {
			errs = append(errs, errors.New("JWT_JWKS_URL: give an https:// address "+
				"(http:// only for a loopback address)"))
		}
	}
	return errors.Join(errs...)
}

// newVerifier returns nil when JWTs are not configured. Keys of a JWKS are fetched in the background and
// again each hour, and when an unknown key id turns up, at most once in 10 s.
func newVerifier(ctx context.Context, cfg JWT, log *zap.Logger) (*verifier, error) {
	methods := []string{"HS256"}
	var key jwt.Keyfunc
	switch {
	case cfg.HMACSecret != "":
		secret := []byte(cfg.HMACSecret)
		key = func(*jwt.Token) (any, error) { return secret, nil }
	case cfg.JWKSURL != "":
		methods = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
		set, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{cfg.JWKSURL}, keyfunc.Override{
			Client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
				Proxy: nil, TLSHandshakeTimeout: 5 * time.Second,
				DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			}},
			HTTPTimeout:       10 * time.Second,
			RateLimitWaitMax:  time.Millisecond,
			RefreshUnknownKID: rate.NewLimiter(rate.Every(10*time.Second), 1),
			RefreshErrorHandlerFunc: func(string) func(context.Context, error) {
				return func(_ context.Context, err error) {
					log.Warn("the keys at JWT_JWKS_URL cannot be read; the known ones stay in use", zap.Error(err))
				}
			},
		})
		if err != nil {
			return nil, fmt.Errorf("JWT_JWKS_URL: %w", err)
		}
		key = set.Keyfunc
	default:
		return nil, nil
	}
	opts := []jwt.ParserOption{
		jwt.WithValidMethods(methods), jwt.WithExpirationRequired(), jwt.WithLeeway(clockSkew),
		jwt.WithStrictDecoding(), jwt.WithJSONNumber(),
	}
	if cfg.Issuer != "" {
		opts = append(opts, jwt.WithIssuer(cfg.Issuer))
	}
	if cfg.Audience != "" {
		opts = append(opts, jwt.WithAudience(cfg.Audience))
	}
	return &verifier{key: key, parser: jwt.NewParser(opts...)}, nil
}

// verify returns whose a JWT is. The error names the cause for its owner. Claims count by their exact names:
// a map keeps Account_Id apart from account_id, where a struct would take either.
func (v *verifier) verify(token string) (Caller, error) {
	claims := jwt.MapClaims{}
	if _, err := v.parser.ParseWithClaims(token, claims, v.key); err != nil {
		return Caller{}, cause(err)
	}
	account, ok := accountOf(claims["account_id"])
	if !ok {
		return Caller{}, errors.New("the token names no account: its claim account_id must be an " +
			"account's id, a string or a whole number")
	}
	c := Caller{Account: account, Kind: KindJWT, Name: "jwt", ReadOnly: !mayWrite(claims), limit: "jwt " + account}
	sub, _ := claims["sub"].(string)
	if n, ok := claims["sub"].(json.Number); ok { // some issuers write their users' numbers
		sub = n.String()
	}
	if sub != "" {
		c.Name = strings.ToValidUTF8(sub[:min(len(sub), maxSubject)], "")
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil {
		return Caller{}, errors.New("the token's claim exp is no time")
	}
	c.Expires = expires.Time
	return c, nil
}

// accountOf reads the claim account_id.
func accountOf(claim any) (string, bool) {
	switch v := claim.(type) {
	case string:
		return v, event.ValidAccount(v)
	case json.Number:
		digits, fraction, _ := strings.Cut(v.String(), ".") // 123.0 is 123
		_, whole := new(big.Int).SetString(digits, 10)
		return digits, whole && strings.Trim(fraction, "0") == "" && event.ValidAccount(digits)
	}
	return "", false
}

// mayWrite reports whether the claims allow changes: those of a token without scope and scp do, those with either
// only where it holds write or webhooks:write.
func mayWrite(claims jwt.MapClaims) bool {
	restricted := false
	for _, name := range []string{"scope", "scp"} {
		claim, has := claims[name]
		restricted = restricted || has
		var words []string
		switch v := claim.(type) {
		case string:
			words = strings.Fields(v)
		case []any:
			for _, w := range v {
				if s, ok := w.(string); ok {
					words = append(words, s)
				}
			}
		}
		if slices.Contains(words, "write") || slices.Contains(words, "webhooks:write") {
			return true
		}
	}
	return !restricted
}

// causes are the errors of the JWT library in the order in which they matter, in words for a token's owner.
var causes = []struct {
	is   error
	text string
}{
	{
		jwkset.ErrKeyNotFound,
		"is signed with a key (kid) that its issuer's key set does not have; was it issued by another one?",
	},
	{jwt.ErrTokenMalformed, "is no well-formed JWT"},
	{jwt.ErrTokenUnverifiable, "cannot be verified: its kid or alg does not fit the keys known here"},
	{
		jwt.ErrTokenSignatureInvalid,
		"has a signature that does not verify: another key or algorithm made it, or it was changed",
	},
	{jwt.ErrTokenExpired, "has expired"},
	{jwt.ErrTokenNotValidYet, "is not valid yet (nbf)"},
	{jwt.ErrTokenInvalidAudience, "is for another audience (aud) than JWT_AUDIENCE"},
	{jwt.ErrTokenInvalidIssuer, "is of another issuer (iss) than JWT_ISSUER"},
}

// cause says why a JWT is refused.
func cause(err error) error {
	var texts []string
	for _, c := range causes {
		if errors.Is(err, c.is) {
			texts = append(texts, c.text)
		}
	}
	if errors.Is(err, jwt.ErrTokenRequiredClaimMissing) {
		for _, claim := range []string{"exp", "aud", "iss"} {
			if strings.Contains(err.Error(), claim+" claim is required") {
				texts = append(texts, "has no claim "+claim)
			}
		}
	}
	if errors.Is(err, jwt.ErrInvalidType) {
		for _, claim := range []string{"exp", "nbf", "iat", "aud", "iss"} {
			if strings.Contains(err.Error(), claim+" is invalid") {
				texts = append(texts, "has a claim "+claim+" of the wrong type")
			}
		}
	}
	if len(texts) == 0 {
		texts = []string{"has claims that cannot be read"}
	}
	if len(texts) > 1 && errors.Is(err, jwkset.ErrKeyNotFound) {
		texts = texts[:1]
	}
	return errors.New("the token " + strings.Join(texts, " and "))
}

// looksLikeJWT distinguishes a JWT from an opaque token.
func looksLikeJWT(token string) bool { return strings.Count(token, ".") == 2 }
