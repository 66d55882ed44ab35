#!/usr/bin/env bash
# What converts models for LiteRT, in an environment of its own in the cache: litert-torch asks for an older torch and pydantic
# than ours. It takes our torch (the programs come from there), hard-linked from the same cache, so little is stored twice.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
export UV_CACHE_DIR=$cache/uv
uv=$cache/tools/uv/bin/uv
target=$cache/tools/litert
packages=('litert-torch==0.10.0' 'ai-edge-quantizer==0.10.0')
overrides=("$(grep -o '^torch==[^ ;\\]*' "$root/requirements/lock.txt")" 'typing-extensions>=4.13')

stamp=$(printf '%s\n' "${packages[@]}" "${overrides[@]}" | sha256sum | cut -c1-16)
[ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ] && exit 0
[ -x "$uv" ] || "$root/deploy/setup/setup.sh"

printf '\033[1m%s\033[0m %s\n' "litert:" "setting up the converter" >&2
work=$target.new.$$
trap 'rm -rf "$work"' EXIT
"$uv" venv -q --relocatable --python "$root/.venv/bin/python" "$work"
printf '%s\n' "${overrides[@]}" > "$work/overrides.txt"
"$uv" pip install -q --python "$work/bin/python" --overrides "$work/overrides.txt" "${packages[@]}"
echo "$stamp" > "$work/ready"
# Whoever was first wins; a set-up beside ours makes the same.
rm -rf "$target" && mv -T "$work" "$target"
