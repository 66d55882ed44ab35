#!/usr/bin/env bash
# Builds kwok, which plays the kubelet of nodes that do not exist, from its Go module, with its own stages of nodes and pods.
# usage: kwok.sh   prints the program; what it is to play lies beside it in stages.yaml
set -euo pipefail

cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
tools=$cache/tools
version=v0.8.0
program=$tools/kwok/$version/kwok

if [ ! -x "$program" ]; then
  mkdir -p "${program%/*}"
  exec 9>"${program%/*}/lock"
  flock 9
fi
if [ ! -x "$program" ]; then
  go=$(command -v go || echo "$tools/go/toolchain/go/bin/go")
  [ -x "$go" ] || { echo "kwok: Go is needed to build it: run  make control-plane  first, or put Go on PATH" >&2; exit 5; }
  echo "kwok: building $version (about 2 minutes)" >&2
  GOPATH=$tools/go/path GOCACHE=$tools/go/build GOFLAGS="-p=${BELVEDERE_BUILD_JOBS:-1} -modcacherw -buildvcs=false" \
    CGO_ENABLED=0 GOWORK=off GOBIN=${program%/*} \
    nice -n 10 "$go" install -trimpath -ldflags "-s -w" "sigs.k8s.io/kwok/cmd/kwok@$version"
fi
stages=${program%/*}/stages.yaml
if [ ! -s "$stages" ]; then
  module=$tools/go/path/pkg/mod/sigs.k8s.io/kwok@$version/kustomize/stage
  for stage in node/fast/node-initialize node/heartbeat/node-heartbeat pod/fast/pod-ready pod/fast/pod-delete; do
    printf -- '---\n'
    cat "$module/$stage.yaml"
  done > "$stages.new"
  mv "$stages.new" "$stages"
fi
echo "$program"
