"""Who is written in the next step: first come, first served, as many at once as there are places and blocks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from belvedere_serving.generation.blocks import BlockPool, blocks_for


@dataclass(eq=False, kw_only=True)
class Sequence:
    """A text that is being written. `num_cached`: how many of its tokens have their keys and values in its blocks."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    written: list[int] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    num_cached: int = 0

    @property
    def num_tokens(self) -> int:
        """Return how long the text is by now."""
        return len(self.prompt) + len(self.written)

    def fresh(self) -> list[int]:
        """Return the tokens that are not cached yet: the last one, or all of them when the text begins (again)."""
        return [*self.prompt, *self.written][self.num_cached :]


Text = TypeVar("Text", bound=Sequence)


@dataclass(frozen=True, kw_only=True)
class Plan(Generic[Text]):
    """One step. Those that begin are read in together, then every other text gets one word."""

    begin: tuple[Text, ...] = ()
    go_on: tuple[Text, ...] = ()
    evicted: tuple[Text, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.begin or self.go_on)


class Scheduler(Generic[Text]):
    """Gives places and blocks to texts. The oldest always gets on, so every text that fits the pool alone gets written."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_running: int, max_begin: int = 4) -> None:
        """`max_begin`: how many may begin in one step; reading them in holds up those that are being written."""
        self.pool = pool
        self.block_size = block_size
        self._max_running = max_running
        self._max_begin = max_begin
        self.waiting: deque[Text] = deque()
        self.running: list[Text] = []

    def fits(self, prompt: int, max_new_tokens: int) -> bool:
        """Return whether a text would fit if it were the only one. The last token is never looked back at."""
        return blocks_for(prompt + max_new_tokens - 1, self.block_size) <= self.pool.num_blocks

    def add(self, sequence: Text) -> None:
        """Put a text at the end of the queue."""
        assert self.fits(len(sequence.prompt), sequence.max_new_tokens), "the caller refuses what can never be written"
        self.waiting.append(sequence)

    def remove(self, sequence: Text) -> None:
        """Forget a text, written or not, and free its blocks at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def plan(self) -> Plan[Text]:
        """Return the next step, with blocks for every token in it."""
        evicted = self._make_room()
        go_on = tuple(self.running)
        # Whoever has just been put back would be the first to come in again.
        begin = () if evicted else self._admit()
        return Plan(begin=begin, go_on=go_on, evicted=evicted)

    def _make_room(self) -> tuple[Text, ...]:
        """Give running texts the block that their next token needs, at the expense of the youngest where none is left."""
        evicted: list[Text] = []
        for sequence in list(self.running):
            while sequence in self.running and not self._extend(sequence):
                youngest = self.running.pop()
                self._free(youngest)
                youngest.num_cached = 0
                self.waiting.appendleft(youngest)
                evicted.append(youngest)
        return tuple(evicted)

    def _extend(self, sequence: Text) -> bool:
        missing = blocks_for(sequence.num_tokens, self.block_size) - len(sequence.table)
        taken = self.pool.take(missing)
        if taken is None:
            return False
        sequence.table += taken
        return True

    def _admit(self) -> tuple[Text, ...]:
        begin: list[Text] = []
        while self.waiting and len(begin) < self._max_begin and len(self.running) < self._max_running:
            # Nobody passes the first in the queue, however small: the large would wait for ever.
            if not self._extend(self.waiting[0]):
                break
            begin.append(self.waiting.popleft())
            self.running.append(begin[-1])
        return tuple(begin)

    def _free(self, sequence: Text) -> None:
        self.pool.give_back(sequence.table)
        sequence.table = []
