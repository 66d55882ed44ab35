"""A small untrained model artifact of the promised form, for tests of what compiles and serves it."""

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

WORDS = [
    "[PAD]",
    "[CLS]",
    "[UNK]",
    *[
        "red",
        "green",
        "blue",
        "black",
        "white",
        "apple",
        "car",
        "tree",
        "dog",
        "cat",
        "heart",
        "star",
        "moon",
        "sun",
        "flag",
    ],
]
SIZE, CONTEXT, EMBEDDING_SIZE = 32, 12, 16
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "black": (0, 0, 0)}


class TextTower(nn.Module):
    """Embedding, one attention layer, one projection. `num_words` below the tokenizer's makes rare words fail."""

    def __init__(self, width: int = 32, num_words: int = len(WORDS)) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) * 0.1)
        self.queries = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, EMBEDDING_SIZE)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens != 0)[:, None, :]
        states = self.words(tokens) + self.places[: tokens.shape[1]]
        query, key, value = self.queries(states).chunk(3, dim=-1)
        scores = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).masked_fill(~mask, -1e4)
        states = states + scores.softmax(-1) @ value
        return functional.normalize(self.out(states[:, 0]), dim=-1)


class ImageTower(nn.Module):
    """Two convolutions and a projection."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.out = nn.Linear(width * (SIZE // 4) ** 2, EMBEDDING_SIZE)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.out(self.layers(pixels).flatten(1)), dim=-1)


def picture(colour: tuple[int, int, int], corner: int, size: int = SIZE, kind: str = "PNG") -> bytes:
    """Return an encoded picture: a coloured square on white."""
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[corner : corner + size // 3, corner : corner + size // 2] = colour
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def exported(tower: nn.Module, example: torch.Tensor, name: str, longest: int | None = None) -> bytes:
    """Return the serialized program with a batch of any size, and texts of any length up to the longest."""
    free = {0: torch.export.Dim("n", min=1, max=4096)}
    if longest is not None:
        free[1] = torch.export.Dim("length", min=2, max=longest)
    program = torch.export.export(tower.eval(), (example,), dynamic_shapes={name: free})
    out = io.BytesIO()
    torch.export.save(program, out)
    return out.getvalue()


def tokenizer() -> str:
    """Return tokenizer.json: words by white space, [CLS] before them."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return str(made.to_str())


def parity_lines() -> bytes:
    """Return parity.jsonl: a text and a picture an id."""
    lines = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        for corner, thing in enumerate(("apple", "tree", "car")):
            key = f"{number}-{corner}"
            encoded = base64.b64encode(picture(colour, 4 * corner)).decode()
            lines += [{"id": key, "text": f"{name} {thing}"}, {"id": key, "image": encoded}]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def files(*, num_words: int = len(WORDS), seed: int = 0, flexible: bool = True) -> dict[str, Path | bytes]:
    """Return the files of a model artifact."""
    torch.manual_seed(seed)
    preprocess = {
        "image": {"size": SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "text": {"contextLength": CONTEXT, "padId": 0},
    }
    text = exported(
        TextTower(num_words=num_words),
        torch.ones(2, CONTEXT - flexible, dtype=torch.int64),
        "tokens",
        CONTEXT if flexible else None,
    )
    image = exported(ImageTower(), torch.zeros(2, 3, SIZE, SIZE), "pixels")
    return {
        "embed_text.pt2": text,
        "embed_image.pt2": image,
        "tokenizer.json": tokenizer().encode(),
        "preprocess.json": json.dumps(preprocess).encode(),
        "parity.jsonl": parity_lines(),
    }


def push(store: ArtifactStore, **changes: int) -> str:
    """Push a model artifact and return its digest."""
    config = {"model": "stand-in", "version": "v1", "metrics": {}, "lineage": {}}
    return store.push(ArtifactKind.MODEL, files(**changes), config=config, tag="models/v1").digest
