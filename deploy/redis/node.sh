#!/bin/sh
# Starts a node of the cluster.
set -eu

cli=$(command -v valkey-cli || command -v redis-cli || echo redis-cli)

# replaced tells whether one of the others says that this node has no slots.
replaced() {
	awk 'NF >= 8 && !/myself/ { split($2, at, /[:@]/); print at[1], at[2] }' /tmp/nodes.conf | while read -r host port; do
		timeout 1 "$cli" -h "$host" -p "$port" cluster nodes </dev/null 2>/dev/null
	done | awk -v me="$(awk '/myself/ { print $1 }' /tmp/nodes.conf)" '$1 == me && NF == 8 { found = 1 } END { exit !found }'
}

# A node that was restarted comes back without its data. If it was a master it must not come back as one before a
# replica has taken its place, or the replicas would follow it and be emptied too: it waits for that, or for
# three node timeouts, after which there is none.
if [ -s /tmp/nodes.conf ]; then
	echo "restarted: waiting until another node has its slots, 15 s at most"
	end=$(($(date +%s) + 15))
	while [ "$(date +%s)" -lt "$end" ] && ! replaced; do
		sleep 0.2
	done
fi

# A quarter stays for replication buffers and copies on write.
set -- /swarmgate/redis.conf --maxmemory "$((NODE_MEMORY_MB * 3 / 4))mb"
# Where a node has another address at each start, it tells the others which.
if [ -n "${POD_IP:-}" ]; then
	set -- "$@" --cluster-announce-ip "$POD_IP"
fi
# The password that redis-cli takes from the same variable. In a file, as every process may read a command line.
if [ -n "${REDISCLI_AUTH:-}" ]; then
	(umask 077 && printf 'requirepass "%s"\nmasterauth "%s"\n' "$REDISCLI_AUTH" "$REDISCLI_AUTH" >/tmp/auth.conf)
	set -- "$@" --include /tmp/auth.conf
fi
exec docker-entrypoint.sh "$@"
