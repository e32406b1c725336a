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
exec docker-entrypoint.sh /swarmgate/redis.conf --maxmemory "$((NODE_MEMORY_MB * 3 / 4))mb"
