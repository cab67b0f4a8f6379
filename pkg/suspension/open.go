package suspension

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"gancho/pkg/address"
	"gancho/pkg/ca"
)

// How long one exchange with Redis may take. A caller that has waited this
// long goes on without; delivery never waits for Redis.
const (
	dialTimeout = 500 * time.Millisecond
	opTimeout   = 500 * time.Millisecond
)

// urls is the form of REDIS_URL.
var urls = address.Form{
	Schemes: []string{"redis", "rediss", "unix"}, Hosts: true, Database: true, Socket: "unix",
	Parameters: []string{
		"master_name", "sentinel_username", "sentinel_password", "ca_file", "skip_verify", "db", "protocol",
		"client_name",
		"pool_size", "pool_fifo", "min_idle_conns", "max_idle_conns", "max_active_conns", "conn_max_idle_time",
		"conn_max_lifetime",
	},
}

// Open returns a client for a REDIS_URL. It does not connect: a server that is
// away shows in the first command. Forms:
//
//	redis://[user:password@]host[:port][/db]      one server
//	rediss://...[?ca_file=/path/to/ca.pem]        the same over TLS, with an authority in addition to the system's
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
	a, err := urls.Parse(rawURL)
	if err != nil {
		return nil, malformed(err.Error())
	}
	take := func(name string) string {
		v := a.Parameters.Get(name)
		a.Parameters.Del(name)
		return v
	}
	master := take("master_name")
	sentinelUser, sentinelPassword := take("sentinel_username"), take("sentinel_password")
	caFile := take("ca_file")
	if a.Parameters.Has("skip_verify") {
		return nil, malformed("skip_verify is not supported: name the authority " +
			"of the server's certificate with ca_file")
	}

	addrs := a.Hosts
	if len(addrs) > 1 && master == "" {
		return nil, malformed("it names several hosts, which are taken for Sentinels, without master_name")
	}
	if master == "" && (sentinelUser != "" || sentinelPassword != "") {
		return nil, malformed("it has a Sentinel login without master_name")
	}
	o, err := redis.ParseURL(a.URL().String())
	if err != nil { // it would quote the address
		return nil, malformed("a parameter has a value that is not allowed")
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
			return nil, malformed(err.Error())
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

// rootsWith returns the system's authorities and those in a PEM file, with errors that do not quote the address.
func rootsWith(file string) (*x509.CertPool, error) {
	roots, err := ca.Pool(file)
	switch {
	case errors.Is(err, ca.ErrNone):
		return nil, errors.New("ca_file names a file without a certificate in PEM")
	case err != nil:
		return nil, errors.New("ca_file names no file that can be read")
	}
	return roots, nil
}

func malformed(problem string) error {
	return fmt.Errorf("REDIS_URL: %s; write redis://[user:password@]host[:port][/db], "+
		"rediss:// for TLS, or redis://sentinel1,sentinel2/db?master_name=name", problem)
}

// muteClient keeps go-redis from writing plain lines to stderr: every failure is returned to the caller,
// who logs it once.
var muteClient = sync.OnceFunc(func() { redis.SetLogger(mute{}) })

type mute struct{}

func (mute) Printf(context.Context, string, ...any) {}
