#!/usr/bin/env bash
# What ours is compared and tried with, in environments of their own in the cache: model servers and clients of KServe's SDK,
# FastAPI with uvicorn, Triton's perf_analyzer, and grpcurl where there is Go. (Newer ones of it need a newer C library than Debian 12 has.)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup/environment.sh"

fill() { packages "$1" "$root/.venv/bin/python" "${@:2}"; }
environment serving-peers 'kserve>=0.15' 'fastapi' 'uvicorn[standard]' 'onnxruntime>=1.20' 'pillow>=11' 'pydantic>=2.10' 'tokenizers>=0.20'

# The program is linked against two libraries that its wheel does not have: libb64 is Debian's, libcudart comes from PyPI.
fill() {
  packages "$1" "$root/.venv/bin/python" "${@:2}"
  mkdir -p "$1/lib/native"
  (cd "$1/lib/native" && apt-get download -q libb64-0d >/dev/null 2>&1 && dpkg -x libb64-0d_*.deb . && rm ./*.deb)
  find "$1/lib/native" "$1"/lib/python*/site-packages/nvidia -name 'lib*.so.*' -exec ln -sfr {} "$1/lib/" \;
}
if [ "$(uname -m)" = x86_64 ]; then
  environment perf-analyzer 'tritonclient[http,grpc]==2.41.1' 'nvidia-cuda-runtime-cu12==12.*'
fi
"$root/deploy/benchmarks/grpcurl.sh" >/dev/null || echo "grpcurl is left out" >&2
