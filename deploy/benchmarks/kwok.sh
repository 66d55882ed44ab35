#!/usr/bin/env bash
# Builds kwok, which plays the kubelet of nodes that do not exist, with its own stages of nodes and pods.
# usage: kwok.sh   prints the program; what it is to play lies beside it in stages.yaml
set -euo pipefail

version=v0.8.0
program=$("$(dirname "${BASH_SOURCE[0]}")/go_program.sh" kwok sigs.k8s.io/kwok/cmd/kwok "$version")
stages=${program%/*}/stages.yaml
if [ ! -s "$stages" ]; then
  module=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}/tools/go/path/pkg/mod/sigs.k8s.io/kwok@$version/kustomize/stage
  for stage in node/fast/node-initialize node/heartbeat/node-heartbeat pod/fast/pod-ready pod/fast/pod-delete; do
    printf -- '---\n'
    cat "$module/$stage.yaml"
  done > "$stages.new"
  mv "$stages.new" "$stages"
fi
echo "$program"
