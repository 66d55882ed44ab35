#!/usr/bin/env bash
# What converts models for LiteRT, in an environment of its own in the cache: litert-torch asks for an older torch and pydantic
# than ours. It takes our torch (the programs come from there), hard-linked from the same cache, so little is stored twice.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

wanted=('litert-torch==0.10.0' 'ai-edge-quantizer==0.10.0')
overrides=("$(grep -o '^torch==[^ ;\\]*' "$root/requirements/lock.txt")" 'typing-extensions>=4.13')

fill() { packages "$1" "$root/.venv/bin/python" --overrides <(printf '%s\n' "${overrides[@]}") "${wanted[@]}"; }
environment litert "${wanted[@]}" "${overrides[@]}"
