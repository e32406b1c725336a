#!/bin/sh
# Lets BIRD tell of the service's addresses while a gateway on this host is ready (bird.conf): three answers in a row bring
# the route, two failures in a row take it away, and so does the end of this script.
#
#   healthcheck.sh [URL [birdc's options]]
#
# swarmgate-anycast.service runs it.
url=${1:-http://127.0.0.1:6970/readyz}
[ $# -gt 0 ] && shift
options=$*

route() { birdc $options "$1" service >/dev/null; }

trap 'route disable; exit 0' TERM INT
good=0 bad=0
while :; do
	if curl -fsg -m 1 -o /dev/null "$url"; then
		good=$((good + 1)) bad=0
	else
		good=0 bad=$((bad + 1))
	fi
	# Each time, as a BIRD that was started anew has forgotten.
	[ $good -ge 3 ] && route enable
	[ $bad -ge 2 ] && route disable
	sleep 0.5
done
