#!/usr/bin/env bash
# Pins what each image holds: requirements/images/NAME.txt from deploy/images/NAME.in, with the versions of requirements/lock.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
uv=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}/tools/uv/bin/uv

pin() {
  local source=deploy/images/$1.in target=requirements/images/$2.txt
  shift 2
  "$uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    -c requirements/lock.txt --overrides deploy/images/overrides.txt "$@" "$source" -o "$target"
}

pin operator operator
pin gateway gateway
pin server server
pin trainer trainer-cuda
# PyTorch's CPU build comes from its own index, so it is installed by name in the image.
pin trainer trainer-cpu --excludes deploy/images/cuda.txt --no-emit-package torch
