#!/bin/sh
# Starts Redis with the users of users.acl. Their passwords come from the environment
# and reach neither a file nor the command line: only their SHA-256 does.
#
# usage: start.sh [redis-server options]; the data is in the working directory
set -eu

here=$(cd "$(dirname "$0")" && pwd)

hash_of() {
	if [ -z "$2" ]; then
		echo "start.sh: $1 is not set" >&2
		exit 2
	fi
	printf %s "$2" | sha256sum | cut -d ' ' -f 1
}

monitor=$(hash_of REDIS_PASSWORD_MONITOR "${REDIS_PASSWORD_MONITOR:-}")
management=$(hash_of REDIS_PASSWORD_MANAGEMENT "${REDIS_PASSWORD_MANAGEMENT:-}")
acl=$(mktemp "${TMPDIR:-/tmp}/users.acl.XXXXXX")
sed -e '/^#/d' -e '/^$/d' \
	-e "s/{REDIS_PASSWORD_MONITOR}/$monitor/" \
	-e "s/{REDIS_PASSWORD_MANAGEMENT}/$management/" \
	"$here/users.acl" >"$acl"

unset REDIS_PASSWORD_MONITOR REDIS_PASSWORD_MANAGEMENT
exec redis-server "$here/redis.conf" --aclfile "$acl" "$@"
