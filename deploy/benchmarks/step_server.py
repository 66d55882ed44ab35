"""Make training steps when told, and say what they cost: both sides of a comparison are such a process.

Lines on standard input: `N` makes N steps and answers {"cpu_seconds", "wall_seconds", "loss"}; the end of the input is
answered with {"peak_bytes"}, the most that was resident above what was resident before the model was made, or on a GPU the
most that tensors took there. It needs torch alone, so that it also runs in the environment of a peer.

With $BELVEDERE_BENCH_DEVICE=cuda steps are made on the GPU, their products in bfloat16.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

PAGE = resource.getpagesize()
DEVICE = torch.device(os.environ.get("BELVEDERE_BENCH_DEVICE", "cpu"))


def autocast() -> torch.autocast:
    """Return the context of a forward pass: float32 on a processor, bfloat16 on a GPU."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda")


def resident_bytes() -> int:
    """Return what is resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def peak_bytes() -> int:
    """Return the most that was ever resident, on a GPU the most that tensors took."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss, in which what was resident in the process that started this one counts too.
    told = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(told.split()[1]) * 1024


def serve(make_step: Callable[[], Callable[[], float]]) -> None:
    """Build the step, then make steps until the input ends."""
    before = resident_bytes() if DEVICE.type == "cpu" else 0
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
