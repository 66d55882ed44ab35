"""The convolutional baseline that recalls from scratch are compared with: a CNN, whole words, and what it is shown.

A CNN of 45 M multiply-adds a picture, a transformer of two layers over whole words and Han characters whose first token speaks for
the text, batch 256, AdamW, wide views: what its own program had, so that both sides see the same data in the same run.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_platform.resources.training_data import Augmentation
from belvedere_training.data.corpus import Corpus

# B pictures or texts, T words, D width

WIDTH, EMBEDDING, LENGTH = 192, 128, 20
PAD, START, UNKNOWN, NUM_SPECIAL = 0, 1, 2, 4
VIEWS = Augmentation(
    rotation=0.175, smallest=0.7, largest=1.2, shift=0.2, brightness=0.3, color_shift=0.15, gray_share=0.15
)
_WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")


class Residual(nn.Module):
    """Two convolutions of 3x3 and a shortcut, at half the resolution."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, 2, 1, bias=False)
        self.second = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(num_in, num_out, 1, 2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(num_out) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the grid at half the resolution."""
        inner = self.norms[1](self.second(functional.relu(self.norms[0](self.first(x)))))
        return functional.relu(inner + self.norms[2](self.shortcut(x)))


class Words(nn.Module):
    """Embedded words, two layers, the first token."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, WIDTH, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position_TD = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, EMBEDDING)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the embedding of the first token, not yet of unit length."""
        x_BTD = self.embedding(tokens_BT) + self.position_TD[: tokens_BT.shape[1]]
        x_BTD = self.layers(x_BTD, src_key_padding_mask=tokens_BT == PAD)
        found: Tensor = self.out(self.norm(x_BTD[:, 0]))
        return found


class Baseline(nn.Module):
    """Both towers and the temperature, with the vocabulary of the training texts."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        stem = [nn.Conv2d(3, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        blocks = [Residual(32, 64), Residual(64, 128), Residual(128, 256)]
        pictures = nn.Sequential(*stem, *blocks, nn.Flatten(), nn.Linear(256 * 16, EMBEDDING))
        self.pictures = pictures.to(memory_format=torch.channels_last)
        self.words = Words(NUM_SPECIAL + len(vocabulary))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return word numbers [B, T], as long as the longest text."""
        rows = [[START, *(self.vocabulary.get(word, UNKNOWN) for word in words_of(text))][:LENGTH] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

    def embed_image(self, pixels_B3SS: Tensor) -> Tensor:
        """Return unit vectors of pictures."""
        return functional.normalize(self.pictures(pixels_B3SS).float(), dim=-1)

    def embed_text(self, tokens_BT: Tensor) -> Tensor:
        """Return unit vectors of texts."""
        return functional.normalize(self.words(tokens_BT).float(), dim=-1)

    def loss(self, pixels_B3SS: Tensor, tokens_BT: Tensor) -> Tensor:
        """Return the contrast of a batch, its labels smoothed."""
        logits_BB = self.log_scale.exp().clamp(max=100) * self.embed_image(pixels_B3SS) @ self.embed_text(tokens_BT).T
        target_B = torch.arange(len(logits_BB))
        halves = (
            functional.cross_entropy(logits, target_B, label_smoothing=0.05) for logits in (logits_BB, logits_BB.T)
        )
        return sum(halves, torch.zeros(())) / 2


def words_of(text: str) -> list[str]:
    """Return the words and Han characters of a text."""
    return _WORD.findall(text.lower())


def vocabulary_of(corpus: Corpus) -> dict[str, int]:
    """Return a number for every word of the corpus' captions and tags."""
    found: dict[str, int] = {}
    for record in corpus.records:
        for language, caption in record["captions"].items():
            for text in (caption, *record["tags"].get(language, ())):
                for word in words_of(text):
                    found.setdefault(word, NUM_SPECIAL + len(found))
    return found


def draw_caption(record: Mapping[str, Any], choose: random.Random) -> str:
    """Return the English caption (45 %), with tags (20 %), tags alone (10 %), or the Chinese caption."""
    captions, tags, kind = record["captions"], list(record["tags"].get("en", ())), choose.random()
    if 0.45 <= kind < 0.65:
        return " ".join([captions["en"], *choose.sample(tags, min(len(tags), choose.randint(1, 3)))])
    if 0.65 <= kind < 0.75 and tags:
        return " ".join(choose.sample(tags, min(len(tags), 4)))
    return str(captions["en"] if kind < 0.45 else captions["zh"])
