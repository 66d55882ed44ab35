"""Batches by position, made ahead of the step that needs them. A batch depends on seed and position alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from belvedere_platform.resources.training_data import Augmentation, TextChoice
from belvedere_training.data.augmentation import drop_words, views
from belvedere_training.data.corpus import Corpus
from belvedere_training.data.sampler import Pairs, PairSampler
from belvedere_training.model.config import HALF, Normalization
from belvedere_training.model.resolution import ResolutionRouter
from belvedere_training.model.tokenizer import answers_of, encode, mark_ids

# B pairs of this worker, C texts that words are learned from, S picture edge, T tokens

Item = TypeVar("Item")


def mixed(*numbers: int) -> int:
    """Return a seed that depends on all the numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


class Said(NamedTuple):
    """What words are learned from. tokens_CT: None where it is the text that is contrasted; asked_CT: which are to be said.

    Asked are those of answers where a text asks, all where it does not. each: texts of a picture; they lie together.
    """

    tokens_CT: Tensor | None
    asked_CT: Tensor
    each: int = 1

    def rows(self, rows: slice) -> Said:
        """Return what is said of these pictures."""
        own = several(rows, self.each)
        return self._replace(
            tokens_CT=None if self.tokens_CT is None else self.tokens_CT[own], asked_CT=self.asked_CT[own]
        )

    def to(self, device: torch.device) -> Said:
        """Return the same on the device."""
        return self._replace(
            tokens_CT=None if self.tokens_CT is None else self.tokens_CT.to(device), asked_CT=self.asked_CT.to(device)
        )


def several(rows: slice, each: int) -> slice:
    """Return the rows of texts that belong to these pictures, each of which has so many."""
    return slice(rows.start * each, rows.stop * each)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This worker's rows of a global batch, and the pairs of all workers."""

    pixels_B3SS: Tensor
    tokens_BT: Tensor
    said: Said
    pairs: Pairs
    further: tuple[Tensor, ...] = ()
    """Token ids [B, T] of the second, third … texts."""
    attributes: Mapping[str, Tensor] = field(default_factory=dict)
    """The number of each picture's value [B], by attribute."""
    resolutions: tuple[int, ...] | None = None
    """What each picture is to be seen at, where that is not the whole."""


class Loader:
    """Makes batches; while one is in use, a thread prepares the next `ahead` ones.

    Its state is the position alone: a run that resumes at a position gets the batches that an unbroken one has there.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        seed: int,
        batch_size: int,
        rows: slice,
        normalization: Normalization = HALF,
        attributes: Mapping[str, Sequence[str]] | None = None,
        router: ResolutionRouter | None = None,
        augmentation: Augmentation | None = None,
        texts: TextChoice | None = None,
        texts_each: int = 1,
        said_each: int = 1,
        apart: bool = False,
        ahead: int = 1,
    ) -> None:
        self.corpus, self.tokenizer = corpus, tokenizer
        self.seed, self.batch_size, self.rows = seed, batch_size, rows
        self.augmentation, self.normalization = augmentation or Augmentation(), normalization
        self.attributes, self.router = attributes or {}, router
        self._marks = mark_ids(tokenizer)
        self.sampler = PairSampler(
            corpus, seed=seed, texts=texts, texts_each=texts_each, said_each=said_each, apart=apart
        )
        self._ahead = Ahead(self.make, step=batch_size, depth=ahead)

    def batch(self, position: int) -> Batch:
        """Return the batch at the position."""
        return self._ahead.get(position)

    def take(self, rows: slice) -> None:
        """Make these rows of every batch from now on; what was made ahead is dropped."""
        self._ahead.forget()
        self.rows = rows

    def make(self, position: int) -> Batch:
        """Draw the pairs, decode this worker's pictures, and draw the views of both modalities."""
        pairs = self.sampler.batch(position, self.batch_size)
        generator = torch.Generator().manual_seed(mixed(self.seed, position))
        own_B3SS = self.corpus.pixels(pairs.pictures[self.rows])
        pixels_B3SS = views(own_B3SS, generator, self.augmentation, self.rows, self.batch_size, self.normalization)
        tokens_BT, *further = (self._tokens(texts, generator, self.rows) for texts in pairs.all_texts())
        return Batch(
            pixels_B3SS=pixels_B3SS,
            tokens_BT=tokens_BT,
            said=self._said(pairs, tokens_BT, generator),
            pairs=pairs,
            further=tuple(further),
            attributes=self._attributes(pairs.pictures[self.rows]),
            resolutions=tuple(self.router.route(own_B3SS)) if self.router else None,
        )

    def _said(self, pairs: Pairs, tokens_BT: Tensor, generator: torch.Generator) -> Said:
        each = len(pairs.said) // len(pairs.pictures)
        own = several(self.rows, each)
        said_CT = None if pairs.said == pairs.texts else self._tokens(pairs.said, generator, own)
        asks_C1 = torch.tensor(pairs.asks[own])[:, None]
        return Said(said_CT, ~asks_C1 | answers_of(tokens_BT if said_CT is None else said_CT, *self._marks), each)

    def _tokens(self, texts: Sequence[str], generator: torch.Generator, rows: slice) -> Tensor:
        return drop_words(encode(self.tokenizer, texts, trim=True), generator, self.augmentation, rows)

    def _attributes(self, pictures: Sequence[int]) -> dict[str, Tensor]:
        """Return what each attribute of these pictures is, as the number of its value."""
        if not self.attributes:
            return {}
        records = [self.corpus.record(picture) for picture in pictures]
        return {
            name: torch.tensor([values.index(str(record[name])) for record in records])
            for name, values in self.attributes.items()
        }

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()


class Ahead(Generic[Item]):
    """Calls a function of the position in a thread, for the positions that come next."""

    def __init__(self, make: Callable[[int], Item], *, step: int, depth: int) -> None:
        self.make, self.step, self.depth = make, step, depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="belvedere-loader") if depth else None
        self._coming: dict[int, Future[Item]] = {}

    def get(self, position: int) -> Item:
        """Return the item, made ahead or now, and begin with those that follow. Its errors are raised here."""
        if self._pool is None:
            return self.make(position)
        wanted = [position + number * self.step for number in range(self.depth + 1)]
        for left in self._coming.keys() - set(wanted):
            self._coming.pop(left).cancel()
        for one in wanted:
            if one not in self._coming:
                self._coming[one] = self._pool.submit(self.make, one)
        return self._coming.pop(position).result()

    def forget(self) -> None:
        """Drop what was made ahead, when nothing is being made any more."""
        for future in self._coming.values():
            if not future.cancel():
                future.exception()
        self._coming.clear()

    def close(self) -> None:
        """Drop what was made ahead and end the thread."""
        self.forget()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
