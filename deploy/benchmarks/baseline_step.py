"""The step of the convolutional baseline that recalls from scratch are compared with, made when told.

usage: baseline_step.py fp32|bf16

Its program saw 200,000 pairs: a CNN of 45 M multiply-adds a picture, a transformer of two layers over whole words, batch 256,
AdamW. Only what a step costs is measured here, so the inputs are random, and its views of the pictures cost nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from step_server import serve

BATCH, PAIRS = 256, 200_000
WIDTH, EMBEDDING, WORDS, LENGTH = 192, 128, 6045, 12
"""LENGTH: words of the longest text of a usual batch; shorter than the 20 that its program allows."""


class Residual(nn.Module):
    """Two convolutions of 3x3 and a shortcut, at half the resolution."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(num_in, num_out, 3, 2, 1, bias=False),
            nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(num_in, num_out, 1, 2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(num_out) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[1](self.second(functional.relu(self.norms[0](self.first(x)))))
        return functional.relu(inner + self.norms[2](self.shortcut(x)))


class Words(nn.Module):
    """Embedded words, two layers, the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Linear(WIDTH, EMBEDDING)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.out(self.layers(self.embedding(tokens), src_key_padding_mask=tokens == 0)[:, 0])
        return found


def make_step(half: bool) -> Callable[[], float]:
    """Return a step on a batch."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    blocks = [Residual(32, 64), Residual(64, 128), Residual(128, 256)]
    pictures = nn.Sequential(*stem, *blocks, nn.Flatten(), nn.Linear(256 * 16, EMBEDDING))
    pictures, words = pictures.to(memory_format=torch.channels_last), Words()
    optimizer = torch.optim.AdamW([*pictures.parameters(), *words.parameters()], lr=1e-3, weight_decay=0.05)
    pixels = torch.randn(BATCH, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    tokens, target = torch.randint(1, WORDS, (BATCH, LENGTH)), torch.arange(BATCH)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            image, text = pictures(pixels), words(tokens)
        image, text = (functional.normalize(found.float(), dim=-1) for found in (image, text))
        logits = math.exp(2.66) * image @ text.T
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(lambda: make_step(sys.argv[1] == "bf16"))
