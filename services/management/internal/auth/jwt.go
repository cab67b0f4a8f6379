package auth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"gancho/pkg/event"
)

// clockSkew is how far the issuer's clock may be from ours.
const clockSkew = 30 * time.Second

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

// Check reports what is wrong with the settings, each line beginning with the variable's name.
func (c JWT) Check() error {
	jwksURL, hmacSecret := c.JWKSURL, c.HMACSecret
	var errs []error
	if jwksURL == "" && hmacSecret == "" {
		for _, v := range []struct{ name, value string }{{"JWT_ISSUER", c.Issuer}, {"JWT_AUDIENCE", c.Audience}} {
			if v.value != "" {
				errs = append(errs, fmt.Errorf("%s: it has no effect without JWT_JWKS_URL or JWT_HMAC_SECRET; set one of them, or leave it out", v.name))
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
		if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())) {
			errs = append(errs, errors.New("JWT_JWKS_URL: give an https:// address (http:// only for a loopback address)"))
		}
	}
	return errors.Join(errs...)
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
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
				Proxy: nil, TLSHandshakeTimeout: 5 * time.Second, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
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
	opts := []jwt.ParserOption{jwt.WithValidMethods(methods), jwt.WithExpirationRequired(), jwt.WithLeeway(clockSkew), jwt.WithStrictDecoding()}
	if cfg.Issuer != "" {
		opts = append(opts, jwt.WithIssuer(cfg.Issuer))
	}
	if cfg.Audience != "" {
		opts = append(opts, jwt.WithAudience(cfg.Audience))
	}
	return &verifier{key: key, parser: jwt.NewParser(opts...)}, nil
}

// verify returns the grant of a JWT: claim account_id, which names one account, and scope, which may be read.
func (v *verifier) verify(token string) (Grant, bool) {
	var claims struct {
		jwt.RegisteredClaims

		Account string `json:"account_id"`
		Scope   string `json:"scope"`
	}
	if _, err := v.parser.ParseWithClaims(token, &claims, v.key); err != nil || !event.ValidAccount(claims.Account) {
		return Grant{}, false
	}
	name := "jwt"
	if claims.Subject != "" {
		name += ":" + strings.ToValidUTF8(claims.Subject[:min(len(claims.Subject), 64)], "")
	}
	return Grant{Account: claims.Account, ReadOnly: claims.Scope == "read", Name: name}, true
}

// looksLikeJWT tells a JWT from an opaque token.
func looksLikeJWT(token string) bool { return strings.Count(token, ".") == 2 }
