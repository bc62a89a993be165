# shellcheck shell=bash
# For scripts that try the cluster of docker-compose.yml, to be sourced in the top directory: it is
# built and started as a project of its own, on free ports, and all of it is removed in the end.
# Where that cannot be, the script ends with 77: not run, which is neither passed nor failed.
#
# REMOTEPROXY_BINARIES: directory of programs to use, instead of building some.
# REMOTEPROXY_FROM_SOURCE=1: have the image build them, as a user would.

not_run() {
  echo "NOT RUN: $1"
  exit 77
}

docker info >/dev/null 2>&1 || not_run "there is no Docker engine"
compose_command=()
if docker compose version >/dev/null 2>&1; then
  compose_command=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose_command=(docker-compose)
else
  not_run "there is no Compose"
fi

work=$(mktemp -d)
project=remoteproxy-test-$$
export REMOTEPROXY_IMAGE=$project
# Empty: the engine chooses.
export REMOTEPROXY_PORT='' REMOTEPROXY_PORT_NODE1='' REMOTEPROXY_PORT_NODE2='' \
  REMOTEPROXY_PORT_NODE3='' REMOTEPROXY_PORT_ADMIN1='' REMOTEPROXY_PORT_ADMIN2='' \
  REMOTEPROXY_PORT_ADMIN3='' REMOTEPROXY_PORT_PROMETHEUS=''
compose_files=(-f docker-compose.yml -f "$work/compose.yml")

compose() { "${compose_command[@]}" -p "$project" "${compose_files[@]}" "$@"; }

say() { printf '%s %s\n' "$(date +%T)" "$*"; }

clean_up() {
  local code=$?
  trap - EXIT
  # The clients that are still there.
  jobs -p | xargs -r kill 2>/dev/null || true
  if [ "$code" -ne 0 ] && [ "$code" -ne 77 ]; then
    echo "FAILED; the last lines of the log:"
    compose logs --no-color --tail 30 2>&1 || true
    # Those of the clients that have something to say.
    find "$work" -name '*.err' -size +0 -exec tail -v -n 5 {} + || true
  fi
  compose down --volumes --timeout 1 >/dev/null 2>&1 || true
  docker image rm "$project" >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

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

# start_cluster <drain.grace>
start_cluster() {
  local binaries=${REMOTEPROXY_BINARIES-} node
  {
    echo "services:"
    for node in node1 node2 node3; do
      printf '  %s: {environment: {REMOTEPROXY__DRAIN__GRACE: %s}}\n' "$node" "$1"
    done
  } >"$work/compose.yml"

  if [ -n "${REMOTEPROXY_FROM_SOURCE-}" ]; then
    tests/base-images.sh --with-rust
  else
    tests/base-images.sh
    if [ -z "$binaries" ]; then
      cargo build --quiet --locked --workspace --bins
      binaries=target/debug
    fi
    rm -rf target/prebuilt
    install -D --strip -t target/prebuilt "$binaries"/nymea-remoteproxy{,-client,-monitor,-certs}
    compose_files+=(-f deploy/compose.prebuilt.yml)
  fi
  say "building the image"
  compose build >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log"
    fail "the image cannot be built"
  }
  say "starting Redis, three nodes and the load balancer"
  compose up -d >"$work/up.log" 2>&1 || {
    cat "$work/up.log"
    fail "the cluster does not start"
  }
  for node in node1 node2 node3; do
    within 60 is_healthy "$node" || fail "$node does not become healthy"
    within 30 is_ready "$node" || fail "$node does not become ready"
  done
  within 10 compose exec -T lb bash -c 'exec 3<>/dev/tcp/127.0.0.1/1212' 2>/dev/null ||
    fail "the load balancer does not listen"
  # The clients come from the image, and run here: they see no more than the ports of the host.
  local id
  id=$(docker create "$project")
  docker cp "$id:/usr/local/bin/nymea-remoteproxy-client" "$work/client" >/dev/null
  docker rm "$id" >/dev/null
  compose exec -T node1 cat /certs/ca.pem >"$work/ca.pem"
  say "all nodes are healthy and ready"
}

is_healthy() {
  [ "$(docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q "$1")")" = healthy ]
}

is_ready() {
  # shellcheck disable=SC2016 # for the shell in the container
  compose exec -T "$1" bash -c 'exec 3<>/dev/tcp/127.0.0.1/9100 &&
    printf "GET /readyz HTTP/1.0\r\n\r\n" >&3 && read -r _ status _ <&3 && [ "$status" = 200 ]' \
    2>/dev/null
}

url() { echo "wss://$(compose port "$1" 1212)"; }

# client <url> <token> [<option>...]
client() {
  REMOTEPROXY_TOKEN=$2 exec timeout 300 "$work/client" --url "$1" --ca "$work/ca.pem" "${@:3}"
}
