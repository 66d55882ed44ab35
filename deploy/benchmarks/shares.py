"""Say whose processor time a measurement took: the operator, the API server and what plays the rest share one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

CALLED = {"kube-apiserver": "API server", "kube-controller-manager": "controller manager"}
"""What people call the programs of a control plane."""


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def control_plane_programs(directory: Path) -> dict[str, int]:
    """Return the process ids of the programs that a control plane has in its directory, by what they are called."""
    record = directory / "processes"
    if not record.exists():
        return {}
    started = dict(line.split()[:2] for line in record.read_text().splitlines())
    return {CALLED.get(program, program): int(pid) for program, pid in started.items()}


class Meter:
    """Reads the processor time of some processes, by what they are called."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = dict(processes)
        self._before = self._read()

    def used(self) -> dict[str, float]:
        """Return what each has used since this was made."""
        now = self._read()
        return {name: now[name] - before for name, before in self._before.items()}

    def _read(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._processes.items()}


def told(used: Mapping[str, float]) -> str:
    """Return the shares as a note, the largest first."""
    total = sum(used.values()) or 1.0
    ordered = sorted(used.items(), key=lambda one: -one[1])
    return "processor time: " + ", ".join(
        f"{name} {seconds:.0f} s ({seconds / total:.0%})" for name, seconds in ordered
    )
