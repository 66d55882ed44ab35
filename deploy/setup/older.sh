#!/usr/bin/env bash
# Unpacks an older state of this repository into the cache, for `make upgrade-test`, and prints its folder.
# usage: older.sh [REF]    default: the last release before this state, else the commit named here
set -euo pipefail

# While there is no release: the first state whose operator is at rest when there is nothing to do.
first=94077e78dd3387c80d3efc706d56ade630e6175e
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
# What an older operator and gateway need; their libraries are this checkout's.
parts=(platform operators serving training helm/belvedere/files/crds deploy/examples)

die() { printf 'upgrade: %s\n' "$*" >&2; exit 5; }

git -C "$root" rev-parse --git-dir >/dev/null 2>&1 || die "$root is no clone of the repository, so it has no older state: clone it"
ref=${1:-}
[ -n "$ref" ] || ref=$(git -C "$root" describe --tags --abbrev=0 --match 'v*' HEAD~ 2>/dev/null || echo "$first")
if ! commit=$(git -C "$root" rev-parse --verify --quiet "$ref^{commit}"); then
  [ "$(git -C "$root" rev-parse --is-shallow-repository)" = false ] || die "this clone is shallow and does not have $ref: run  git fetch --unshallow --tags  first"
  die "$ref is in no history here: run  git fetch --tags  first, or name another with  make upgrade-test FROM=REF"
fi
folder=$cache/older/$commit
if [ ! -d "$folder" ]; then
  mkdir -p "$cache/older"
  new=$(mktemp -d "$cache/older/new.XXXXXX")
  git -C "$root" archive "$commit" -- "${parts[@]}" | tar -x -C "$new"
  mv -T "$new" "$folder" 2>/dev/null || rm -r "$new"
fi
echo "$folder"
