#!/usr/bin/env bash
# Asks an API server whether the examples of this directory are valid: validate.sh KUBECONFIG [DEFINITION.yaml…]
# Cilium's resource definitions come from its Go module. Those of KubeEdge and OpenYurt are not to be had that way: name their files
# (KubeEdge: nodegroups.apps.kubeedge.io; OpenYurt: nodepools.apps.openyurt.io), or their examples are left out, which is said.
# The definitions stay installed: use the API server of `make control-plane`, not a cluster that has others of the same name.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cilium=github.com/cilium/cilium@v1.18.0
kubectl=(kubectl --kubeconfig "$1")
shift

apply_definitions() { "${kubectl[@]}" apply --server-side --force-conflicts -f "$1" >/dev/null; }

export GOFLAGS=-modcacherw
folder=$(cd / && go mod download -json "$cilium" | awk -F'"' '$2 == "Dir" { print $4 }')
apply_definitions "$folder/pkg/k8s/apis/cilium.io/client/crds/v2/ciliumnetworkpolicies.yaml"
for file in "$@"; do apply_definitions "$file"; done
"${kubectl[@]}" wait --for=condition=Established --timeout=60s crd --all >/dev/null
"${kubectl[@]}" create namespace shop-a --dry-run=client -o yaml | "${kubectl[@]}" apply -f - >/dev/null

for file in "$here"/*/*.yaml "$here"/service.yaml; do
  kind=$(awk '$1 == "kind:" { print $2; exit }' "$file")
  if [ -z "$("${kubectl[@]}" api-resources --no-headers 2>/dev/null | awk -v kind="$kind" '$NF == kind')" ]; then
    echo "left out: $(basename "$(dirname "$file")")/$(basename "$file") ($kind is not installed)"
    continue
  fi
  "${kubectl[@]}" apply --server-side --dry-run=server --validate=strict --field-manager=check -f "$file"
done
"${kubectl[@]}" delete --wait=false namespace shop-a >/dev/null
