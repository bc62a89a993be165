#!/usr/bin/env bash
# Checks deploy/observability: what promtool says of the rules, their tests and the configuration;
# that alerts and dashboard ask for what nodes really tell; and that a Prometheus with all of it
# fills the dashboard, watching two nodes with a tunnel between them. Nothing is asked of Grafana,
# Jaeger and the collector themselves: their files are only read.
#
# REMOTEPROXY_BINARIES: directory of programs to use, instead of building some.
set -euo pipefail
cd "$(dirname "$0")/.."

# Debian's own Python: another one in the PATH may lack the module.
python=/usr/bin/python3
missing=()
"$python" -c 'import yaml' 2>/dev/null || missing+=(python3 python3-yaml)
command -v redis-server >/dev/null || missing+=(redis-server)
if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  if ! command -v apt-get >/dev/null; then
    echo "this needs programs (names as in Debian): ${missing[*]} prometheus" >&2
    exit 1
  fi
  echo "installing what is needed: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
# Debian's package would start a server of its own: only its programs are taken out of it.
if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then
  tools=$PWD/target/prometheus
  if [ ! -x "$tools/usr/bin/promtool" ]; then
    if ! command -v apt-get >/dev/null; then
      echo "this needs prometheus and promtool" >&2
      exit 1
    fi
    echo "fetching Debian's prometheus"
    mkdir -p "$tools"
    (
      cd "$tools"
      apt-get download -qq prometheus 2>/dev/null || {
        as_root=()
        [ "$(id -u)" -eq 0 ] || as_root=(sudo)
        "${as_root[@]}" apt-get update -qq
        apt-get download -qq prometheus
      }
      dpkg-deb -x prometheus_*.deb .
      rm prometheus_*.deb
    )
  fi
  PATH=$tools/usr/bin:$PATH
fi

work=$(mktemp -d)
processes=()
clean_up() {
  local code=$?
  trap - EXIT
  [ ${#processes[@]} -eq 0 ] || kill "${processes[@]}" 2>/dev/null || true
  wait
  [ "$code" -eq 0 ] || tail -v -n 5 "$work"/*.log 2>/dev/null || true
  rm -rf "$work"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

say() { printf '%s %s\n' "$(date +%T)" "$*"; }

fail() {
  echo "error: $*" >&2
  exit 1
}

# within <seconds> <command>...: tries until it succeeds.
within() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}

check() { "$python" tests/observability/check.py "$@"; }

# quietly <command>...: shows what it says only if it fails.
quietly() { "$@" >"$work/said" 2>&1 || { cat "$work/said" && return 1; }; }

# refused <what> <command>...: a check that cannot fail is none.
refused() {
  if "${@:2}" >/dev/null 2>&1; then fail "$1 is not noticed"; fi
}

say "files"
check files
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  compose=()
  echo "  there is no Compose: docker-compose.yml is read, but not by it"
fi
if [ ${#compose[@]} -gt 0 ]; then
  # endpoint_is <URL> <option>...: where Compose lets the nodes send their traces.
  endpoint_is() {
    "${compose[@]}" "${@:2}" config >"$work/compose.yml" && "$python" - "$1" "$work/compose.yml" <<'PYTHON'
import sys, yaml
services = yaml.safe_load(open(sys.argv[2]))["services"]
said = {services[f"node{n}"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] or "" for n in (1, 2, 3)}
sys.exit(said != {sys.argv[1]} and f"{said}")
PYTHON
  }
  endpoint_is ""
  endpoint_is "" --profile observability
  endpoint_is http://collector:4317 --env-file deploy/observability/compose.env
fi

say "rules and configuration"
cp -r deploy/observability "$work/"
copy=$work/observability
# The token is elsewhere here, and promtool wants to see it.
sed -i "s|/run/secrets/admin-token|$copy/admin-token|" "$copy/prometheus.yml"
quietly promtool check config "$copy/prometheus.yml"
quietly promtool check rules "$copy/alerts.yml"
quietly promtool test rules "$copy/alerts_test.yml"
check queries "$work/queries.yml"
quietly promtool check rules "$work/queries.yml"
sed 's/rule_files/rule_fils/' "$copy/prometheus.yml" >"$copy/broken.yml"
refused "a wrong name in prometheus.yml" promtool check config "$copy/broken.yml"
# shellcheck disable=SC2016 # that is for Prometheus
sed 's/{{ $labels.instance }}/{{ $labels.instance }/' "$copy/alerts.yml" >"$copy/broken.yml"
refused "a broken text of an alert" promtool check rules "$copy/broken.yml"
sed '0,/sum by/s//sum bye/' "$work/queries.yml" >"$work/broken.yml"
refused "a broken query of the dashboard" promtool check rules "$work/broken.yml"

say "whether the tests of the alerts notice anything"
check tests promtool

binaries=${REMOTEPROXY_BINARIES-}
if [ -z "$binaries" ]; then
  cargo build --quiet --locked --workspace --bins
  binaries=target/debug
fi

say "two nodes, Redis and Prometheus"
read -r redis web one two admin1 admin2 bridge1 bridge2 app < <("$python" - <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(9)]
print(*(it.getsockname()[1] for it in sockets))
PYTHON
)
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

redis-server --port "$redis" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" \
  >"$work/redis.log" &
processes+=($!)
redis_process=$!
"$binaries/nymea-remoteproxy-certs" --out "$work/certs" --node node1,127.0.0.1 \
  --node node2,127.0.0.1 >/dev/null
within 10 listens "$redis" || fail "Redis does not start"

# node <number> <port> <bridge port> <admin port>: its collector is away, and it has little room.
node() {
  env -u OTEL_METRICS_EXPORTER \
    REMOTEPROXY__NODE__NAME="node$1" \
    REMOTEPROXY__BRIDGE__LISTEN="127.0.0.1:$3" \
    REMOTEPROXY__BRIDGE__CA="$work/certs/ca.pem" \
    REMOTEPROXY__BRIDGE__CERTIFICATE="$work/certs/node$1.pem" \
    REMOTEPROXY__BRIDGE__KEY="$work/certs/node$1.key" \
    REMOTEPROXY__ADMIN__LISTEN="127.0.0.1:$4" \
    REMOTEPROXY__ADMIN__TOKEN_FILE="$copy/admin-token" \
    REMOTEPROXY__LIMITS__UNAUTHENTICATED_PER_IP=3 \
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:9 \
    "$binaries/nymea-remoteproxy" -p "$2" --redis "redis://127.0.0.1:$redis" \
    >"$work/node$1.log" 2>&1 &
  processes+=($!)
}
node 1 "$one" "$bridge1" "$admin1"
node 2 "$two" "$bridge2" "$admin2"

# The same configuration, in a hurry.
sed -i -e 's/_interval: .*/_interval: 1s/' -e 's/"node3:9100"//; s/, \]/]/' \
  -e "s/node1:9100/127.0.0.1:$admin1/; s/node2:9100/127.0.0.1:$admin2/" \
  -e 's/(.+):\\d+/(.+)/' "$copy/prometheus.yml"
prometheus --config.file "$copy/prometheus.yml" --storage.tsdb.path "$work/data" \
  --web.listen-address "127.0.0.1:$web" >"$work/prometheus.log" 2>&1 &
processes+=($!)

token=$(cat "$copy/admin-token")
metrics() {
  "$python" - "$1" "$token" <<'PYTHON'
import sys, urllib.request
_, port, token = sys.argv
request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {token}"})
print(urllib.request.urlopen(request).read().decode(), end="")
PYTHON
}
# has <admin port> <text in its metrics>
has() { grep -q "$2" < <(metrics "$1" 2>/dev/null); }
for port in "$admin1" "$admin2"; do
  within 20 has "$port" '^remoteproxy_ready 1' || fail "a node does not get ready"
done

client() {
  REMOTEPROXY_TOKEN=$2 timeout 30 "$binaries/nymea-remoteproxy-client" \
    -i --url "wss://127.0.0.1:$1" --pingpong --count 20 >>"$work/client.log" 2>&1
}
# tunnel <port of the first> <its admin port> <port of the second> <token>
tunnel() {
  client "$1" "$4" &
  local other=$!
  within 10 has "$2" '^remoteproxy_connections{stage="waiting",.*} 1' &&
    client "$3" "$4" && wait "$other"
}
tunnel "$one" "$admin1" "$two" "over two nodes" || fail "no tunnel over two nodes"
tunnel "$two" "$admin2" "$one" "and back" || fail "no tunnel over two nodes"
tunnel "$two" "$admin2" "$two" "on one node" || fail "no tunnel on one node"
# A gateway and an app, which are gone afterwards.
in_background() {
  timeout 30 "$binaries/nymea-remoteproxy-client" -i --url "wss://127.0.0.1:$1" "${@:2}" \
    >>"$work/client.log" 2>&1 &
  processes+=($!)
}
registered() { has "$1" "^remoteproxy_registrations_total{outcome=\"registered\".*role=\"$2\""; }
uuid=$(cat /proc/sys/kernel/random/uuid)
in_background "$one" --gateway --uuid "$uuid" --connect "127.0.0.1:$redis"
gateway_process=$!
within 10 registered "$admin1" gateway || fail "no gateway registers"
in_background "$two" --app --server-uuid "$uuid" --listen "127.0.0.1:$app"
app_process=$!
within 10 listens "$app" || fail "the client for apps does not listen"
within 10 registered "$admin2" app || fail "no app registers over two nodes"
kill "$app_process" "$gateway_process"
within 10 has "$admin1" '^remoteproxy_gateway_duration_seconds_count ' || fail "no gateway ends"
# Nobody comes, and there is no room.
REMOTEPROXY_TOKEN=lonely timeout 1 "$binaries/nymea-remoteproxy-client" -i \
  --url "wss://127.0.0.1:$two" </dev/null >/dev/null 2>&1 || true
(
  # A connection that has sent nothing has no place: each begins a record of TLS.
  for n in 11 12 13 14; do eval "exec $n<>/dev/tcp/127.0.0.1/$two" && printf '\026' >&"$n"; done
  sleep 0.5
)
for series in connections_refused_total handshakes_failed_total connections_closed_total \
  bridge_round_trip_seconds_count bridge_streams_in spans_exported_total; do
  within 20 has "$admin2" "^remoteproxy_$series{" || fail "node2 has no remoteproxy_$series"
done

say "names"
for port in "$admin1" "$admin2"; do metrics "$port"; done >"$work/metrics"
check names "$work/metrics"
sed 's/remoteproxy_redis_up/remoteproxy_redis_is_up/' "$work/metrics" >"$work/broken"
refused "a name that no node knows" check names "$work/broken"
sed 's/step="/stage="/' "$work/metrics" >"$work/broken"
refused "a label that no node knows" check names "$work/broken"
metrics "$admin2" | promtool check metrics >"$work/said" 2>&1 ||
  fail "promtool about /metrics: $(cat "$work/said")"

say "a dashboard with data"
kill "$redis_process"
asked() {
  "$python" -c 'import json, sys, urllib.parse, urllib.request
_, port, query = sys.argv
query = urllib.parse.urlencode({"query": query})
answer = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}"))
sys.exit(not answer["data"]["result"])' "$web" "$1" 2>/dev/null
}
within 20 asked 'ALERTS{alertname="RemoteproxyRedisAway"}' || fail "nobody notices that Redis is away"
within 20 asked 'remoteproxy_redis_command_duration_seconds_count{outcome!="ok"}' ||
  fail "nobody counts that commands fail"
asked 'count(up{job="nymea-remoteproxy"} == 1) == 2' || fail "Prometheus does not reach both nodes"
within 10 check panels "http://127.0.0.1:$web" >"$work/said" 2>&1 || fail "$(tail "$work/said")"
tail -n 1 "$work/said"

echo "what is ready-made for operators: passed"
