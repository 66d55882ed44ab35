#!/usr/bin/env bash
# Builds metrics-server, once for each version, for the test of a HorizontalPodAutoscaler (tests/cluster/test_horizontal_scaling.py).
# usage: metrics_server.sh           build it unless it is there, and print the program
#        metrics_server.sh --where   print the program, built or not
set -euo pipefail

version=v0.8.0
if [ "${1:-}" = --where ]; then
  echo "${BELVEDERE_CACHE:-$HOME/.cache/belvedere}/tools/metrics-server/$version/metrics-server"
  exit
fi
exec "$(dirname "${BASH_SOURCE[0]}")/../benchmarks/go_program.sh" metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server "$version"
