#!/bin/sh
# Starts Redis with the users of users.acl. Their passwords come from the environment
# and reach neither a file nor the command line: only their SHA-256 does.
#
# A power cut can tear the append-only file. Redis starts all the same: the file is cut
# where it breaks off, and one that cannot be repaired is set aside in appendonlydir.torn.
# The services rebuild from the broker everything that Redis has lost.
#
# usage: start.sh [redis-server options]; the data is in the working directory
#
# deploy/cluster/redis/redis.sh adds users (REDIS_MORE_USERS) and settings (REDIS_MORE_CONF)
# from files. The configuration is a copy, because Sentinel has it rewritten.
set -eu

log=appendonlydir
manifest=$log/appendonly.aof.manifest
listed() { grep -q '^file ' "$manifest" 2>/dev/null; } # a torn manifest is empty or zeros
sound() { listed && redis-check-aof "$manifest" </dev/null >/dev/null 2>&1; }
if [ -d "$log" ] && ! sound; then
	if listed; then
		echo "start.sh: the append-only file is damaged; cutting it where it breaks off" >&2
		yes 2>/dev/null | redis-check-aof --fix "$manifest" >&2 || true
	fi
	if ! sound; then
		echo "start.sh: the append-only file cannot be repaired; moving it to $PWD/$log.torn" >&2
		rm -rf "$log.torn"
		mv "$log" "$log.torn"
	fi
fi

here=$(cd "$(dirname "$0")" && pwd)
acl=$(mktemp "${TMPDIR:-/tmp}/users.acl.XXXXXX")
conf=$(mktemp "${TMPDIR:-/tmp}/redis.conf.XXXXXX")
cat "$here/redis.conf" ${REDIS_MORE_CONF:+"$REDIS_MORE_CONF"} >"$conf"
cat "$here/users.acl" ${REDIS_MORE_USERS:+"$REDIS_MORE_USERS"} | sed -e '/^#/d' -e '/^$/d' >"$acl"

for name in $(grep -o '{REDIS_PASSWORD_[A-Z]*}' "$acl" | tr -d '{}' | sort -u); do
	eval "password=\${$name:-}"
	if [ -z "$password" ]; then
		echo "start.sh: $name is not set" >&2
		exit 2
	fi
	hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
	sed -i "s/{$name}/$hash/" "$acl"
	unset "$name"
done
unset password

exec redis-server "$conf" --aclfile "$acl" "$@"
