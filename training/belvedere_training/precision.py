"""Choose number format and threads by measuring: machines differ by more than any rule of thumb."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from belvedere_training.model.dual import DualStream

Clock = Callable[[], float]
_FIRST_ROWS = 4
_ROWS = 32
_TIMES = 4
_MINIMUM_GAIN = 1.1  # bfloat16 loses digits and threads take cores from others, so they must be clearly faster


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How steps are computed."""

    precision: str
    threads: int

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the forward pass runs."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(device.type, dtype=dtype, enabled=self.precision != "fp32")


def choose(
    model: DualStream, asked: str, thread_counts: Iterable[int], device: torch.device, clock: Clock | None = None
) -> tuple[Execution, dict[str, float]]:
    """Return the fastest way to compute a step, and pairs a second of each that was tried; nothing is tried where only one may be.

    On processors, formats are compared by the processor time of one thread: neighbours on the same cores would
    otherwise decide. Threads are compared by the wall clock, because waiting for one another is what they may cost.
    """
    on_cpu = device.type == "cpu"
    timer = clock or _timer(on_cpu)
    formats = ("fp32", "bf16") if asked == "auto" else (asked,)
    rates: dict[str, float] = {}
    counts = sorted(set(thread_counts))
    if len(formats) == len(counts) == 1:
        return Execution(precision=asked, threads=counts[0]), rates
    for rows in (_FIRST_ROWS, _ROWS) if len(formats) > 1 else (_ROWS,):
        rates |= {
            name: _pairs_per_second(model, Execution(precision=name, threads=1), device, timer, rows)
            for name in formats
            if _may_win(name, rates)
        }
    precision = pick(rates) if asked == "auto" else asked
    report = {f"{name} x 1": round(rate, 1) for name, rate in rates.items()}
    by_wall = {
        threads: _pairs_per_second(
            model, Execution(precision=precision, threads=threads), device, clock or time.perf_counter, _ROWS
        )
        for threads in counts
        if len(counts) > 1
    }
    report |= {f"{precision} x {threads}, wall": round(rate, 1) for threads, rate in by_wall.items()}
    threads = fewest(by_wall) if by_wall else counts[-1]
    return Execution(precision=precision, threads=threads), report


def unmeasured(asked: str, threads: int, device: torch.device) -> Execution:
    """Return how to compute what is too large to be tried first: bfloat16 where the device has it."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Execution(precision=("bf16" if half else "fp32") if asked == "auto" else asked, threads=threads)


def _may_win(name: str, rates: Mapping[str, float]) -> bool:
    """Return whether a format is worth the longer measurement: without hardware for it bfloat16 is ten times slower."""
    return name not in rates or 2 * rates[name] >= max(rates.values())


def _timer(on_cpu: bool) -> Clock:
    return time.process_time if on_cpu else time.perf_counter


def pick(rates: Mapping[str, float]) -> str:
    """Return the faster format; bf16 only where it beats fp32 by a tenth."""
    return "bf16" if rates.get("bf16", 0.0) >= _MINIMUM_GAIN * rates["fp32"] else "fp32"


def fewest(rates: Mapping[int, float]) -> int:
    """Return the least number of threads that none beats by a tenth: on a GPU they differ by chance alone."""
    return min(count for count, rate in rates.items() if _MINIMUM_GAIN * rate > max(rates.values()))


def _pairs_per_second(model: DualStream, execution: Execution, device: torch.device, clock: Clock, rows: int) -> float:
    """Time forward and backward of a small batch; weights, running statistics and gradients stay as they were."""
    size = model.config.vision.image_size
    pixels_B3SS = torch.zeros(rows, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    tokens_BT = torch.ones(rows, model.config.text.max_length, dtype=torch.long, device=device)
    before = torch.get_num_threads()
    torch.set_num_threads(execution.threads)
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    taken = []
    for _ in range(_TIMES):
        start = clock()
        with execution.autocast(device):
            image_BE, text_BE, scale = model(pixels_B3SS, tokens_BT)
        (scale * (image_BE * text_BE).sum()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(clock() - start)
    _restore(model, saved)
    torch.set_num_threads(before)
    return rows / max(min(taken[1:]), 1e-9)  # the first one prepares kernels


def _restore(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(saved[name])
    model.zero_grad(set_to_none=True)
