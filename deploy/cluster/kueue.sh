#!/usr/bin/env bash
# Builds Kueue's controller, once for each version, for the test of queues (tests/components/test_kueue.py).
# usage: kueue.sh           build or get what is missing, and print the folder: kueue, and in definitions/ and webhooks.yaml what it
#                           brings to a cluster
#        kueue.sh --where   print the folder, built or not
set -euo pipefail

version=v0.17.0
tools=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}/tools
folder=$tools/kueue/$version
if [ "${1:-}" = --where ]; then echo "$folder"; exit; fi

"$(dirname "${BASH_SOURCE[0]}")/../benchmarks/go_program.sh" kueue sigs.k8s.io/kueue/cmd/kueue "$version" >&2
if [ ! -s "$folder/webhooks.yaml" ]; then
  components=$tools/go/path/pkg/mod/sigs.k8s.io/kueue@$version/config/components
  mkdir -p "$folder/definitions"
  install -m 0644 "$components"/crd/bases/*.yaml "$folder/definitions/"
  install -m 0644 "$components/webhook/manifests.yaml" "$folder/webhooks.yaml.new"
  mv "$folder/webhooks.yaml.new" "$folder/webhooks.yaml"
fi
echo "$folder"
