"""Which pairs come at which position of a run: a pure function of seed and position, whatever the number of workers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from belvedere_training.data.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One global batch: positions of pictures in the corpus, their concepts' numbers, and a text each."""

    pictures: tuple[int, ...]
    concepts: tuple[int, ...]
    texts: tuple[str, ...]


class PairSampler:
    """Walks through all concepts in a new order each epoch, with a random drawing and text of each."""

    def __init__(self, corpus: Corpus, *, seed: int) -> None:
        self.seed = seed
        self.records = corpus.records
        self.pictures = [tuple(positions) for positions in corpus.by_concept().values()]

    def batch(self, position: int, count: int) -> Pairs:
        """Return the pairs at position … position + count - 1 of the run."""
        pictures, concepts, texts = [], [], []
        for index in range(position, position + count):
            epoch, place = divmod(index, len(self.pictures))
            concept = int(self._order(epoch)[place])
            choose = random.Random(f"{self.seed}/{index}")
            picture = choose.choice(self.pictures[concept])
            pictures.append(picture)
            concepts.append(concept)
            texts.append(draw_text(self.records[picture], choose))
        return Pairs(pictures=tuple(pictures), concepts=tuple(concepts), texts=tuple(texts))

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.pictures))
        return self._permutation


def draw_text(record: Mapping[str, Any], choose: random.Random) -> str:
    """Return a caption, a caption with tags, or tags alone, in one of the two languages."""
    language = "en" if choose.random() < 0.65 else "zh"
    caption, tags = record["captions"][language], list(record["tags"][language])
    kind = choose.random()
    if kind < 0.65 or not tags:
        return str(caption)
    some = choose.sample(tags, min(len(tags), choose.randint(1, 3)))
    return join([caption, *some] if kind < 0.88 else some, language)


def join(parts: Sequence[str], language: str) -> str:
    """Return the parts as one text, as a person would type search words."""
    return (" " if language == "en" else "，").join(parts)
