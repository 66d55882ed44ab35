"""What waits for an engine: entries in their order, what each costs, and how many may be run together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from belvedere_serving.engines.lengths import Lengths
from belvedere_serving.server.timing import Timing

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """How large a batch may be, how long it may wait for company, and how much may wait for it.

    `max_rows`: of inputs of full length; where rows have lengths a batch may have as many tokens, so more of short ones.
    """

    max_rows: int
    wait_seconds: float
    max_waiting_rows: int


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """What rows cost: their tokens. Only rows of one length are run together. Without it each row costs one."""

    full: int
    lengths: Callable[[Array], Lengths]


@dataclass(kw_only=True, slots=True, eq=False)
class Entry:
    """Rows of one request that are run together, and who waits for their outputs."""

    array: Array
    answer: asyncio.Future[Array]
    length: int
    deadline: float
    since: float
    timing: Timing
    rows: int
    cost: int
    """What it adds to a batch: a number of tokens, or of rows."""


class EntryQueue:
    """Entries in order, and what they are together: a request that is refused has no time to add them up."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self.rows = 0
        self.cost = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def append(self, entry: Entry) -> None:
        """Put an entry at the end."""
        self._entries.append(entry)
        self._count(entry, 1)

    def take(self) -> Entry:
        """Take the first entry off."""
        entry = self._entries.popleft()
        self._count(entry, -1)
        return entry

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Put entries that were taken in front of all others, in their order."""
        self._entries.extendleft(reversed(entries))
        for entry in entries:
            self._count(entry, 1)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self.rows = self.cost = 0

    def _count(self, entry: Entry, sign: int) -> None:
        self.rows += sign * entry.rows
        self.cost += sign * entry.cost
