#!/bin/sh
# Joins the nodes at the addresses given into one Redis Cluster: at first the first half are masters and the others
# their replicas. What is done already is left as it is, so it may run at any time: it forms a new cluster, finishes
# a half-formed one, takes in a node that was made anew, and does nothing to a whole one.
set -eu

first=$1
masters=$(($# / 2))
slots=16384
cli=$(command -v valkey-cli || command -v redis-cli)

ask() {
	host=$1
	shift
	timeout 5 "$cli" -h "$host" "$@"
}

# await WHAT COMMAND...: until the command succeeds, a minute at most.
await() {
	what=$1
	shift
	tries=0
	until "$@"; do
		tries=$((tries + 1))
		if [ $tries -gt 120 ]; then
			echo "not within a minute: $what" >&2
			exit 1
		fi
		sleep 0.5
	done
}

answers() { [ "$(ask "$1" ping 2>&1)" = PONG ]; }
info() { ask "$1" cluster info | tr -d '\r' | grep -qx "$2"; }
id() { ask "$1" cluster myid; }
known() { ask "$1" cluster nodes | grep -q "^$2 .* connected"; }
# empty NODE: it is a master of nothing.
empty() { ask "$1" cluster nodes | awk '$3 ~ /myself/ { none = $3 ~ /master/ && NF == 8 } END { exit !none }'; }
replica() { ask "$first" cluster nodes | grep -q "^$1 .*slave"; }
# The master with the fewest replicas, as the first node sees it.
neediest() {
	ask "$first" cluster nodes | awk '
		$3 ~ /master/ && $3 !~ /fail/ && NF > 8 { replicas[$1] += 0 }
		$3 ~ /slave/ && $3 !~ /fail/ { replicas[$4]++; }
		$3 ~ /master/ && NF > 8 { serves[$1] = 1 }
		END { for (m in serves) if (best == "" || replicas[m] < replicas[best]) best = m; print best }'
}

for node; do
	await "$node answers" answers "$node"
done
for node; do
	[ "$node" = "$first" ] || ask "$first" cluster meet "$node" 6379 >/dev/null
done
for node; do
	for other; do
		await "$node knows $other" known "$node" "$(id "$other")"
	done
done
# Whom a node made anew replaced.
for gone in $(ask "$first" cluster nodes | awk '$3 ~ /noaddr/ { print $1 }'); do
	for node; do
		ask "$node" cluster forget "$gone" >/dev/null || true
	done
done

if ! info "$first" "cluster_slots_assigned:$slots"; then
	i=0
	for node; do
		[ $i -lt $masters ] || break
		# Fails where slots are taken, as in a cluster that was half formed.
		ask "$node" cluster addslotsrange $((slots * i / masters)) $((slots * (i + 1) / masters - 1)) >/dev/null || true
		i=$((i + 1))
	done
fi
for node; do
	await "$node knows who has which slots" info "$node" "cluster_slots_assigned:$slots"
done
for node; do
	if empty "$node"; then
		ask "$node" cluster replicate "$(neediest)" >/dev/null
		await "$node is a replica" replica "$(id "$node")"
	fi
done
for node; do
	await "$node serves" info "$node" cluster_state:ok
done
echo "the cluster of $# nodes is up"
