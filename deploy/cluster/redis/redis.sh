#!/bin/sh
# Starts one Redis of a group that Sentinels watch: as the primary when they say that
# it is, else as the replica of the one they name. When none of them answers, as on the
# very first start, REDIS_FIRST_PRIMARY is the primary.
#
# usage: redis.sh [redis-server options]; the data is in the working directory
# From the environment, in addition to the passwords that deploy/redis/start.sh needs:
#   REDIS_SELF                  host:port under which the others reach this one
#   REDIS_FIRST_PRIMARY         host:port
#   SENTINELS                   host:port of each, separated by spaces
#   REDIS_PASSWORD_REPLICATION  of the user as whom replicas log in
#   REDIS_PASSWORD_LOOKUP       of the user who may ask Sentinels for the primary
set -eu

: "${REDIS_SELF:?is not set}" "${REDIS_FIRST_PRIMARY:?is not set}" "${SENTINELS:?is not set}"
here=$(cd "$(dirname "$0")" && pwd)

primary=
for sentinel in $SENTINELS; do
	primary=$(REDISCLI_AUTH=$REDIS_PASSWORD_LOOKUP timeout 2 redis-cli -h "${sentinel%:*}" -p "${sentinel##*:}" --user lookup \
		--no-auth-warning sentinel get-master-addr-by-name gancho 2>/dev/null | paste -sd : -) || primary=
	case $primary in
	*:[0-9]*) break ;; # else it is no answer
	*) primary= ;;
	esac
done
primary=${primary:-$REDIS_FIRST_PRIMARY}

REDIS_MORE_USERS=$here/users.acl
REDIS_MORE_CONF=$(mktemp "${TMPDIR:-/tmp}/replication.conf.XXXXXX")
cat >"$REDIS_MORE_CONF" <<-CONF
	port ${REDIS_SELF##*:}
	replica-announce-ip ${REDIS_SELF%:*}
	replica-announce-port ${REDIS_SELF##*:}
	masteruser replication
	masterauth ${REDIS_PASSWORD_REPLICATION:?is not set}
CONF
if [ "$primary" != "$REDIS_SELF" ]; then
	echo "replicaof ${primary%:*} ${primary##*:}" >>"$REDIS_MORE_CONF"
fi
unset REDIS_PASSWORD_LOOKUP
export REDIS_MORE_USERS REDIS_MORE_CONF
exec /bin/sh "$here/../../redis/start.sh" "$@"
