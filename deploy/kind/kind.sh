#!/usr/bin/env bash
# A test cluster by kind, for machines where Docker runs: kind.sh up|down DIRECTORY
# `up` prints the path of a kubeconfig in DIRECTORY; a cluster that is there and answers is left alone. kind itself is
# taken from PATH, or built from its Go module, pinned in module/, into $BELVEDERE_CACHE/tools/kind/HASH.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$here/../cluster/go.sh"
command=$1
mkdir -p "$(dirname "$2")"
directory=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
name=belvedere-$(printf %s "$directory" | sha256sum | cut -c1-12)
kubeconfig=$directory/kubeconfig
images=(operator gateway server trainer)

find_kind() {
  local target
  if command -v kind; then return; fi
  target=$tools/kind/$(cat "$here"/module/* | sha256sum | cut -c1-12)
  if [ ! -x "$target/kind" ]; then
    mkdir -p "$target"
    lock "$target/lock"
    use_go
    say "building kind"
    (cd "$here/module" && build_go "$target/kind" sigs.k8s.io/kind "")
  fi
  echo "$target/kind"
}

kind=$(find_kind)
case $command in
  up)
    if [ -e "$kubeconfig" ] && kubectl --kubeconfig "$kubeconfig" get --raw /readyz >/dev/null 2>&1; then echo "$kubeconfig"; exit; fi
    "$kind" delete cluster --name "$name" >&2
    mkdir -p "$directory"
    "$root/deploy/cluster/build_node.sh" --manifests
    say "building the images"
    for image in "${images[@]}"; do
      docker build --quiet --tag "belvedere-$image:dev" --file "$root/deploy/images/$image.Dockerfile" \
        $([ "$image" != trainer ] || echo --target cpu) "$root" >&2
    done
    # The tests' own pods build data and models.
    docker tag belvedere-trainer:dev belvedere:dev
    "$kind" create cluster --name "$name" --config "$here/kind.yaml" --kubeconfig "$kubeconfig.part" --wait 180s >&2
    "$kind" load docker-image $(printf "belvedere-%s:dev " "${images[@]}") belvedere:dev --name "$name" >&2
    python "$root/deploy/cluster/addons.py" "$kubeconfig.part"
    # It appears whole or not at all: that it is there says that everything serves.
    mv "$kubeconfig.part" "$kubeconfig"
    echo "$kubeconfig" ;;
  down)
    "$kind" delete cluster --name "$name" >&2
    rm -f "$kubeconfig" "$kubeconfig.part"
    rmdir "$directory" 2>/dev/null || true ;;
  *) die "$command is no command: use up or down" ;;
esac
