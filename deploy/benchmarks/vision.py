"""A model artifact for engines to be built from: ViT-S/16 at 224 as its vision tower, and a small text tower. Untrained."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore

WORDS = ["[PAD]", "[CLS]", "[UNK]", *(f"word{number}" for number in range(61))]
CONTEXT, EMBEDDING = 16, 256
NUM_PAIRS = 24


class Block(nn.Module):
    """One layer of a vision transformer: attention, then two products with GELU between, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        batch, length, width = x_BND.shape
        split = self.queries(self.first(x_BND)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1)
        x_BND = x_BND + self.joined((scores @ value).transpose(1, 2).reshape(batch, length, width))
        answer: torch.Tensor = x_BND + self.narrow(functional.gelu(self.wide(self.second(x_BND))))
        return answer


class Vision(nn.Module):
    """Dosovitskiy et al. 2021, table 1 scaled to small: 12 layers, width 384, 6 heads, patches of 16."""

    def __init__(self, size: int = 224, patch: int = 16, width: int = 384, layers: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, EMBEDDING)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x_BND = self.patches(pixels).flatten(2).transpose(1, 2) + self.places
        return functional.normalize(self.out(self.norm(self.blocks(x_BND)).mean(1)), dim=-1)


class Text(nn.Module):
    """The mean of word vectors, projected."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(len(WORDS), width), nn.Linear(width, EMBEDDING)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.out(self.words(tokens).mean(1)), dim=-1)


def picture(number: int, size: int = 224) -> bytes:
    """Return a PNG of smooth colours with a few sharp shapes, another for each number."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    for _ in range(6):
        left, top = random.integers(0, size - 40, 2)
        image.paste(tuple(int(value) for value in random.integers(0, 256, 3)), (left, top, left + 40, top + 30))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def text(number: int) -> str:
    """Return a text of a few words, another for each number."""
    random = np.random.default_rng(1000 + number)
    return " ".join(WORDS[int(index)] for index in random.integers(3, len(WORDS), 6))


def push_model(store: ArtifactStore, *, size: int, vision: nn.Module, name: str) -> str:
    """Push a model artifact and return its digest."""
    torch.manual_seed(0)
    texts = _exported(Text(), torch.ones(2, CONTEXT, dtype=torch.int64), "tokens")
    images = _exported(vision, torch.zeros(2, 3, size, size), "pixels")
    recipe = {
        "image": {"size": size, "mean": [0.5] * 3, "std": [0.5] * 3},
        "text": {"contextLength": CONTEXT, "padId": 0},
    }
    files: dict[str, Path | bytes] = {
        "embed_text.pt2": texts,
        "embed_image.pt2": images,
        "tokenizer.json": _tokenizer().encode(),
        "preprocess.json": json.dumps(recipe).encode(),
        "parity.jsonl": _parity(size),
    }
    config = {"model": name, "version": f"{name}-v1", "metrics": {}, "lineage": {}}
    return store.push(ArtifactKind.MODEL, files, config=config, tag=f"models/{name}-v1").digest


def _exported(tower: nn.Module, example: torch.Tensor, name: str) -> bytes:
    shapes = {name: {0: torch.export.Dim("n", min=1, max=4096)}}
    out = io.BytesIO()
    torch.export.save(torch.export.export(tower.eval(), (example,), dynamic_shapes=shapes), out)
    return out.getvalue()


def _tokenizer() -> str:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return str(made.to_str())


def _parity(size: int) -> bytes:
    lines = []
    for number in range(NUM_PAIRS):
        encoded = base64.b64encode(picture(number, size)).decode()
        lines += [{"id": str(number), "text": text(number)}, {"id": str(number), "image": encoded}]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
