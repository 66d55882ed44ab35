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
BATCH, ROUNDS = 16, 5
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Large blocks go back to the system when they are freed, on both sides: else the peak is what glibc's heap keeps in pieces."""
CACHE_BATCH, CACHE_TIMES = 32, 8
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


def rows(subject: Subject) -> list[Row]:
    """Train one architecture from the same weights on the same batch on both sides."""
    peer = output_of(HERE / "open_clip.sh").strip()
    file = subject.folder / "clip.safetensors"
    output_of(peer, HERE / "open_clip_step.py", "prepare", file, str(BATCH))
    error = _forward_error(file)
    own, full, other = (
        Side(sys.executable, "own_step.py", "serve", str(file)),
        Side(sys.executable, "own_step.py", "serve", str(file), "--full-context"),
        Side(peer, "open_clip_step.py", "serve", str(file)),
    )
    rates: dict[Side, list[float]] = {own: [], full: [], other: []}
    losses = {side: side.steps(1)["loss"] for side in rates}
    for _ in range(ROUNDS):
        for side, found in rates.items():
            found.append(BATCH / side.steps(1)["cpu_seconds"])
    peaks = {side: side.end() for side in rates}
    ratios = [a / b for a, b in zip(rates[own], rates[other], strict=True)]
    whole = [a / b for a, b in zip(rates[full], rates[other], strict=True)]
    note = (
        f"ViT-S-32, batch {BATCH}, fp32, AdamW on both sides (ours fused), one thread, processor time; ours cuts texts to the "
        f"longest of the batch, at the full context it is {statistics.median(whole):.2f} x; first losses "
        f"{losses[own]:.4f} and {losses[other]:.4f}"
    )
    return [
        result(NAMES[0], error, "absolute", "lower", 1e-4, note="largest difference of embeddings on the same weights"),
        _ratio_row(NAMES[1], ratios, rates[own], rates[other], 1.2, note),
        result(
            NAMES[2],
            peaks[own] / peaks[other],
            "x",
            "lower",
            1.0,
            own_value=peaks[own] / 2**20,
            peer="open_clip",
            peer_value=peaks[other] / 2**20,
            note=f"MiB above the process without a model; ours at the full context {peaks[full] / 2**20:.0f}",
        ),
    ]


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
    """Peak memory of a batch eight times as large in chunks, against the small batch; and the gradient's error."""
    large = CACHE_BATCH * CACHE_TIMES
    peaks = []
    for rows in (CACHE_BATCH, large):
        side = Side(sys.executable, "own_step.py", "gradcache", str(rows), str(CACHE_BATCH))
        side.steps(2)
        peaks.append(side.end())
    side = Side(sys.executable, "own_step.py", "gradcache", str(large), str(large))
    side.steps(1)
    whole = side.end()
    inputs = (large - CACHE_BATCH) * 3 * 64 * 64 * 4
    ratio = (peaks[1] - inputs) / peaks[0]
    note = (
        f"batch {CACHE_BATCH} against {large} in chunks of {CACHE_BATCH}, without the further inputs themselves "
        f"({inputs / 2**20:.0f} MiB; with them {peaks[1] / peaks[0]:.2f} x); all {large} at once take {whole / peaks[0]:.1f} x"
    )
    extra = {"own_value": peaks[1] / 2**20, "peer": "the small batch, MiB", "peer_value": peaks[0] / 2**20}
    return [
        result("gradcache_memory_ratio", ratio, "x", "lower", 1.15, note=note, **extra),
        result("gradcache_gradient_error", _gradient_error(), "relative", "lower", 1e-5, note="dropout included, fp32"),
    ]


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
