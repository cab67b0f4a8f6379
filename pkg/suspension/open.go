package suspension

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// How long one exchange with Redis may take. A caller that has waited this
// long goes on without; delivery never waits for Redis.
const (
	dialTimeout = 500 * time.Millisecond
	opTimeout   = 500 * time.Millisecond
)

// Open returns a client for a REDIS_URL. It does not connect: a server that is
// away shows in the first command. Forms:
//
//	redis://[user:password@]host[:port][/db]      one server
//	rediss://...[?ca_file=/path/to/ca.pem]        the same over TLS, with an authority beside the system's
//	unix://[user:password@]/path/to/socket[?db=n] one server on this machine
//	redis://s1[:port],s2[:port]/db?master_name=x  Sentinels (default port 26379)
//
// With Sentinels the user and password are those of the Redis servers;
// sentinel_username and sentinel_password are parameters. The server's
// certificate is always verified. Timeouts are short
// and commands are not repeated: callers decide what to do about a failure. An
// error never quotes the URL, which may hold a password.
func Open(rawURL string) (redis.UniversalClient, error) {
	muteClient()
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		return nil, malformed("it has no scheme")
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	userinfo, hosts := "", authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		userinfo, hosts = authority[:i+1], authority[i+1:]
	}
	path, query, _ := strings.Cut(tail, "?")
	params, err := url.ParseQuery(query)
	if err != nil {
		return nil, malformed("its parameters are not of the form name=value")
	}
	take := func(name string) string {
		v := params.Get(name)
		params.Del(name)
		return v
	}
	master := take("master_name")
	sentinelUser, sentinelPassword := take("sentinel_username"), take("sentinel_password")

	caFile := take("ca_file")
	if params.Has("skip_verify") {
		return nil, malformed("skip_verify is not supported: name the authority of the server's certificate with ca_file")
	}

	addrs := strings.Split(hosts, ",")
	if len(addrs) > 1 && master == "" {
		return nil, malformed("it names several hosts, which are taken for Sentinels, without master_name")
	}
	if master == "" && (sentinelUser != "" || sentinelPassword != "") {
		return nil, malformed("it has a Sentinel login without master_name")
	}
	single := scheme + "://" + userinfo + addrs[0] + path
	if len(params) > 0 {
		single += "?" + params.Encode()
	}
	o, err := redis.ParseURL(single)
	if err != nil {
		// The error may quote the URL; its last part says what is wrong.
		if e, ok := errors.AsType[*url.Error](err); ok {
			return nil, malformed("it cannot be parsed: " + reasonOf(e))
		}
		return nil, malformed(strings.TrimPrefix(err.Error(), "redis: "))
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, opTimeout, opTimeout, opTimeout
	o.DialerRetries = 1
	o.MaxRetries = -1
	o.ContextTimeoutEnabled = true
	o.DisableIdentity = true
	if caFile != "" {
		if o.TLSConfig == nil {
			return nil, malformed("ca_file is for rediss:// addresses")
		}
		if o.TLSConfig.RootCAs, err = rootsWith(caFile); err != nil {
			return nil, fmt.Errorf("REDIS_URL: ca_file: %w", err)
		}
	}
	if master == "" {
		return redis.NewClient(o), nil
	}

	if o.Network == "unix" {
		return nil, malformed("Sentinels cannot be reached through a socket")
	}
	for i, a := range addrs {
		if a == "" {
			return nil, malformed("one of its Sentinels is empty")
		}
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			host, port = strings.Trim(a, "[]"), "26379"
		}
		addrs[i] = net.JoinHostPort(host, port)
	}
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // each server's own name, not the first one's
	}
	return redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName:            master,
		SentinelAddrs:         addrs,
		SentinelUsername:      sentinelUser,
		SentinelPassword:      sentinelPassword,
		Username:              o.Username,
		Password:              o.Password,
		DB:                    o.DB,
		TLSConfig:             o.TLSConfig,
		PoolSize:              o.PoolSize,
		DialTimeout:           o.DialTimeout,
		ReadTimeout:           o.ReadTimeout,
		WriteTimeout:          o.WriteTimeout,
		PoolTimeout:           o.PoolTimeout,
		DialerRetries:         o.DialerRetries,
		MaxRetries:            o.MaxRetries,
		ContextTimeoutEnabled: o.ContextTimeoutEnabled,
		DisableIdentity:       o.DisableIdentity,
	}), nil
}

// rootsWith returns the system's authorities and those in a PEM file.
func rootsWith(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w; give a readable PEM file", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate; give a PEM file with at least one", file)
	}
	return roots, nil
}

func malformed(problem string) error {
	return fmt.Errorf("REDIS_URL: %s; write redis://[user:password@]host[:port][/db], "+
		"rediss:// for TLS, or redis://sentinel1,sentinel2/db?master_name=name", problem)
}

// reasonOf returns what is wrong with a URL without quoting any of it.
func reasonOf(e *url.Error) string {
	switch {
	case strings.Contains(e.Err.Error(), "port"):
		return "the port is not a number"
	case strings.Contains(e.Err.Error(), "userinfo"):
		return "the password holds characters that must be percent-encoded"
	default:
		return "a character in it must be percent-encoded"
	}
}

// muteClient keeps go-redis from writing plain lines to stderr: every failure is returned to the caller,
// who logs it once.
var muteClient = sync.OnceFunc(func() { redis.SetLogger(mute{}) })

type mute struct{}

func (mute) Printf(context.Context, string, ...any) {}
