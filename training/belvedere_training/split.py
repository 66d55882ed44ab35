"""How a global batch is shared out among workers: evenly, or by how fast each of them is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

GAIN = 1.1
"""The slowest worker must be predicted to need this many times less, or all stays as it is: timings are never quite equal."""


def shares(total: int, rates: Sequence[float]) -> tuple[int, ...]:
    """Return rows for each worker, in proportion to its rate and at least one each; they add up to the total."""
    assert total >= len(rates) > 0
    whole = sum(rates)
    wanted = [total * rate / whole for rate in rates]
    counts = [max(1, int(one)) for one in wanted]
    # What rounding left over goes to those who are furthest below what they should have, one row each in turn.
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        fitting = [number for number, count in enumerate(counts) if count + step >= 1]
        counts[max(fitting, key=lambda number: (step * (wanted[number] - counts[number]), -number))] += step
    return tuple(counts)


def rebalanced(counts: Sequence[int], seconds: Sequence[float]) -> tuple[int, ...]:
    """Return new shares from how long each worker computed on its own; the old ones when little would be gained.

    seconds: of the same number of steps on every worker, waiting for others left out.
    """
    if min(seconds) <= 0:
        return tuple(counts)
    rates = [count / second for count, second in zip(counts, seconds, strict=True)]
    proposed = shares(sum(counts), rates)
    slowest = max(count / rate for count, rate in zip(proposed, rates, strict=True))
    return proposed if max(seconds) >= GAIN * slowest else tuple(counts)


class Stopwatch:
    """Sums up how long a module's forward pass takes; what happens around it, waiting for other workers, is left out."""

    def __init__(self, module: nn.Module, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._start = 0.0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._start = self._clock()

    def _end(self, *_: Any) -> None:
        self.seconds += self._clock() - self._start

    def take(self) -> float:
        """Return the sum, and begin anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
