#!/usr/bin/env bash
# Builds grpcurl, which knows of a server only what its reflection says, from its Go module; prints the program.
set -euo pipefail

cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
tools=$cache/tools
version=v1.9.3
program=$tools/grpcurl/$version/grpcurl

if [ ! -x "$program" ]; then
  mkdir -p "${program%/*}"
  exec 9>"${program%/*}/lock"
  flock 9
fi
if [ ! -x "$program" ]; then
  go=$(command -v go || echo "$tools/go/toolchain/go/bin/go")
  [ -x "$go" ] || { echo "grpcurl: Go is needed to build it: run  make control-plane  first, or put Go on PATH" >&2; exit 5; }
  echo "grpcurl: building $version (about a minute)" >&2
  GOPATH=$tools/go/path GOCACHE=$tools/go/build GOFLAGS="-p=${BELVEDERE_BUILD_JOBS:-1} -modcacherw -buildvcs=false" \
    CGO_ENABLED=0 GOWORK=off GOBIN=${program%/*} \
    nice -n 10 "$go" install -trimpath -ldflags "-s -w" "github.com/fullstorydev/grpcurl/cmd/grpcurl@$version"
fi
echo "$program"
