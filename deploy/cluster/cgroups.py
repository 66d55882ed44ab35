"""The control groups of a bare node: one in each hierarchy of the machine, under which everything of the node is."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from belvedere_platform.errors import Unavailable

MOUNTS = Path("/proc/self/mountinfo")
LOOK_EVERY_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """One mounted hierarchy; version 1 has several, version 2 one, and a machine may have both."""

    target: Path
    type: str
    options: str

    def enter(self, name: str) -> Path:
        """Make the node's group and return the file that takes the processes in it."""
        group = self.target / name
        group.mkdir(exist_ok=True)
        for resource in ("cpuset.cpus", "cpuset.mems"):
            # Version 1 takes no process in before the group says where it may run.
            if self.type == "cgroup" and (group / resource).exists():
                (group / resource).write_text((self.target / resource).read_text())
        # A group counts as one program beside the machine's others: the node is many, and gets as much as one a core.
        for shares, one_program in (("cpu.shares", 1024), ("cpu.weight", 100)):
            if (group / shares).exists():
                (group / shares).write_text(str(one_program * (os.cpu_count() or 1)))
        return group / "cgroup.procs"

    def settle(self, name: str) -> None:
        """Let groups be made under the node's: in version 2 only one without processes of its own may share out."""
        if self.type != "cgroup2":
            return
        group = self.target / name
        (group / "init").mkdir(exist_ok=True)
        for pid in (group / "cgroup.procs").read_text().split():
            (group / "init" / "cgroup.procs").write_text(pid)
        for controller in (group / "cgroup.controllers").read_text().split():
            (group / "cgroup.subtree_control").write_text(f"+{controller}")

    def leave(self, name: str, timeout_seconds: float) -> None:
        """Remove the node's group and all under it. Raises Unavailable when one stays busy."""
        group = self.target / name
        deadline = time.monotonic() + timeout_seconds
        while group.exists():
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                _remove(folder)
            _remove(group)
            if group.exists() and time.monotonic() > deadline:
                raise Unavailable(f"the control group {group} stays busy: {(group / 'cgroup.procs').read_text()!r}")
            if group.exists():
                time.sleep(LOOK_EVERY_SECONDS)


def _remove(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # a process is still on its way out: the caller looks again


def hierarchies(mounts: str | None = None) -> list[Hierarchy]:
    """Return the hierarchies that are mounted below /sys/fs/cgroup."""
    found: dict[str, Hierarchy] = {}
    for line in (MOUNTS.read_text() if mounts is None else mounts).splitlines():
        place, _, source = line.partition(" - ")
        target = place.split()[4]
        kind, _, options = source.split()[:3]
        if kind in ("cgroup", "cgroup2") and target.startswith("/sys/fs/cgroup"):
            found[target] = Hierarchy(target=Path(target), type=kind, options=_mount_options(kind, options))
    return list(found.values())


def _mount_options(kind: str, options: str) -> str:
    if kind == "cgroup2":
        return "nsdelegate" if "nsdelegate" in options.split(",") else "rw"
    kept = [each for each in options.split(",") if each not in ("rw", "ro", "xattr", "clone_children")]
    # One that only has a name controls nothing, and has to say so.
    return ",".join(["none", *kept] if all(each.startswith(("name=", "release_agent=")) for each in kept) else kept)
