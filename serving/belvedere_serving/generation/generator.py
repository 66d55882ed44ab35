"""Continuous batching: plan a step, compute it, take what it gave. Texts join and leave between any two steps.

Yu et al. 2022 (Orca, OSDI), section 3.2. Planning and taking touch the books and belong to one thread; computing may be in another.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from belvedere_serving.generation.blocks import BlockPool
from belvedere_serving.generation.cache import Kept, PagedCache
from belvedere_serving.generation.decoder import Decoder
from belvedere_serving.generation.sampling import LIKELIEST, Sampling, choose
from belvedere_serving.generation.scheduler import Plan, Scheduler, Sequence

# R sequences, T new tokens, V vocabulary

Array = npt.NDArray[Any]
Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """How much the cache may hold, and in which form."""

    num_blocks: int = 64
    block_size: int = 16
    max_running: int = 16
    kept: Kept = "fp32"


@dataclass(eq=False, kw_only=True)
class Writing(Sequence):
    """A text with the picture that it is about and the way its words are drawn."""

    picture: Array
    sampling: Sampling = LIKELIEST
    generator: np.random.Generator = field(init=False)
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self.generator = self.sampling.generator()


@dataclass(frozen=True, kw_only=True)
class Word:
    """A token that was just written; `finish` says why it is the last. The end token is no word, so `token` is None then."""

    writing: Writing
    token: int | None
    finish: Finish | None


class Generator:
    """Writes many texts at once with one decoder."""

    def __init__(self, decoder: Decoder, options: CacheOptions | None = None) -> None:
        self.options = options = options or CacheOptions()
        self.decoder = decoder
        kept = self._geometry = decoder.geometry
        self.cache = PagedCache(
            num_blocks=options.num_blocks,
            block_size=options.block_size,
            layers=kept.layers,
            width=kept.width,
            heads=kept.heads,
            kept=options.kept,
        )
        self.scheduler: Scheduler[Writing] = Scheduler(
            BlockPool(options.num_blocks), block_size=options.block_size, max_running=options.max_running
        )

    def room(self, num_prompt: int) -> int:
        """Return how many tokens can follow a prompt: the model has no places beyond its longest text, the pool no blocks."""
        most = min(self._geometry.max_length, self.options.num_blocks * self.options.block_size + 1)
        return max(0, most - num_prompt)

    def add(self, writing: Writing) -> None:
        """Begin a text; it must fit `room`."""
        assert 1 <= writing.max_new_tokens <= self.room(len(writing.prompt))
        self.scheduler.add(writing)

    def cancel(self, writing: Writing) -> None:
        """Stop a text, written or not; its blocks are free at once. Not while a step is being computed."""
        self.scheduler.remove(writing)

    @property
    def busy(self) -> bool:
        """Whether anything is left to write."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Word]:
        """Plan, compute and take one step."""
        plan = self.scheduler.plan()
        return self.take(plan, self.compute(plan))

    def compute(self, plan: Plan[Writing]) -> dict[Writing, Array]:
        """Return the logits of each text's next token, and keep what its new tokens leave."""
        logits: dict[Writing, Array] = {}
        for group in (plan.begin, plan.go_on):
            if group:
                logits |= zip(group, self._forward(group), strict=True)
        return logits

    def _forward(self, group: Row[Writing]) -> Array:
        fresh = [sequence.fresh() for sequence in group]
        counts = np.array([len(tokens) for tokens in fresh])
        tokens_RT = np.full((len(group), counts.max()), self._geometry.pad_id, np.int64)
        for row, tokens in zip(tokens_RT, fresh, strict=True):
            row[: len(tokens)] = tokens
        starts = np.array([sequence.num_cached for sequence in group])
        # A text that begins has blocks, but nothing in them to look at.
        past = self.cache.gather([sequence.table if sequence.num_cached else [] for sequence in group])
        pictures = np.stack([sequence.picture for sequence in group])
        logits_RV, fresh_RTL2D = self.decoder.step(tokens_RT, counts, starts, past, pictures)
        for row, sequence in enumerate(group):
            self.cache.write(sequence.table, sequence.num_cached, fresh_RTL2D[row, : counts[row]])
            sequence.num_cached += int(counts[row])
        return logits_RV

    def take(self, plan: Plan[Writing], logits: dict[Writing, Array]) -> list[Word]:
        """Return each text's next word."""
        return [self._next(writing, logits[writing]) for writing in (*plan.begin, *plan.go_on)]

    def _next(self, writing: Writing, logits_V: Array) -> Word:
        logits_V[self._geometry.pad_id] = -np.inf  # padding is not a word, and would hide its place from attention
        token = choose(logits_V, writing.sampling, writing.generator)
        if token == self._geometry.end_id:
            writing.finish = "stop"
        else:
            writing.written.append(token)
            if len(writing.written) >= writing.max_new_tokens:
                writing.finish = "length"
        if writing.finish:
            self.scheduler.remove(writing)
        return Word(writing=writing, token=None if writing.finish == "stop" else token, finish=writing.finish)


def write_alone(decoder: Decoder, picture: Array, prompt: Row[int], max_new_tokens: int) -> list[int]:
    """Return the likeliest words without any cache, everything computed anew for each: what the rest is held to."""
    geometry, tokens = decoder.geometry, list(prompt)
    nothing = np.zeros((1, 1, geometry.layers, 2, geometry.width), np.float32)
    while len(tokens) < len(prompt) + max_new_tokens:
        logits_RV, _ = decoder.step(
            np.array([tokens]), np.array([len(tokens)]), np.array([0]), nothing, picture[np.newaxis]
        )
        logits_RV[0, geometry.pad_id] = -np.inf
        token = int(logits_RV[0].argmax())
        if token == geometry.end_id:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
