#!/bin/sh
# Starts a node of the cluster.
set -eu

cli=$(command -v valkey-cli || command -v redis-cli || echo redis-cli)

# ask HOST PORT COMMAND...: nothing where there is no answer.
ask() { timeout 1 "$cli" -h "$1" -p "$2" "$3" "$4" </dev/null 2>/dev/null | tr -d '\r' || true; }
# The address and port of each other node, as in fd00::1:6379@16379,name.
others() { awk 'NF >= 8 && !/myself/ { sub(/@.*/, "", $2); sub(/:[0-9]+$/, " &", $2); sub(/ :/, " ", $2); print $2 }' /tmp/nodes.conf; }

# replaced tells whether one of the others says that this node has no slots.
replaced() {
	others | while read -r host port; do
		ask "$host" "$port" cluster nodes
	done | awk -v me="$me" '$1 == me && NF == 8 { found = 1 } END { exit !found }'
}

# promote has the replica of this node that got most of what it wrote take its place at once, with the consent of the
# other masters. By themselves they would take this node for dead before that, and need a node timeout for it.
promote() {
	others | while read -r host port; do
		if ask "$host" "$port" cluster nodes | awk -v me="$me" '/myself,slave/ && $4 == me { found = 1 } END { exit !found }'; then
			offset=$(ask "$host" "$port" info replication | sed -n 's/^slave_repl_offset://p')
			echo "${offset:-0} $host $port"
		fi
	done | sort -n | tail -n 1 | while read -r _ host port; do
		echo "restarted without data: $host:$port is asked to take its place"
		timeout 1 "$cli" -h "$host" -p "$port" cluster failover force </dev/null || true
	done
}

# A node that was restarted comes back without its data. If it was a master it must not come back as one before a
# replica has taken its place, or the replicas would follow it and be emptied too: it waits for that, 15 s at most,
# after which there is none.
if [ -s /tmp/nodes.conf ]; then
	me=$(awk '/myself/ { print $1 }' /tmp/nodes.conf)
	replaced || promote
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
