#!/bin/sh
# Starts a node of the cluster.
set -eu

# A node that was restarted comes back without its data. If it was a master it must not come back as one before a
# replica has taken its place, or the replicas would follow it and be emptied too: it waits for three node timeouts.
if [ -s /tmp/nodes.conf ]; then
	echo "restarted: waiting 15 s for the others to see that this node was gone"
	sleep 15
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
