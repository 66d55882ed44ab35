#!/usr/bin/env bash
# Builds a program from its Go module, once for each version; prints its path.
# usage: go_program.sh NAME PACKAGE VERSION   for example  go_program.sh kwok sigs.k8s.io/kwok/cmd/kwok v0.8.0
set -euo pipefail

name=$1 package=$2 version=$3
tools=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}/tools
program=$tools/$name/$version/$name

if [ ! -x "$program" ]; then
  mkdir -p "${program%/*}"
  exec 9>"${program%/*}/lock"
  flock 9
fi
if [ ! -x "$program" ]; then
  go=$(command -v go || echo "$tools/go/toolchain/go/bin/go")
  [ -x "$go" ] || { echo "$name: Go is needed to build it: run  make control-plane  first, or put Go on PATH" >&2; exit 5; }
  echo "$name: building $version (a minute or two)" >&2
  GOPATH=$tools/go/path GOCACHE=$tools/go/build GOFLAGS="-p=${BELVEDERE_BUILD_JOBS:-1} -modcacherw -buildvcs=false" \
    CGO_ENABLED=0 GOWORK=off GOBIN=${program%/*} \
    nice -n 10 "$go" install -trimpath -ldflags "-s -w" "$package@$version"
fi
echo "$program"
