package suspension

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// Cause says in a few words why Redis cannot be used. It holds no part of a password.
func Cause(err error) string {
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var timeout net.Error
	switch {
	case redis.HasErrorPrefix(err, "WRONGPASS"), redis.HasErrorPrefix(err, "NOAUTH"):
		return "login refused: check the user and the password of REDIS_URL"
	case redis.HasErrorPrefix(err, "NOPERM"), strings.Contains(errorText(err), "NOPERM"),
		strings.Contains(errorText(err), "The user executing the script can't"):
		return "the user may not do this: give it the rights of deploy/redis/users.acl"
	case redis.HasErrorPrefix(err, "OOM"), strings.Contains(errorText(err), "OOM command not allowed"):
		return "memory is full: raise maxmemory or lower INDEX_MAX_ENTRIES"
	case redis.HasErrorPrefix(err, "LOADING"):
		return "it is loading its data"
	case redis.HasErrorPrefix(err, "READONLY"):
		return "it is a replica and takes no writes: name the Sentinels in REDIS_URL, or the primary"
	case redis.HasErrorPrefix(err, "MISCONF"):
		return "it cannot write to its disk"
	case redis.HasErrorPrefix(err, "CROSSSLOT"), redis.HasErrorPrefix(err, "MOVED"), redis.HasErrorPrefix(err, "CLUSTERDOWN"):
		return "it is a Redis Cluster, or part of one: use a single Redis, or one that Sentinels watch"
	case errors.As(err, &name) && name.IsTimeout:
		return "the name server does not answer"
	case errors.As(err, &name):
		return "unknown name"
	case errors.As(err, &certificate), errors.As(err, &record), errors.As(err, new(x509.UnknownAuthorityError)):
		return "TLS: the certificate is not accepted, or the server does not speak TLS"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused: nothing listens there"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case strings.Contains(errorText(err), "EOF"), errors.Is(err, syscall.ECONNRESET):
		return "the connection was closed: does one side speak TLS and the other not?"
	}
	return "it refuses, or is no Redis"
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Hosts returns the hosts of a REDIS_URL, or the path of its socket, without anything else of it.
func Hosts(rawURL string) string {
	a, err := urls.Parse(rawURL)
	if err != nil {
		return ""
	}
	if len(a.Hosts) == 0 {
		return a.Path
	}
	return strings.Join(a.Hosts, ",")
}
