package suspension

import (
	"cmp"
	"strings"

	"github.com/redis/go-redis/v9"

	"gancho/pkg/address"
)

// Cause says in a few words why Redis cannot be used. It holds no part of a password.
func Cause(err error) string {
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
	case redis.HasErrorPrefix(err, "CROSSSLOT"), redis.HasErrorPrefix(err, "MOVED"),
		redis.HasErrorPrefix(err, "CLUSTERDOWN"):
		return "it is a Redis Cluster, or part of one: use a single Redis, or one that Sentinels watch"
	}
	return cmp.Or(address.Cause(err), "it refuses, or is no Redis")
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
