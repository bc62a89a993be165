#!/usr/bin/env bash
# Restarts all nodes of docker-compose.yml, one after the other, under a load of standing and new
# tunnels, and shows that no client is refused for more than a reconnect, and that no tunnel ends
# before the drain deadline of a node it goes through.
# What it needs and how it ends: tests/support/compose.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/support/compose.sh
. tests/support/compose.sh

grace=10
standing=12

start_cluster "${grace}s"
lb=$(url lb)
ms() { echo $(($(date +%s%N) / 1000000)); }

# stand <number>: a tunnel for as long as it lasts, and then the next one; writes when they ended.
stand() {
  local round=0 one other
  while [ ! -e "$work/stop" ]; do
    round=$((round + 1))
    client "$lb" "standing $1 $round" --wait 30s --pingpong --count 1000000 --interval 100ms \
      >/dev/null 2>"$work/standing-$1-a.err" &
    one=$!
    client "$lb" "standing $1 $round" --wait 30s --pingpong --count 1000000 --interval 100ms \
      >/dev/null 2>"$work/standing-$1-b.err" &
    other=$!
    wait -n "$one" "$other" || true
    ms >>"$work/ended-$1"
    kill "$one" "$other" 2>/dev/null || true
    wait "$one" "$other" || true
  done
}

# pair <token>: a new tunnel, and some round trips; writes how long it took and how often an end had
# to try again.
pair() {
  local begun first code=0
  begun=$(ms)
  client "$lb" "$1" --wait 30s -v --pingpong --count 3 >/dev/null 2>"$work/$1.a.log" &
  first=$!
  # Long enough for some to wait on a node that stops.
  sleep 3
  (client "$lb" "$1" --wait 30s -v --pingpong --count 3 >/dev/null 2>"$work/$1.b.log") || code=1
  wait "$first" || code=1
  [ "$code" -eq 0 ] || (cd "$work" && tail -n 20 "$1".[ab].log) >>"$work/lost"
  echo "$(($(ms) - begun)) $(cat "$work/$1".[ab].log | grep -c "trying again") $1" >>"$work/pairs"
}

for number in $(seq "$standing"); do stand "$number" & done
(
  number=0
  while [ ! -e "$work/stop" ]; do
    number=$((number + 1))
    pair "new-$number" &
    sleep 0.5
  done
  wait
) &
load=$!
sleep 5
[ ! -e "$work/lost" ] || fail "new tunnels fail before anything happened"

deadlines=()
for node in node1 node2 node3; do
  deadlines+=($(($(ms) + grace * 1000)))
  say "restarting $node"
  compose restart -t $((grace + 15)) "$node" >/dev/null 2>&1
  within 60 is_healthy "$node" || fail "$node does not become healthy"
  within 30 is_ready "$node" || fail "$node does not become ready"
  # The load balancer asks every second.
  sleep 3
done
touch "$work/stop"
wait "$load"

[ ! -e "$work/lost" ] || fail "new tunnels failed: $(cat "$work/lost")"
again=$(awk '$2 > 0' "$work/pairs" | wc -l)
# Once for each end.
awk '$2 > 2 { print; found = 1 } END { exit found }' "$work/pairs" ||
  fail "these had to try again more than once: milliseconds, tries, name"
slowest=$(sort -n "$work/pairs" | tail -n 1)
say "$(wc -l <"$work/pairs") new tunnels, $again of them with a reconnect, the slowest after" \
  "${slowest%% *} ms (3000 ms of them between its ends)"

# A tunnel goes through two nodes at most; it may end when one of them stops.
ended=0
while read -r end; do
  fits=
  for deadline in "${deadlines[@]}"; do
    late=$((end - deadline))
    if [ "$late" -gt -500 ] && [ "$late" -lt 5000 ]; then fits=1; fi
  done
  [ -n "$fits" ] || fail "a tunnel ended at $end, and the drain deadlines are ${deadlines[*]}"
  ended=$((ended + 1))
done < <(cat "$work"/ended-* 2>/dev/null)
[ "$ended" -gt 0 ] || fail "no tunnel ended, so nothing was shown"
say "$ended standing tunnels ended, none before the drain deadline of its node"
echo "the rolling restart: passed"
