"""Which pairs come at which position of a run: a pure function of seed and position, whatever the number of workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from belvedere_platform.resources.training_data import TextChoice
from belvedere_training.data.corpus import Corpus
from belvedere_training.data.texts import (
    BETWEEN_QUESTIONS,
    balancing,
    draw_caption,
    draw_questions,
    draw_several,
    draw_text,
    statement,
    usual_answers,
)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One global batch: positions of pictures in the corpus, their concepts' numbers, a text each, and further texts."""

    pictures: tuple[int, ...]
    concepts: tuple[int, ...]
    texts: tuple[str, ...]
    said: tuple[str, ...]
    """What words are learned from: the same texts, or the answered questions that `texts` leaves out. Several a picture lie together."""
    asks: tuple[bool, ...]
    """Whether what is said is made of answered questions."""
    further: tuple[tuple[str, ...], ...] = ()
    """Second, third … texts: for each number, one a picture."""

    def all_texts(self) -> tuple[tuple[str, ...], ...]:
        """Return the first texts, the second ones, and so on."""
        return (self.texts, *self.further)


class PairSampler:
    """Walks through all concepts in a new order each epoch, with a random drawing and text of each.

    apart: questions are said, not contrasted. Most are true of many pictures of a batch, so they tell none of them from the others.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        texts: TextChoice | None = None,
        texts_each: int = 1,
        said_each: int = 1,
        apart: bool = False,
    ) -> None:
        self.seed, self.texts, self.apart = seed, texts or TextChoice(), apart
        self.texts_each, self.said_each = texts_each, said_each
        self.records = corpus.records
        balanced = self.texts.balance_answers
        self.weights = balancing(corpus.records) if balanced and said_each == 1 else None
        self.usual = usual_answers(corpus.records) if balanced and said_each > 1 else None
        self.pictures = [tuple(positions) for positions in corpus.by_concept().values()]

    def batch(self, position: int, count: int) -> Pairs:
        """Return the pairs at position … position + count - 1 of the run."""
        pictures, concepts, texts, said, asks = [], [], [], [], []
        for index in range(position, position + count):
            epoch, place = divmod(index, len(self.pictures))
            concept = int(self._order(epoch)[place])
            choose = random.Random(f"{self.seed}/{index}")
            picture = choose.choice(self.pictures[concept])
            pictures.append(picture)
            concepts.append(concept)
            record = self.records[picture]
            questions = draw_questions(record, choose, self.texts, self.weights)
            caption = draw_caption(record, choose, self.texts) if self.apart or not questions else questions
            texts.append(caption)
            several = self._together(index, picture) if self.usual is not None else []
            for question in several or [questions, *self._each(index, picture)]:
                said.append(question or caption)
                asks.append(bool(question))
        further = tuple(self._further(number, position, pictures) for number in range(1, self.texts_each))
        return Pairs(
            pictures=tuple(pictures),
            concepts=tuple(concepts),
            texts=tuple(texts),
            said=tuple(said),
            asks=tuple(asks),
            further=further,
        )

    def _each(self, index: int, picture: int) -> Iterator[str]:
        """Give the questions of a picture's second, third … text that words are learned from, each drawn as the first."""
        for number in range(1, self.said_each):
            choose = random.Random(f"{self.seed}/{index}/said/{number}")
            yield draw_questions(self.records[picture], choose, self.texts)

    def _together(self, index: int, picture: int) -> list[str]:
        """Return the questions of all texts of a picture that words are learned from, balanced; nothing where it has none."""
        questions, choose = self.records[picture].get("questions"), random.Random(f"{self.seed}/{index}/said")
        if not questions:
            return []
        assert self.usual is not None
        turns = [choose.random() < self.texts.question_share for _ in range(self.said_each)]
        each = self.texts.most_questions
        drawn = draw_several(questions, sum(turns) * each, choose, self.usual) if any(turns) else []
        asked = (drawn[start : start + each] for start in range(0, len(drawn), each))
        return [BETWEEN_QUESTIONS.join(statement(*one) for one in next(asked)) if turn else "" for turn in turns]

    def _further(self, number: int, position: int, pictures: list[int]) -> tuple[str, ...]:
        """Return one more text for each picture, drawn apart, so that the first ones are those of a run without."""
        return tuple(
            draw_text(self.records[picture], random.Random(f"{self.seed}/{position + index}/{number}"), self.texts)
            for index, picture in enumerate(pictures)
        )

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.pictures))
        return self._permutation
