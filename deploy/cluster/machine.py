"""Whether this machine can run a bare node, found out by making what a node is made of, in namespaces that end with the check."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from belvedere_platform.errors import InvalidInput, Unavailable
from cgroups import hierarchies

NEEDED_COMMANDS = ("ip", "mount", "unshare", "nsenter")
PROBE = """set -e
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/merged
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work overlay /run/merged
ip link add probe type veth peer name other
"""
PROBE_TIMEOUT_SECONDS = 30


def check_machine() -> None:
    """Return when a node can run here. Raises InvalidInput or Unavailable, which say what is missing and what to do."""
    if os.geteuid() != 0:
        raise InvalidInput("a node without Docker needs root: use  sudo -E make cluster-up, or start Docker for kind")
    for command in NEEDED_COMMANDS:
        if shutil.which(command) is None:
            raise InvalidInput(f"{command} is needed: install iproute2 and util-linux")
    if not Path("/etc/debian_version").exists():
        raise Unavailable("containerd and its tools come from packages of Debian or Ubuntu: start Docker for kind")
    mounted = hierarchies()
    if not mounted or not all(os.access(each.target, os.W_OK) for each in mounted):
        raise Unavailable("control groups are needed below /sys/fs/cgroup, and must be writable: start Docker for kind")
    spaces = ["--mount", "--net", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        ["unshare", *spaces, "sh", "-c", PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT_SECONDS
    )
    if done.returncode:
        raise Unavailable(
            f"namespaces, overlay mounts and veth links are needed, and this machine refuses: {done.stderr.strip()}; "
            "start Docker for kind"
        )
