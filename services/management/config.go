package management

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"gancho/pkg/bus"
	"gancho/pkg/egress"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/share"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/console"
	"gancho/services/management/internal/notices"
	"gancho/services/management/internal/proxy"
)

// Config of management.
type Config struct {
	Service service.Config
	Bus     bus.Config
	Limits  topology.Limits
	Egress  egress.Config
	Share   share.Config

	// HTTPAddr is where the API and the console are served. Put a proxy that speaks TLS in front of it.
	HTTPAddr string `env:"HTTP_ADDR" envDefault:":8080"`
	// RedisURL is the Redis that holds the index of recent notifications: redis://user:password@host:6379/0,
	// rediss://..., or Sentinels with ?master_name=. Without it everything but lists of notifications works.
	RedisURL string `env:"REDIS_URL" envDefault:"redis://127.0.0.1:6379/0" secret:"true"`
	// IndexMaxEntries bounds the index in Redis: how many notifications it has over all webhooks, at about 280 bytes
	// each, 400 for those not delivered (of one webhook the newest 1,000), and in the account-wide lists three times as
	// many records at 60 bytes each and as many events at 44. Anything beyond that is read from the streams, which is
	// slower.
	IndexMaxEntries int `env:"INDEX_MAX_ENTRIES" envDefault:"500000" range:"1000..100000000"`
	// APITokens are <account_id>:<token> (or <account_id>:<token>:read, or *:<token> for an operator), separated by
	// commas.
	APITokens string `env:"API_TOKENS"`
	// APITokensFile holds more of them, a line each; lines that begin with # are comments. It is read again when it
	// changes, and at SIGHUP.
	APITokensFile string `env:"API_TOKENS_FILE"`
	// APIRateLimit is how many requests each token may make a second, in bursts of as many. The JWTs of one account
	// count together.
	APIRateLimit int `env:"API_RATE_LIMIT" envDefault:"50" range:"1..1000000"`
	// APIBadTokensPerMinute is how many bad tokens an address may try; further ones are answered 429. Good tokens are
	// let in all the same.
	APIBadTokensPerMinute int `env:"API_BAD_TOKENS_PER_MINUTE" envDefault:"20" range:"1..1000000"`
	// TrustedProxies are the addresses and CIDRs of the proxies in front, separated by commas. Their X-Forwarded-For,
	// -Proto and -Host are believed, for limits, logs and links; those of others are ignored.
	TrustedProxies []string `env:"TRUSTED_PROXIES" envSeparator:","`
	// JWTJWKSURL is where the keys of an issuer of JWTs are; the claim account_id says whose they are.
	JWTJWKSURL string `env:"JWT_JWKS_URL"`
	// JWTHMACSecret verifies JWTs signed with HS256 instead; at least 32 bytes.
	JWTHMACSecret string `env:"JWT_HMAC_SECRET" secret:"true"`
	// JWTIssuer is the required value of the claim iss; empty accepts any.
	JWTIssuer string `env:"JWT_ISSUER"`
	// JWTAudience is a value that the claim aud must contain; empty accepts any. Set it when the issuer's tokens are
	// for other services too.
	JWTAudience string `env:"JWT_AUDIENCE"`
	// WebhooksPerAccount is how many webhooks one account may have.
	WebhooksPerAccount int `env:"WEBHOOKS_PER_ACCOUNT" envDefault:"20000" range:"1..1000000"`
	// ConsolePlainHTTP accepts sessions of the console over plain HTTP on every host, readable for others on the way.
	// Without it that works for loopback addresses only.
	ConsolePlainHTTP bool `env:"CONSOLE_PLAIN_HTTP" envDefault:"false"`
	// ConsoleFrameAncestors are the origins whose pages may show the console in a frame, in sessions of portal links,
	// separated by commas: https://crm.example.com or https://*.example.com.
	ConsoleFrameAncestors []string `env:"CONSOLE_FRAME_ANCESTORS" envSeparator:","`
	// EventNames are event names that webhooks may use in addition to RD Station's, separated by commas.
	EventNames []string `env:"EVENT_NAMES" envSeparator:","`
	// EventTypesDir is a folder with samples of further events: files <event_name>.json, each a body or {"description":
	// {"en", "pt-BR"}, "sample"}. Webhooks may name these events too.
	EventTypesDir string `env:"EVENT_TYPES_DIR"`
	// PublicURL is the address of the API and the console as clients see it, such as https://gancho.example.com. Links
	// in answers begin with it. Empty: scheme and host of the request.
	PublicURL string `env:"PUBLIC_URL"`
	// SMTPURL is the mail server for notices to owners: smtp://user:password@host:587?from=gancho@example.com
	// (STARTTLS, which may be missing on a loopback address only) or smtps://. Without it notices go to URLs and stand
	// in the console. It needs PUBLIC_URL.
	SMTPURL string `env:"SMTP_URL" secret:"true"`
	// EgressPublished are the addresses and CIDRs that requests to receivers come from, separated by commas. GET
	// /crm/v2/egress answers them, for the receivers' allow lists.
	EgressPublished []string `env:"EGRESS_PUBLISHED" envSeparator:","`
	// EncryptionKeyFile holds the keys that seal auth keys and signing secrets, a line each: <key id>:<base64 of 32
	// bytes>. The first seals, all open.
	EncryptionKeyFile string `env:"ENCRYPTION_KEY_FILE"`

	// Listener, if set, is served instead of HTTPAddr. It has no variable.
	Listener net.Listener
}

// Validate reports unusable settings. Files are looked at here, so that a wrong one stops the process
// before anything starts.
func (c *Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.HTTPAddr); err != nil && c.Listener == nil {
		errs = append(errs, fmt.Errorf("HTTP_ADDR: %q is not host:port; give an address such as :8080 or 127.0.0.1:8080", c.HTTPAddr))
	}
	if _, err := auth.OpenTokens(nil, c.APITokens, c.APITokensFile); err != nil {
		errs = append(errs, err)
	}
	if _, err := proxy.Parse(c.TrustedProxies); err != nil {
		errs = append(errs, fmt.Errorf("TRUSTED_PROXIES: %w", err))
	}
	if c.APITokens == "" && c.APITokensFile == "" && c.JWTJWKSURL == "" && c.JWTHMACSecret == "" {
		errs = append(errs, errors.New("API_TOKENS: no one could use the API; set it, API_TOKENS_FILE, "+
			"JWT_JWKS_URL or JWT_HMAC_SECRET"))
	}
	errs = append(errs, c.jwt().Check(), console.CheckAncestors(c.ConsoleFrameAncestors))
	if _, err := catalogue.New(c.EventNames, ""); err != nil {
		errs = append(errs, fmt.Errorf("EVENT_NAMES: %w", err))
	} else if _, err := catalogue.New(nil, c.EventTypesDir); err != nil {
		errs = append(errs, fmt.Errorf("EVENT_TYPES_DIR: %w", err))
	}
	if u, err := url.Parse(c.PublicURL); err != nil || c.PublicURL != "" &&
		(u.Scheme != "https" && u.Scheme != "http" ||
			u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
		errs = append(errs, fmt.Errorf("PUBLIC_URL: %q is not of the form https://host[:port]", c.PublicURL))
	}
	if c.SMTPURL != "" {
		if _, err := notices.ParseServer(c.SMTPURL); err != nil {
			errs = append(errs, err)
		}
		if c.PublicURL == "" {
			errs = append(errs, errors.New("SMTP_URL: e-mails link to the console; set PUBLIC_URL too"))
		}
	}
	for i, text := range c.EgressPublished {
		c.EgressPublished[i] = strings.TrimSpace(text)
		if _, err := netip.ParseAddr(c.EgressPublished[i]); err == nil {
			continue
		}
		if _, err := netip.ParsePrefix(c.EgressPublished[i]); err != nil {
			errs = append(errs, fmt.Errorf("EGRESS_PUBLISHED: %q is neither an address nor a CIDR; give such as "+
				"203.0.113.7 or 203.0.113.0/28", text))
		}
	}
	if _, err := egress.New(c.Egress); err != nil {
		errs = append(errs, err)
	}
	if client, err := suspension.Open(c.RedisURL); err != nil {
		errs = append(errs, err)
	} else {
		_ = client.Close()
	}
	if _, _, err := seal.Load(c.EncryptionKeyFile); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Config) jwt() auth.JWT {
	return auth.JWT{JWKSURL: c.JWTJWKSURL, HMACSecret: c.JWTHMACSecret, Issuer: c.JWTIssuer, Audience: c.JWTAudience}
}
