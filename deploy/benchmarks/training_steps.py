"""What a training step costs beside OpenCLIP's from the same weights, and what GradCache costs beside a small batch.

Both sides of a timing alternate in the same run, each on one thread, and are compared by processor time: neighbours on the
same cores would otherwise decide. Memory is what is resident at most, above what the process had before its model.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.gradcache import Embedded, cached_backward, chunks
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.contrastive import contrastive_loss
from own_step import SMALL, converted
from training_subject import Subject

HERE = Path(__file__).parent
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Large blocks go back to the system when they are freed, on both sides: else the peak is what glibc's heap keeps in pieces."""
CACHE_TIMES = 8
NAMES = (
    "open_clip_forward_error",
    "step_vs_open_clip_images_per_second",
    "step_vs_open_clip_peak_memory",
)
CACHE_NAMES = ("gradcache_memory_ratio", "gradcache_gradient_error")


class Side:
    """A process that makes steps when told."""

    def __init__(self, python: str, *arguments: str, device: str = "cpu") -> None:
        command = [python, str(HERE / arguments[0]), *arguments[1:]]
        environment = {**os.environ, **RETURNED, "BELVEDERE_BENCH_DEVICE": device}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer()["ready"]

    def steps(self, count: int) -> dict[str, Any]:
        """Make steps and return what they cost."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> float:
        """End the process and return its peak in bytes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = float(self._answer()["peak_bytes"])
        self.process.wait(timeout=60)
        return peak

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait(timeout=60)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where both sides make their steps. steps: in a turn; clock: which of a side's times counts; prefix: of the rows' names."""

    device: str
    batch: int
    rounds: int
    steps: int
    clock: str
    cache_batch: int
    said: str
    prefix: str = ""


ON_PROCESSOR = Place(
    device="cpu", batch=16, rounds=5, steps=1, clock="cpu_seconds", cache_batch=32, said="fp32, one thread, processor time"
)  # fmt: skip


def rows(subject: Subject) -> list[Row]:
    """Train one architecture from the same weights on the same batch on both sides."""
    found = step_rows(subject.folder, ON_PROCESSOR)
    error = _forward_error(_clip_file(subject.folder))
    said = "largest difference of embeddings on the same weights"
    return [result(NAMES[0], error, "absolute", "lower", 1e-4, note=said), *found]


def step_rows(folder: Path, place: Place) -> list[Row]:
    """Return pictures a second and peak memory of our step as shares of OpenCLIP's, in alternating turns."""
    peer, file = _open_clip(), _clip_file(folder)
    output_of(peer, HERE / "open_clip_step.py", "prepare", file, str(place.batch))
    own, full, other = (
        Side(sys.executable, "own_step.py", "serve", str(file), device=place.device),
        Side(sys.executable, "own_step.py", "serve", str(file), "--full-context", device=place.device),
        Side(peer, "open_clip_step.py", "serve", str(file), device=place.device),
    )
    rates: dict[Side, list[float]] = {own: [], full: [], other: []}
    losses = {side: side.steps(place.steps)["loss"] for side in rates}
    for _ in range(place.rounds):
        for side, found in rates.items():
            found.append(place.batch * place.steps / side.steps(place.steps)[place.clock])
    peaks = {side: side.end() / 2**20 for side in rates}
    ratios, whole = ([a / b for a, b in zip(rates[side], rates[other], strict=True)] for side in (own, full))
    note = (
        f"ViT-S-32, batch {place.batch}, {place.said}, AdamW on both sides (ours fused); ours cuts texts to the longest of the "
        f"batch, at the full context it is {statistics.median(whole):.2f} x; losses after the first {place.steps} "
        f"{losses[own]:.4f} and {losses[other]:.4f}"
    )
    memory = {"own_value": peaks[own], "peer": "open_clip", "peer_value": peaks[other]}
    said = f"MiB above the process without a model; ours at the full context {peaks[full]:.0f}"
    return [
        _ratio_row(f"{place.prefix}{NAMES[1]}", ratios, rates[own], rates[other], 1.2, note),
        result(f"{place.prefix}{NAMES[2]}", peaks[own] / peaks[other], "x", "lower", 1.0, note=said, **memory),
    ]


def _clip_file(folder: Path) -> Path:
    return folder / "clip.safetensors"


def _open_clip() -> str:
    """Return the Python that has OpenCLIP: this one, or that of an environment of its own."""
    return sys.executable if find_spec("open_clip") else output_of(HERE / "open_clip.sh").strip()


def output_of(*command: str | Path) -> str:
    """Run a command and return what it prints; RuntimeError with its last words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _ratio_row(name: str, ratios: list[float], own: list[float], other: list[float], target: float, note: str) -> Row:
    return result(
        name,
        statistics.median(ratios),
        "x",
        "higher",
        target,
        own_value=statistics.median(own),
        peer="open_clip",
        peer_value=statistics.median(other),
        rounds=len(ratios),
        spread=[min(ratios), max(ratios)],
        note=note,
    )


def _forward_error(file: Path) -> float:
    data, model = load_file(file), converted(file)
    with torch.no_grad():
        found = {"image": model.embed_image(data["pixels"]), "text": model.embed_text(data["tokens"])}
    return max(float((found[name] - data[name]).abs().max()) for name in found)


def cache_rows(subject: Subject) -> list[Row]:
    """Return what GradCache costs in memory, and the gradient's error."""
    error = result(CACHE_NAMES[1], _gradient_error(), "relative", "lower", 1e-5, note="dropout included, fp32")
    return [cache_memory_row(ON_PROCESSOR), error]


def cache_memory_row(place: Place) -> Row:
    """Return the peak memory of a batch eight times as large in chunks as a share of the small batch's."""
    small, large = place.cache_batch, place.cache_batch * CACHE_TIMES
    peaks = []
    for rows, chunk, steps in ((small, small, 2), (large, small, 2), (large, large, 1)):
        side = Side(sys.executable, "own_step.py", "gradcache", str(rows), str(chunk), device=place.device)
        side.steps(steps)
        peaks.append(side.end())
    inputs = (large - small) * 3 * 64 * 64 * 4
    note = (
        f"batch {small} against {large} in chunks of {small}, without the further inputs themselves "
        f"({inputs / 2**20:.0f} MiB; with them {peaks[1] / peaks[0]:.2f} x); all {large} at once take {peaks[2] / peaks[0]:.1f} x"
    )
    extra = {"own_value": peaks[1] / 2**20, "peer": "the small batch, MiB", "peer_value": peaks[0] / 2**20}
    name = f"{place.prefix}{CACHE_NAMES[0]}"
    return result(name, (peaks[1] - inputs) / peaks[0], "x", "lower", 1.15, note=note, **extra)


def _gradient_error() -> float:
    """Return |cached - whole| / |whole|; each chunk draws its dropout in the same state on both sides."""
    torch.manual_seed(0)
    model = VisionLanguageModel(SMALL).train()
    pixels, tokens = torch.randn(64, 3, 64, 64), torch.randint(1, 2000, (64, 20))
    parts = chunks(64, 16)

    def gradient(backward: Callable[[], object]) -> torch.Tensor:
        torch.manual_seed(1)
        model.zero_grad(set_to_none=True)
        backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def whole() -> None:
        found = [model(pixels[part], tokens[part]) for part in parts]
        loss = contrastive_loss(torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]), found[0][2])
        loss.backward()  # type: ignore[no-untyped-call]

    def embed(part: slice, last: bool) -> Embedded:
        return Embedded(*model(pixels[part], tokens[part]))

    expected = gradient(whole)
    found = gradient(lambda: cached_backward(embed, contrastive_loss, parts, model))
    return float((found - expected).norm() / expected.norm())
