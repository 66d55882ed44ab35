# For other scripts to read in: environments of their own in the cache, for what does not go with ours.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
export UV_CACHE_DIR=$cache/uv
uv=$cache/tools/uv/bin/uv

# packages FOLDER PYTHON OPTIONS-AND-PACKAGES...: what a `fill` mostly does.
packages() {
  "$uv" venv -q --relocatable --python "$2" "$1"
  "$uv" pip install -q --python "$1/bin/python" "${@:3}"
}

# environment NAME WORDS...: has it made by `fill FOLDER WORDS...`, unless it is there and was made of the same words.
environment() {
  local name=$1 target=$cache/tools/$1 stamp
  shift
  stamp=$(printf '%s\n' "$@" | sha256sum | cut -c1-16)
  [ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ] && return 0
  [ -x "$uv" ] || "$root/deploy/setup/setup.sh"
  printf '\033[1m%s\033[0m %s\n' "$name:" "setting up an environment of its own" >&2
  work=$target.new.$$
  trap 'rm -rf "$work"' EXIT
  fill "$work" "$@"
  echo "$stamp" > "$work/ready"
  # Whoever was first wins; a set-up beside ours makes the same.
  rm -rf "$target" && mv -T "$work" "$target"
}
