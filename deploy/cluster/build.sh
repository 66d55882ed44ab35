#!/usr/bin/env bash
# Builds Kubernetes' own programs from Go modules, and unpacks etcd from its Debian package, for `make control-plane`.
# usage: build.sh [PROGRAM…]   (default: kube-apiserver kube-controller-manager)    build.sh --where   prints the folder
# Everything lands in $BELVEDERE_CACHE/tools/kubernetes/VERSION-HASH, programs in bin/ and the resource definitions of
# KubeRay and the Prometheus operator in definitions/; HASH is of the module files in modules/, so that a changed pin
# never uses an old program. An interrupted build goes on where it stopped: Go keeps each
# compiled package. BELVEDERE_BUILD_JOBS (default 1) says how many cores the build may use; it runs at the lowest priority.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/go.sh"
modules=$here/modules
version=$(awk '$1 == "require" && $2 == "k8s.io/kubernetes" { print $3 }' "$modules/go.mod")
hash=$(cat "$modules/go.mod" "$modules/go.sum" "$modules/tools.go" | sha256sum | cut -c1-12)
target=$tools/kubernetes/$version-$hash
kuberay=github.com/ray-project/kuberay/ray-operator@v1.6.2
keda=github.com/kedacore/keda/v2@v2.17.2
prometheus=github.com/prometheus-operator/prometheus-operator@v0.85.0
bin=$target/bin

if [ "${1:-}" = --where ]; then echo "$target"; exit; fi
[ $# -gt 0 ] || set -- kube-apiserver kube-controller-manager
mkdir -p "$bin"
lock "$target/lock"

build() {
  local minor
  use_go
  cd "$modules"
  say "building $1 $version with $("$go" version | cut -d' ' -f3) (10 to 30 minutes on one core for the first, far less for the next)"
  minor=$(cut -d. -f2 <<<"$version")
  build_go "$bin/$1" "k8s.io/kubernetes/cmd/$1" \
    "-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
}

get_definitions() {
  local module folder
  use_go
  say "getting the resource definitions of KubeRay and the Prometheus operator"
  rm -rf "$target/definitions.new" && mkdir "$target/definitions.new"
  cd "$modules"
  for module in "$kuberay" "$prometheus"; do
    folder=$(module_folder "$module")
    case $module in
      "$kuberay") cp "$folder"/config/crd/bases/ray.io_ray{clusters,jobs,services}.yaml "$target/definitions.new" ;;
      "$prometheus") cp "$folder"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml "$target/definitions.new" ;;
    esac
  done
  chmod -R u+w "$target/definitions.new"
  echo "$kuberay $prometheus" > "$target/definitions.new/modules.txt"
  rm -rf "$target/definitions" && mv "$target/definitions.new" "$target/definitions"
}

get_keda() {
  local folder
  use_go
  say "getting the resource definition of KEDA"
  folder=$(cd "$modules" && module_folder "$keda")
  install -m 0644 "$folder/config/crd/bases/keda.sh_scaledobjects.yaml" "$target/definitions/"
}

get_etcd() {
  local found
  if found=$(command -v etcd); then ln -sf "$found" "$bin/etcd"; return; fi
  say "getting etcd"
  get_packages "$tools/etcd" etcd-server
  ln -sf "$tools/etcd/usr/bin/etcd" "$bin/etcd"
}

[ -x "$bin/etcd" ] || get_etcd
[ "$(cat "$target/definitions/modules.txt" 2>/dev/null)" = "$kuberay $prometheus" ] || get_definitions
[ -s "$target/definitions/keda.sh_scaledobjects.yaml" ] || get_keda
for program in "$@"; do
  [ -x "$bin/$program" ] || build "$program"
done
