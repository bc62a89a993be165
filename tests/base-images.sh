#!/usr/bin/env bash
# Makes the base images that deploy/Dockerfile and docker-compose.yml name, for machines that reach
# Debian's packages but no image registry. They are stand-ins: they behave like the official images
# as far as this project uses them. An image that exists is left as it is.
#
# tests/base-images.sh [--with-rust]: with --with-rust also the one to build with, which gets the
# toolchain of this machine and the certificates that it trusts.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/target/base-images
suite=bookworm

# The names are written where they are used, and only there.
rust=$(sed -n 's/^ARG RUST_IMAGE=//p' deploy/Dockerfile)
debian=$(sed -n 's/^ARG BASE_IMAGE=//p' deploy/Dockerfile)
redis=$(sed -n 's/^ *image: \(redis:\S*\)$/\1/p' docker-compose.yml)
haproxy=$(sed -n 's/^ *image: \(haproxy:\S*\)$/\1/p' docker-compose.yml)
prometheus=$(sed -n 's|^ *image: \(prom/prometheus:\S*\)$|\1|p' docker-compose.yml)

lacks() {
  if docker image inspect "$1" >/dev/null 2>&1; then
    echo "$1 exists"
    return 1
  fi
}

made() { echo "$1 made here, $(docker image inspect -f '{{.Size}}' "$1" | numfmt --to=si)B"; }

# build <image> <file or directory in the archive>...: with the Dockerfile in $work.
build() {
  local image=$1
  shift
  if ! tar -C "$work" -c Dockerfile "$@" |
    docker build --tag "$image" - >"$work/build.log" 2>&1; then
    tail -n 20 "$work/build.log" >&2
    exit 1
  fi
  made "$image"
}

make_debian() {
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  if ! command -v debootstrap >/dev/null && [ ! -x /usr/sbin/debootstrap ]; then
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
  fi
  local tree=$work/tree.$$
  mkdir -p "$work"
  if ! "${as_root[@]}" env PATH="$PATH:/usr/sbin:/sbin" \
    debootstrap --variant=minbase "$suite" "$tree" >"$work/debootstrap.log"; then
    tail -n 20 "$work/debootstrap.log" >&2
    exit 1
  fi
  # As there: apt leaves no files behind, and no package starts a service while an image is made.
  "${as_root[@]}" tee "$tree/etc/apt/apt.conf.d/docker-clean" >/dev/null <<'END'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
END
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$tree/usr/sbin/policy-rc.d" >/dev/null
  "${as_root[@]}" chmod +x "$tree/usr/sbin/policy-rc.d"
  "${as_root[@]}" tar -C "$tree" -c \
    --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/apt/*' --exclude='./var/log/*' \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
    . | docker import --change 'CMD ["bash"]' - "$debian" >/dev/null
  "${as_root[@]}" rm -rf "$tree"
  made "$debian"
}

make_rust() {
  cat >"$work/Dockerfile" <<END
FROM $debian
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
ENV CARGO_HOME=/usr/local/cargo
ADD toolchain.tar /usr/local/
COPY ca-certificates.crt /etc/ssl/certs/
END
  cp /etc/ssl/certs/ca-certificates.crt "$work/"
  tar -C "$(rustc --print sysroot)" -cf "$work/toolchain.tar" \
    --exclude=lib/rustlib/src bin/cargo bin/rustc lib
  build "$rust" toolchain.tar ca-certificates.crt
  rm "$work/toolchain.tar"
}

make_redis() {
  # As there: options alone are for the server, it runs as its own user, and it answers to others
  # without a password.
  cat >"$work/entrypoint.sh" <<'END'
#!/bin/sh
set -e
[ "${1#-}" = "$1" ] || set -- redis-server "$@"
[ "$1" != redis-server ] || set -- "$@" --protected-mode no
[ "$(id -u)" -ne 0 ] || exec setpriv --reuid=redis --regid=redis --clear-groups -- "$@"
exec "$@"
END
  cat >"$work/Dockerfile" <<END
FROM $debian
RUN apt-get update && apt-get install -y --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* && install -d -o redis -g redis /data
COPY entrypoint.sh /usr/local/bin/
WORKDIR /data
VOLUME /data
EXPOSE 6379
ENTRYPOINT ["sh", "/usr/local/bin/entrypoint.sh"]
CMD ["redis-server"]
END
  build "$redis" entrypoint.sh
}

make_haproxy() {
  # As there: a master with workers in the foreground, not as root.
  cat >"$work/entrypoint.sh" <<'END'
#!/bin/sh
set -e
[ "${1#-}" = "$1" ] || set -- haproxy "$@"
[ "$1" != haproxy ] || { shift; set -- haproxy -W -db "$@"; }
exec "$@"
END
  cat >"$work/Dockerfile" <<END
FROM $debian
RUN apt-get update && apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/*
COPY entrypoint.sh /usr/local/bin/
USER haproxy
STOPSIGNAL SIGUSR1
ENTRYPOINT ["sh", "/usr/local/bin/entrypoint.sh"]
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
END
  build "$haproxy" entrypoint.sh
}

make_prometheus() {
  # As there: not as root, and the program is /bin/prometheus. It is of the version that Debian has.
  cat >"$work/Dockerfile" <<END
FROM $debian
RUN apt-get update && apt-get install -y --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* /etc/prometheus && install -d -o nobody -g nogroup /prometheus
WORKDIR /prometheus
USER nobody
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
END
  build "$prometheus"
}

mkdir -p "$work"
if lacks "$debian"; then make_debian; fi
if lacks "$redis"; then make_redis; fi
if lacks "$haproxy"; then make_haproxy; fi
if lacks "$prometheus"; then make_prometheus; fi
# It is large and only a build from source needs it.
if [ "${1-}" = --with-rust ] && lacks "$rust"; then make_rust; fi
