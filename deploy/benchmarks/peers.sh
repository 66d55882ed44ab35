#!/usr/bin/env bash
# The model servers that ours is compared with, in an environment of their own in the cache: KServe's SDK, and FastAPI with uvicorn.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
export UV_CACHE_DIR=$cache/uv
uv=$cache/tools/uv/bin/uv
target=$cache/tools/serving-peers
packages=('kserve>=0.15' 'fastapi' 'uvicorn[standard]' 'onnxruntime>=1.20' 'pillow>=11' 'pydantic>=2.10' 'tokenizers>=0.20')
stamp=$(printf '%s\n' "${packages[@]}" | sha256sum | cut -c1-16)
[ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ] && exit 0
[ -x "$uv" ] || "$root/deploy/setup/setup.sh"
printf 'setting up the peers of the serving benchmark\n' >&2
work=$target.new.$$
trap 'rm -rf "$work"' EXIT
"$uv" venv -q --relocatable --python "$root/.venv/bin/python" "$work"
"$uv" pip install -q --python "$work/bin/python" "${packages[@]}"
echo "$stamp" > "$work/ready"
rm -rf "$target" && mv -T "$work" "$target"
