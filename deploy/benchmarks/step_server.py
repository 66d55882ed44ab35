"""Make training steps when told, and say what they cost: both sides of a comparison are such a process.

Lines on standard input: `N` makes N steps and answers {"cpu_seconds", "wall_seconds", "loss"}; the end of the input is
answered with {"peak_bytes"}, the most that was resident above what was resident before the model was made. It needs torch
alone, so that it also runs in the environment of a peer.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

PAGE = resource.getpagesize()


def resident_bytes() -> int:
    """Return what is resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def peak_bytes() -> int:
    """Return the most that was ever resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(make_step: Callable[[], Callable[[], float]]) -> None:
    """Build the step, then make steps until the input ends."""
    before = resident_bytes()
    step = make_step()
    _answer({"ready": True})
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        loss = 0.0
        for _ in range(int(line)):
            loss = step()
        _answer({"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall, "loss": loss})
    _answer({"peak_bytes": peak_bytes() - before})


def _answer(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
