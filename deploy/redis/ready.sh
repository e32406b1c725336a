#!/bin/sh
# Succeeds when the node at hand has its part in the cluster and, if it is a replica, a whole copy: only then may
# another one be replaced.
set -eu

cli=$(command -v valkey-cli || command -v redis-cli)
ask() { "$cli" "$@" | tr -d '\r'; }

ask cluster info | grep -qx cluster_state:ok
if ask info replication | grep -qx role:slave; then
	ask info replication | grep -qx master_link_status:up
else
	ask cluster nodes | awk '$3 ~ /myself/ { slots = NF > 8 } END { exit !slots }'
fi
