#!/usr/bin/env bash
# Builds what a node needs beyond the control plane: Kubernetes' node programs, the operators that run on it as pods, and
# containerd with its tools, unpacked from Debian packages.
# usage: build_node.sh            build or get what is missing
#        build_node.sh --where    print the folders: kubernetes, packages, redis, then a line "NAME FOLDER" an addon
#        build_node.sh --manifests   get only the operators' manifests, for a cluster that pulls its images
#        build_node.sh --ready    say with the exit code whether everything is there
# An addon lands in $BELVEDERE_CACHE/tools/addons/NAME-HASH: programs in bin/, manifests of its module in manifests/.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/go.sh"
node_programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
addons=(pause coredns storage network-policies kuberay prometheus-operator prometheus)
packages=(containerd runc containernetworking-plugins iptables ipset conntrack
  libip4tc2 libip6tc2 libipset13 libmnl0 libnetfilter-conntrack3 libnfnetlink0 libnftnl11 libxtables12 libseccomp2)
kubernetes=$("$here/build.sh" --where)
# What a Ray head keeps its state in, and what it needs beyond any Debian's own libraries.
redis_packages=(redis-server redis-tools libjemalloc2 liblzf1)
packages_folder=$tools/node-packages/$(printf '%s\n' "${packages[@]}" | sha256sum | cut -c1-12)

folder() { echo "$tools/addons/$1-$(cat "$here/addons/$1"/* | sha256sum | cut -c1-12)"; }

# PROGRAM=PACKAGE of each addon; a program is named as in its upstream image.
programs() {
  case $1 in
    pause) echo pause=belvedere.dev/cluster/pause ;;
    coredns) echo coredns=github.com/coredns/coredns ;;
    network-policies) echo kube-router=github.com/cloudnativelabs/kube-router/v2/cmd/kube-router ;;
    storage) echo local-path-provisioner=github.com/rancher/local-path-provisioner ;;
    kuberay) echo manager=github.com/ray-project/kuberay/ray-operator ;;
    prometheus) echo prometheus=./cmd/prometheus ;;
    prometheus-operator)
      echo prometheus-config-reloader=github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader
      echo operator=github.com/prometheus-operator/prometheus-operator/cmd/operator ;;
  esac
}

ready() {
  local name program
  for program in "${node_programs[@]}" etcd; do [ -x "$kubernetes/bin/$program" ] || return 1; done
  [ -x "$packages_folder/usr/bin/containerd" ] || return 1
  [ -x "$tools/redis/usr/bin/redis-server" ] || return 1
  for name in "${addons[@]}"; do [ -e "$(folder "$name")/complete" ] || return 1; done
}

build_addon() {
  local name=$1 target line flags
  target=$(folder "$name")
  mkdir -p "$target/bin"
  use_go
  cd "$here/addons/$name"
  flags=
  if [ "$name" = prometheus ]; then get_prometheus_source "$target"; fi
  for line in $(programs "$name"); do
    [ -x "$target/bin/${line%%=*}" ] && continue
    say "building ${line%%=*}"
    build_go "$target/bin/${line%%=*}" "${line#*=}" "$flags"
  done
  cd "$here"
  rm -rf "$target/source"
  get_manifests "$name"
  touch "$target/complete"
}

# Debian builds Prometheus without the discovery of pods, and Prometheus chooses its kinds of discovery by a source file.
get_prometheus_source() {
  local source
  source=$(module_folder github.com/prometheus/prometheus@"$("$go" list -m -f '{{.Version}}' github.com/prometheus/prometheus)")
  rm -rf "$1/source"
  cp -r "$source" "$1/source"
  chmod -R u+w "$1/source"
  cp plugins.go "$1/source/plugins/plugins.go"
  cd "$1/source"
  flags="-X github.com/prometheus/common/version.Version=$(cat VERSION)"
}

get_manifests() {
  local target
  target=$(folder "$1")
  [ ! -d "$target/manifests" ] || return 0
  use_go
  cd "$here/addons/$1"
  case $1 in
    kuberay) copy_manifests "$target" github.com/ray-project/kuberay/ray-operator config/crd/bases/*.yaml config/rbac/role.yaml ;;
    prometheus-operator) copy_manifests "$target" github.com/prometheus-operator/prometheus-operator \
      example/prometheus-operator-crd/*.yaml example/rbac/prometheus-operator/prometheus-operator-cluster-role.yaml ;;
  esac
}

# copy_manifests TARGET MODULE PATTERN…: the files of the version that go.mod pins.
copy_manifests() {
  local target=$1 module=$2 source pattern
  shift 2
  source=$(module_folder "$module@$("$go" list -m -f '{{.Version}}' "$module")")
  rm -rf "$target/manifests.new" && mkdir -p "$target/manifests.new"
  for pattern in "$@"; do
    # shellcheck disable=SC2086  # the pattern is meant to become several names
    cp $source/$pattern "$target/manifests.new"
  done
  chmod -R u+w "$target/manifests.new"
  mv "$target/manifests.new" "$target/manifests"
}

case ${1:-} in
  --where)
    echo "kubernetes $kubernetes"
    echo "packages $packages_folder"
    echo "redis $tools/redis"
    for name in "${addons[@]}"; do echo "$name $(folder "$name")"; done
    exit ;;
  --ready) ready; exit ;;
esac

mkdir -p "$tools/addons" "$tools/node-packages"
if [ "${1:-}" = --manifests ]; then
  lock "$tools/addons/lock"
  get_manifests kuberay
  get_manifests prometheus-operator
  exit
fi
"$here/build.sh" "${node_programs[@]}"
lock "$tools/addons/lock"
if [ ! -x "$packages_folder/usr/bin/containerd" ]; then
  say "getting containerd, runc, network plugins, iptables and ipset"
  get_packages "$packages_folder.part" "${packages[@]}"
  # What Debian would link when it installs the package.
  for name in iptables ip6tables; do
    for form in "" -save -restore; do ln -sf xtables-nft-multi "$packages_folder.part/usr/sbin/$name$form"; done
  done
  mv "$packages_folder.part" "$packages_folder"
fi
[ -x "$tools/redis/usr/bin/redis-server" ] || { say "getting Redis"; get_packages "$tools/redis" "${redis_packages[@]}"; }
for name in "${addons[@]}"; do
  [ -e "$(folder "$name")/complete" ] || build_addon "$name"
done
