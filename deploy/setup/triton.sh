#!/usr/bin/env bash
# The real Triton server from PyPI, in an environment of its own in the cache: about 440 MB, seconds from a warm cache.
# Its Python backend is linked against Debian's own Python 3.11 and runs with no other build of it; nor has it another backend.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

die() { printf 'triton: %s\n' "$*" >&2; exit 5; }

fill() {
  local work=$1 server
  shift
  [ "$(uname -m)" = x86_64 ] || die "PyPI has Triton for x86_64 only"
  [ -x /usr/bin/python3 ] && /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    die "Triton from PyPI needs Debian's own Python 3.11 at /usr/bin/python3"
  packages "$work/venv" /usr/bin/python3 "$@"
  server=$work/venv/lib/python3.11/site-packages/pytriton/tritonserver
  cp -r "$server/backends" "$work/backends"
  cp "$server/python_backend_stubs/3.11/triton_python_backend_stub" "$work/backends/python/"
}
environment triton 'nvidia-pytriton==0.7.0' 'numpy<2' 'onnxruntime>=1.20' 'openvino>=2025.0' 'pillow>=11' 'pydantic>=2.10' 'tokenizers>=0.20'
