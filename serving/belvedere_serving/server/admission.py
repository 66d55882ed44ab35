"""Decides which requests are let in: those that can be answered in time, by what preparing and running took of late."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

NEWEST, NEWEST_SLOWER = 0.25, 0.5
"""How much of an estimate the newest observation makes up. Bad news counts for more: to let in too many costs answers."""
CROWD, TURN_SECONDS = 32, 0.02
"""From how many requests at once, and how long a turn of the event loop, a server is too busy to read another."""
RESERVE = 1.2
"""By how much the expected time is taken for longer than it is: runs differ, and a late answer is work for nothing."""


class Pace:
    """How long a stage takes for a number of rows, learned from what it took. Larger batches cost no more a row."""

    def __init__(self) -> None:
        self._seconds_a_row: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a run. What was known of larger ones is corrected downwards, or a slow start would never be forgotten."""
        size, found = rows.bit_length(), seconds / max(rows, 1)
        known = self._seconds_a_row.get(size, found)
        self._seconds_a_row[size] = known + (NEWEST_SLOWER if found > known else NEWEST) * (found - known)
        for larger in self._seconds_a_row:
            if larger > size:
                self._seconds_a_row[larger] = min(self._seconds_a_row[larger], found)

    def expected(self, rows: int) -> float:
        """Return the seconds for one run of so many rows; 0 when nothing has run yet."""
        if rows <= 0 or not self._seconds_a_row:
            return 0.0
        size = rows.bit_length()
        if (a_row := self._seconds_a_row.get(size)) is not None:
            return rows * a_row
        below = [known for known in self._seconds_a_row if known <= size]
        nearest = max(below) if below else min(self._seconds_a_row)
        return rows * self._seconds_a_row[nearest]

    def saved(self, rows: int, others: int) -> float | None:
        """Return the seconds that one run of both takes less than one after the other; None when none as large has been seen."""
        if (rows + others).bit_length() not in self._seconds_a_row:
            return None
        return self.expected(rows) + self.expected(others) - self.expected(rows + others)


class Lag:
    """How long the event loop lets wait whoever is ready to go on, seen each time a worker thread has finished.

    A request waited about as long before it was read, and its answer will before it is sent. Neither is in any queue of ours.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Learn from one wait: a longer one at once, shorter ones little by little."""
        self.seconds = max(seconds, self.seconds + NEWEST * (seconds - self.seconds))


class Turns:
    """How long the event loop takes to give everybody who is ready a turn. A request needs about ten of them until it is answered.

    Reading, parsing and refusing take time too: where more requests come than can even be refused, each turn is longer than
    the one before, and what was let in waits in no queue of ours, but for its turns.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._measuring = False

    def look(self) -> None:
        """Measure one turn from now on, unless one is being measured."""
        if not self._measuring:
            self._measuring = True
            asyncio.get_running_loop().call_soon(self._ended, self._clock())

    def _ended(self, since: float) -> None:
        self._measuring = False
        self.seconds = self._clock() - since

    def too_long(self, inside: int) -> bool:
        """Say whether one more request, beside those that are inside, would only make the turns longer for all."""
        return inside >= CROWD and self.seconds > TURN_SECONDS


class Waiting(Protocol):
    """A queue in front of an engine's lane."""

    def work(self, rows: int = 0) -> list[float]:
        """Return the seconds that each batch is expected to take, of what waits and so many rows behind it."""
        ...


@dataclass(eq=False)
class Lane:
    """What runs one batch at a time: the cores of a replica. Its queues take turns."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    lag: Lag = field(default_factory=Lag)
    queues: list[Waiting] = field(default_factory=list)

    def expected_seconds(self, queue: Waiting, rows: int) -> float:
        """Return how long a request of so many rows takes at the end of a queue; the others get a batch for each of its own."""
        own = queue.work(rows)
        others = (other.work()[: len(own)] for other in self.queues if other is not queue)
        return sum(own) + sum(map(sum, others))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """When a request would be answered if it were let in now."""

    seconds: float
    lag_seconds: float
    alone: bool
    """Whether nothing is ahead of it: then it is let in whatever the estimate, which learns from it."""

    def in_time(self, seconds_left: float) -> bool:
        """Say whether the answer would come in time."""
        return self.alone or RESERVE * self.seconds + 2 * self.lag_seconds <= seconds_left

    def retry_after_seconds(self, seconds_left: float) -> int:
        """Return the whole seconds after which enough of the queue will be gone."""
        return max(1, min(60, math.ceil(RESERVE * self.seconds + 2 * self.lag_seconds - seconds_left)))
