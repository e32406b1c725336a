#!/bin/sh
# Joins the nodes at the addresses or names given into one Redis Cluster: at first the first half are masters and the
# others their replicas. What is done already is left as it is, so it may run at any time: it forms a new cluster,
# finishes a half-formed one, takes in a node that was made anew, at another address too, and does nothing to a whole one.
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
assigned() { ask "$1" cluster info | grep cluster_slots_assigned; }
agree() { for one; do [ "$(assigned "$one")" = "$(assigned "$first")" ] || return 1; done; }
# The nodes meet at addresses, which may be other ones at each start where nodes are given by name.
address() {
	ip=$(ask "$1" config get cluster-announce-ip | tail -n 1)
	echo "${ip:-$1}"
}
id() { ask "$1" cluster myid; }
known() { ask "$1" cluster nodes | grep -q "^$2 .* connected"; }
# empty NODE: it is a master of nothing.
empty() { ask "$1" cluster nodes | awk '$3 ~ /myself/ { none = $3 ~ /master/ && NF == 8 } END { exit !none }'; }
replica() { ask "$first" cluster nodes | grep -q "^$1 .*slave"; }
# is NODE ID: whether it is a master, or whose replica, as a node sees it.
is() { ask "$1" cluster nodes | awk -v id="$2" '$1 == id { sub(/myself,/, "", $3); print $3, $4 }'; }
# seen NODE: the first node knows what it is.
seen() { [ "$(is "$first" "$(id "$1")")" = "$(is "$1" "$(id "$1")")" ]; }
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
	[ "$node" = "$first" ] || ask "$first" cluster meet "$(address "$node")" 6379 >/dev/null
done
for node; do
	for other; do
		await "$node knows $other" known "$node" "$(id "$other")"
	done
done
# Whom a node made anew replaced: it has no address any more or has failed, and no replica is about to take its place.
ids=$(for node; do id "$node"; done | tr '\n' ' ')
for node; do
	for gone in $(ask "$node" cluster nodes | awk -v ids="$ids" '
		$3 ~ /noaddr|fail(,|$)/ && !index(ids, $1) { gone[$1] = 1 }
		$3 ~ /slave/ && $3 !~ /noaddr|fail/ { replaced[$4] = 1 }
		END { for (n in gone) if (!(n in replaced)) print n }'); do
		ask "$node" cluster forget "$gone" >/dev/null || true
	done
done

await "the nodes agree on how many slots somebody has" agree "$@"
if ! info "$first" "cluster_slots_assigned:$slots"; then
	i=0
	while [ $i -lt $masters ]; do
		for node; do
			# Refused where somebody has the slots.
			if empty "$node" &&
				[ "$(ask "$node" cluster addslotsrange $((slots * i / masters)) $((slots * (i + 1) / masters - 1)))" = OK ]; then
				break
			fi
		done
		i=$((i + 1))
	done
fi
for node; do
	await "$node knows who has which slots" info "$node" "cluster_slots_assigned:$slots"
done
for node; do
	await "the first node knows what $node is" seen "$node"
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
