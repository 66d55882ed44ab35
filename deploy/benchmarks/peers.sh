#!/usr/bin/env bash
# What ours is compared and tried with, in environments of their own in the cache: model servers and clients of KServe's SDK,
# FastAPI with uvicorn, Triton's perf_analyzer, and grpcurl where there is Go. (Newer ones of it need a newer C library than Debian 12 has.)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
export UV_CACHE_DIR=$cache/uv
uv=$cache/tools/uv/bin/uv

stamp_of() { printf '%s\n' "$@" | sha256sum | cut -c1-16; }

# environment NAME PACKAGES...: makes it where it is not there as asked for; `finish WORK` may add to it.
environment() {
  local target=$cache/tools/$1 stamp
  shift
  stamp=$(stamp_of "$@")
  [ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ] && return 0
  [ -x "$uv" ] || "$root/deploy/setup/setup.sh"
  printf 'setting up %s\n' "$(basename "$target")" >&2
  work=$target.new.$$
  trap 'rm -rf "$work"' EXIT
  "$uv" venv -q --relocatable --python "$root/.venv/bin/python" "$work"
  "$uv" pip install -q --python "$work/bin/python" "$@"
  finish "$work"
  echo "$stamp" > "$work/ready"
  rm -rf "$target" && mv -T "$work" "$target"
}

finish() { :; }
environment serving-peers 'kserve>=0.15' 'fastapi' 'uvicorn[standard]' 'onnxruntime>=1.20' 'pillow>=11' 'pydantic>=2.10' 'tokenizers>=0.20'

# The program is linked against two libraries that its wheel does not have: libb64 is Debian's, libcudart comes from PyPI.
finish() {
  mkdir -p "$1/lib/native"
  (cd "$1/lib/native" && apt-get download -q libb64-0d >/dev/null 2>&1 && dpkg -x libb64-0d_*.deb . && rm ./*.deb)
  find "$1/lib/native" "$1"/lib/python*/site-packages/nvidia -name 'lib*.so.*' -exec ln -sfr {} "$1/lib/" \;
}
if [ "$(uname -m)" = x86_64 ]; then
  environment perf-analyzer 'tritonclient[http,grpc]==2.41.1' 'nvidia-cuda-runtime-cu12==12.*'
fi
"$root/deploy/benchmarks/grpcurl.sh" >/dev/null || echo "grpcurl is left out" >&2
