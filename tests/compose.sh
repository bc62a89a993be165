#!/usr/bin/env bash
# Tries docker-compose.yml as the README tells it: two clients on different nodes, a file goes
# through, a node without part in it is killed, then one of the two, and all pair again. Prometheus
# of the profile "observability" watches.
# What it needs and how it ends: tests/support/compose.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/support/compose.sh
. tests/support/compose.sh

start_cluster 30s
lb=$(url lb)
node1=$(url node1)
node3=$(url node3)

token=$(cat deploy/observability/admin-token)
# asked <address> <path>: the answer to whoever has the token.
asked() {
  exec 3<>"/dev/tcp/${1%:*}/${1##*:}" || return
  printf 'GET %s HTTP/1.0\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n' "$2" "$1" "$token" >&3
  cat <&3
  exec 3>&-
}
# answers <address> <path> <what is in the answer>
answers() { grep -q "$3" < <(asked "$1" "$2" 2>/dev/null); }

# Without its profile, nothing of it is there.
[ -z "$(compose ps -q prometheus 2>/dev/null)" ] || fail "Prometheus runs, and nobody has asked"
compose up -d prometheus >"$work/up.log" 2>&1 || fail "no Prometheus: $(cat "$work/up.log")"
prometheus=$(compose port prometheus 9090)
# up_are <number>: how many nodes answer Prometheus.
up_are() {
  answers "$prometheus" '/api/v1/query?query=count(up%7Bjob=%22nymea-remoteproxy%22%7D==1)' \
    ",\"$1\"\]"
}
within 60 up_are 3 || fail "Prometheus does not reach the three nodes"
answers "$prometheus" /api/v1/rules RemoteproxyNodeDown || fail "Prometheus has no rules"
for node in node1 node2 node3; do
  admin=$(compose port "$node" 9100)
  answers "$admin" / '<html' || fail "$node has no status page"
  answers "$admin" /api/v1/node "$node" || fail "$node does not know the token"
  token='' answers "$admin" /metrics '^HTTP/1.[01] 401' || fail "$node answers anybody"
done
say "Prometheus reaches the three nodes, and each has a status page"

# sent <url> <url> <token>: whether a file from the second to the first arrives unchanged.
sent() {
  local receiver codes=0
  client "$1" "$3" --wait 60s </dev/null >"$work/received" 2>"$work/receiver.err" &
  receiver=$!
  (client "$2" "$3" --wait 60s <"$work/file" 2>"$work/sender.err") || codes=$?
  # Nobody will come for it.
  [ "$codes" -eq 0 ] || kill "$receiver" 2>/dev/null || true
  wait "$receiver" || codes="$codes and $?"
  [ "$codes" = 0 ] && [ "$(sha256sum <"$work/received")" = "$(sha256sum <"$work/file")" ]
}

transfer() { sent "$@" || fail "the file did not go through"; }

head -c 64M /dev/urandom >"$work/file"
transfer "$node1" "$node3" "a file"
say "64 MiB went from node3 to node1, unchanged"

# A tunnel that stands: a line goes through every 0.1 s.
lines() { wc -l <"$work/lines"; }
more_than() { [ "$(lines)" -gt "$1" ]; }
client "$node1" standing </dev/null >"$work/lines" 2>"$work/standing1.err" &
on_node1=$!
client "$node3" standing 2>"$work/standing3.err" \
  < <(n=0; while sleep 0.1; do echo $((n += 1)); done) >/dev/null &
on_node3=$!
within 20 more_than 5 || fail "nothing goes through the tunnel"

compose kill node2 >/dev/null 2>&1
before=$(lines)
# Longer than any lease or health check takes to notice.
sleep 15
kill -0 "$on_node1" "$on_node3" || fail "the tunnel ended with a node that had no part in it"
more_than $((before + 100)) || fail "the tunnel stalled: $before lines, then $(lines)"
count=$(lines)
head -n "$count" "$work/lines" | cmp - <(seq "$count") || fail "lines are missing"
say "node2 was killed: $count lines went through, none is missing"

killed=$(date +%s%N)
ms() { echo $((($(date +%s%N) - killed) / 1000000)); }
compose kill node1 >/dev/null 2>&1
for end in "$on_node1" "$on_node3"; do
  code=0
  wait "$end" || code=$?
  # 1 is what the client says of a tunnel that was lost; 124 would be our own time-out.
  [ "$code" -eq 1 ] || fail "a client of the lost tunnel ends with $code"
done
grep -h . "$work"/standing?.err
took=$(ms)
[ "$took" -lt 10000 ] || fail "the clients took $took ms to learn that the tunnel is lost"
say "node1 was killed: both clients know after $took ms"

killed=$(date +%s%N)
head -c 1M "$work/file" >"$work/small" && mv "$work/small" "$work/file"
transfer "$lb" "$lb" "a new one"
took=$(ms)
[ "$took" -lt 10000 ] || fail "a new tunnel took $took ms"
say "a new tunnel, by the load balancer: 1 MiB went through after $took ms"
# The token of the lost tunnel may be taken until the lease of the killed node is over.
within 20 sent "$lb" "$lb" standing || fail "the token of the lost tunnel does not get free"
say "the same token again: 1 MiB went through after $(ms) ms at the latest"
within 60 up_are 1 || fail "Prometheus does not notice that two nodes are down"
within 60 answers "$prometheus" '/api/v1/query?query=ALERTS' RemoteproxyNodeDown ||
  fail "Prometheus has no alert of a node that is down"
say "Prometheus has noticed that two nodes are down"

compose start node1 node2 >/dev/null 2>&1
for node in node1 node2; do within 60 is_ready "$node" || fail "$node does not come back"; done
transfer "$(url node1)" "$(url node2)" "a file"
say "both nodes are back, and a file goes from one to the other"

# The balancer takes a new configuration without anybody noticing.
client "$lb" reload --pingpong --count 300 >"$work/pingpong1" 2>"$work/reload1.err" &
one=$!
client "$lb" reload --pingpong --count 300 >"$work/pingpong2" 2>"$work/reload2.err" &
other=$!
sleep 1
compose kill -s HUP lb >/dev/null 2>&1
transfer "$lb" "$lb" "a file"
{ wait "$one" && wait "$other"; } || fail "a tunnel did not outlive the reload of the load balancer"
say "the load balancer was told to read its configuration again: $(cat "$work/pingpong1")"

echo "the cluster of docker-compose.yml: passed"
