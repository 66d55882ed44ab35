"""What processes have used so far, by the kernel's account."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_USER, _SYSTEM = 11, 12
"""Where processor time stands in a process's line, behind its name."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Memory and processor time; nothing where no process was found."""

    memory_mib: float = 0.0
    cpu_seconds: float = 0.0


def usage(is_meant: Callable[[list[bytes]], bool]) -> Usage:
    """Return what the processes use, together, whose command line is meant."""
    memory, ticks = 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        # One may end while it is looked at.
        with contextlib.suppress(OSError):
            if is_meant((folder / "cmdline").read_bytes().split(b"\0")):
                fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                numbers = (folder / "stat").read_text().rpartition(")")[2].split()
                memory += int(fields["VmRSS"].split()[0])
                ticks += int(numbers[_USER]) + int(numbers[_SYSTEM])
    return Usage(memory_mib=memory / 1024, cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"))
