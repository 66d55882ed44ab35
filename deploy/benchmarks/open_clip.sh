#!/usr/bin/env bash
# Prints the python of an environment with open_clip_torch, made once in the cache: a peer of the benchmarks, no dependency.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
peer=$cache/peers/open-clip
export UV_CACHE_DIR=$cache/uv
uv=$cache/tools/uv/bin/uv
if [ ! -e "$peer/.ready" ]; then
  torch=$("$root/.venv/bin/python" -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])')
  rm -rf "$peer"
  "$uv" venv -q --python "$root/.venv/bin/python" "$peer"
  "$uv" pip install -q --python "$peer/bin/python" "open_clip_torch>=3.3,<4" "torch==$torch" torchvision safetensors >&2
  touch "$peer/.ready"
fi
echo "$peer/bin/python"
