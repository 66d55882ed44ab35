"""Choose number format and threads by measuring: machines differ by more than any rule of thumb."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from belvedere_training.model.dual import DualStream

Clock = Callable[[], float]
_ROWS = 32
_MINIMUM_GAIN = 1.1  # bfloat16 loses digits, so it must be clearly faster


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How steps are computed."""

    precision: str
    threads: int

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the forward pass runs."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def choose(
    model: DualStream, asked: str, thread_counts: Iterable[int], device: torch.device, clock: Clock = time.perf_counter
) -> tuple[Execution, dict[str, float]]:
    """Return the fastest way to compute a step, and pairs a second of each that was tried."""
    formats = ("fp32", "bf16") if asked == "auto" else (asked,)
    rates: dict[tuple[str, int], float] = {}
    for precision, threads in itertools.product(formats, sorted(set(thread_counts))):
        rates[precision, threads] = _pairs_per_second(
            model, Execution(precision=precision, threads=threads), device, clock
        )
    report = {f"{precision} x {threads} threads": round(rate, 1) for (precision, threads), rate in rates.items()}
    return pick(rates), report


def pick(rates: dict[tuple[str, int], float]) -> Execution:
    """Return the fastest; bf16 only where it beats the best fp32 by a tenth."""
    best = {precision: max((r, t) for (p, t), r in rates.items() if p == precision) for precision, _ in rates}
    if "fp32" not in best:
        return Execution(precision="bf16", threads=best["bf16"][1])
    faster = "bf16" in best and best["bf16"][0] >= _MINIMUM_GAIN * best["fp32"][0]
    precision = "bf16" if faster else "fp32"
    return Execution(precision=precision, threads=best[precision][1])


def _pairs_per_second(model: DualStream, execution: Execution, device: torch.device, clock: Clock) -> float:
    """Time forward and backward of a small batch; weights, running statistics and gradients stay as they were."""
    size = model.config.vision.image_size
    pixels_B3SS = torch.zeros(_ROWS, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    tokens_BT = torch.ones(_ROWS, model.config.text.context_length, dtype=torch.long, device=device)
    before = torch.get_num_threads()
    torch.set_num_threads(execution.threads)
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    taken = []
    for _ in range(3):
        start = clock()
        with execution.autocast(device):
            image_BE, text_BE, scale = model(pixels_B3SS, tokens_BT)
        (scale * (image_BE * text_BE).sum()).backward()
        taken.append(clock() - start)
    _restore(model, saved)
    torch.set_num_threads(before)
    return _ROWS / max(min(taken[1:]), 1e-9)


def _restore(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(saved[name])
    model.zero_grad(set_to_none=True)
