#!/bin/sh
# Starts one Sentinel. Its state and decisions are in sentinel.conf in the working
# directory, which must last; logins are written at each start.
#
# usage: sentinel.sh [redis-server options]
# From the environment:
#   SENTINEL_SELF             host:port under which the other Sentinels reach this one
#   REDIS_FIRST_PRIMARY       host:port of the Redis that is the primary on the first start
#   SENTINEL_DOWN_AFTER       after how many milliseconds of silence a primary is down (5000)
#   REDIS_PASSWORD_SENTINEL   of the user sentinel, at every Redis and every Sentinel
#   REDIS_PASSWORD_LOOKUP     of the user lookup, who may ask for the primary
set -eu

: "${SENTINEL_SELF:?is not set}" "${REDIS_FIRST_PRIMARY:?is not set}"
hash_of() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
peer=$(hash_of "${REDIS_PASSWORD_SENTINEL:?is not set}")
lookup=$(hash_of "${REDIS_PASSWORD_LOOKUP:?is not set}")

conf=$PWD/sentinel.conf
if [ ! -s "$conf" ]; then
	cat >"$conf" <<-CONF
		sentinel resolve-hostnames yes
		sentinel announce-hostnames yes
		sentinel monitor gancho ${REDIS_FIRST_PRIMARY%:*} ${REDIS_FIRST_PRIMARY##*:} 2
	CONF
fi
umask 077
grep -Ev '^(port|dir|user|protected-mode|sentinel (auth-|sentinel-|announce-ip|announce-port|down-after|failover-timeout|parallel-syncs))' "$conf" >"$conf.new"
cat >>"$conf.new" <<-CONF
	port ${SENTINEL_SELF##*:}
	protected-mode no
	sentinel announce-ip ${SENTINEL_SELF%:*}
	sentinel announce-port ${SENTINEL_SELF##*:}
	sentinel down-after-milliseconds gancho ${SENTINEL_DOWN_AFTER:-5000}
	sentinel failover-timeout gancho 30000
	sentinel auth-user gancho sentinel
	sentinel auth-pass gancho $REDIS_PASSWORD_SENTINEL
	sentinel sentinel-user sentinel
	sentinel sentinel-pass $REDIS_PASSWORD_SENTINEL
	user default off resetpass resetkeys resetchannels -@all
	user health on nopass resetkeys resetchannels -@all +ping
	user sentinel on #$peer resetkeys resetchannels &__sentinel__:hello -@all +ping +publish +client|setname +sentinel
	user lookup on #$lookup resetkeys allchannels -@all +ping +hello +client|setname +subscribe +sentinel|get-master-addr-by-name +sentinel|sentinels
CONF
mv "$conf.new" "$conf"
unset REDIS_PASSWORD_SENTINEL REDIS_PASSWORD_LOOKUP
exec redis-server "$conf" --sentinel "$@"
