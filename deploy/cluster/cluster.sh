#!/usr/bin/env bash
# The test cluster of this checkout: cluster.sh up|down|test|short. By kind where Docker runs, else a bare node.
# `test ARGUMENT…` runs tests/cluster, with the arguments for pytest: on the cluster that BELVEDERE_TEST_KUBECONFIG names,
# else on kind's, which stays, else on a bare node of its own, which does not.
# `short` tells of them only the story: installed, trained, compiled, served, deleted, with no more rights than needed.
# BELVEDERE_CLUSTER=kind or bare chooses by hand.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
directory=$(cd "$here/../.." && pwd)/build/cluster
choice=${BELVEDERE_CLUSTER:-}
[ -n "$choice" ] || { if docker info >/dev/null 2>&1; then choice=kind; else choice=bare; fi; }

case ${1:-}-$choice in
  up-kind) "$here/../kind/kind.sh" up "$directory-kind" ;;
  up-bare)
    "$here/build_node.sh"
    python "$here/bare_node.py" up --directory "$directory" ;;
  # Both, as what is chosen may have changed since.
  down-*)
    if docker info >/dev/null 2>&1 && [ -d "$directory-kind" ]; then "$here/../kind/kind.sh" down "$directory-kind"; fi
    python "$here/bare_node.py" down --directory "$directory" ;;
  test-* | short-*)
    chosen=()
    [ "$1" = test ] || chosen=(-k "(test_belvedere and not candidate and not triton and not scales) or nothing_left or (rights_in_use and not whole_story)")
    if [ -z "${BELVEDERE_TEST_KUBECONFIG:-}" ]; then
      if [ "$choice" = kind ]; then
        BELVEDERE_TEST_KUBECONFIG=$("$here/../kind/kind.sh" up "$directory-kind")
        BELVEDERE_TEST_VALUES=$here/../images/values.yaml
        export BELVEDERE_TEST_KUBECONFIG BELVEDERE_TEST_VALUES
      else
        "$here/build_node.sh"
      fi
    fi
    BELVEDERE_CLUSTER_TEST=1 exec python -m pytest "$here/../../tests/cluster" "${chosen[@]}" "${@:2}" ;;
  *) echo "cluster: usage: cluster.sh up|down|test|short, with BELVEDERE_CLUSTER=kind or bare" >&2; exit 2 ;;
esac
