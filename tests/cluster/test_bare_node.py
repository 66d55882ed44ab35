"""The bare node: started once, and ended without a trace however much of it was killed before."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from belvedere_operators.executors.identity import Identity, find_instance

from .conftest import require_bare_node
from .node import BARE_NODE, ROOT, run, start_program, stop_program

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PATIENCE_SECONDS = 120
# What programs of a node write to when nobody keeps them from it.
PLACES = ("/etc/cni", "/opt/cni", "/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods")
SETTINGS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")


def name_of(directory: Path) -> str:
    return "belvedere-" + hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]


def members(directory: Path) -> set[Identity]:
    """Return the processes of the node, those of its pods too."""
    return find_instance(f"cluster-{name_of(directory)}")


def traces() -> dict[str, set[str]]:
    """Return what a node could leave on the machine."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    groups = Path("/sys/fs/cgroup").glob("*/*/")
    routes = subprocess.run(["ip", "route", "show", "table", "all"], check=True, capture_output=True, text=True)
    return {
        "mounts": {line.split()[4] for line in mounts},
        "interfaces": {path.name for path in Path("/sys/class/net").iterdir()},
        "routes": set(routes.stdout.splitlines()),
        "control groups": {str(path) for path in groups},
        "files": {place for place in PLACES if Path(place).exists()},
        "settings": {f"{name} {Path('/proc/sys', name).read_text().strip()}" for name in SETTINGS},
        "rules": rules(),
    }


def rules() -> set[str]:
    """Return the packet filter's rules, by the programs that were unpacked for the node."""
    where = subprocess.run(
        [ROOT / "deploy/cluster/build_node.sh", "--where"], check=True, capture_output=True, text=True
    )
    packages = Path(dict(line.split(maxsplit=1) for line in where.stdout.splitlines())["packages"])
    libraries = next((packages / "usr/lib").glob("*-linux-gnu"))
    found = set()
    for program in ("iptables-nft-save", "iptables-legacy-save"):
        saved = subprocess.run(
            [packages / "usr/sbin" / program],
            capture_output=True,
            text=True,
            env={"LD_LIBRARY_PATH": str(libraries), "XTABLES_LIBDIR": str(libraries / "xtables")},
        )
        found |= {line for line in saved.stdout.splitlines() if line.startswith(("-A", ":KUBE"))}
    return found


def assert_no_trace(before: dict[str, set[str]], directory: Path) -> None:
    """Fail for whatever is there that was not, except what belongs to a node of someone else."""
    assert members(directory) == set()
    assert not directory.exists()
    for what, there in traces().items():
        new = there - before[what]
        others = {each for each in new if "bv" in each or "belvedere-" in each} if what != "settings" else set()
        own = {each for each in others if name_of(directory) in each}
        assert new - (others - own) == set(), what


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of this test's own, in which nothing runs afterwards."""
    require_bare_node()
    place = ROOT / "build" / f"cluster-trace-{os.getpid()}"
    yield place
    assert run("down", place).returncode == 0


def test_it_is_started_once_and_leaves_no_trace_when_half_of_it_was_killed(directory: Path) -> None:
    before = traces()
    first = run("up", directory)
    assert first.returncode == 0, first.stderr
    kubeconfig = Path(first.stdout.strip())
    assert kubeconfig.stat().st_mode & 0o077 == 0
    started = members(directory)
    assert run("up", directory).stdout == first.stdout
    assert started <= members(directory)
    for member in random.Random(0).sample(sorted(started), len(started) // 2):
        member.send(signal.SIGKILL)
    done = run("down", directory)
    assert done.returncode == 0, done.stderr
    assert_no_trace(before, directory)


def test_one_that_was_killed_while_it_started_leaves_no_trace(directory: Path) -> None:
    before = traces()
    starting = subprocess.Popen([*BARE_NODE, "up", "--directory", str(directory)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    # The programs of the control plane, the first process of the namespaces and the one that made them.
    while len(members(directory)) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    starting.kill()
    starting.wait()
    done = run("down", directory)
    assert done.returncode == 0, done.stderr
    assert_no_trace(before, directory)


def test_a_program_that_dies_is_started_again_and_a_stopped_one_is_not(node: Path) -> None:
    plan = json.loads((node / "config" / "plan.json").read_text())
    stop_program(node, "kube-scheduler")
    wait_until(lambda: not runs(node, plan, "kube-scheduler"))
    start_program(node, "kube-scheduler")
    wait_until(lambda: runs(node, plan, "kube-scheduler"))
    for member in runs(node, plan, "kube-scheduler"):
        member.send(signal.SIGKILL)
    # The file comes with the first program that ends.
    wait_until(lambda: (node / "ended").exists() and "kube-scheduler -9" in (node / "ended").read_text())
    wait_until(lambda: runs(node, plan, "kube-scheduler"))


def runs(directory: Path, plan: dict[str, dict[str, list[str]]], program: str) -> list[Identity]:
    """Return the processes of a program."""
    command = plan["programs"][program][0].encode()
    return [each for each in members(directory) if command_line(each).startswith(command)]


def command_line(identity: Identity) -> bytes:
    try:
        return Path(f"/proc/{identity.pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
