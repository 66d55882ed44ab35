"""Betting processes on counts: wealth that cannot grow in expectation while the null hypothesis holds.

A process is a vector of log wealths, one for each alternative on a grid, under a uniform prior; its e-value is their
mean wealth. By Ville's inequality the chance that it ever reaches 1/a under the null is at most a, however often and
whenever one looks, and whatever share of the traffic each side had (the observed split enters each bet).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Wealth = tuple[float, ...]
"""Log wealth of each bet on the grid."""

LARGEST_LOG = 60.0
"""E-values are shown up to e**60: more says nothing, and stays finite in JSON."""


def grid(low: float, high: float, size: int) -> NDArray[np.float64]:
    """Return alternatives spaced evenly in their logarithm."""
    return np.exp(np.linspace(math.log(low), math.log(high), size))


def start(size: int) -> Wealth:
    """Return the wealth before any data: one on every bet."""
    return (0.0,) * size


def e_value(wealth: Wealth) -> float:
    """Return the mean wealth over the grid; 1 before any data."""
    if not wealth:
        return 1.0
    largest = max(wealth)
    mean = math.log(math.fsum(math.exp(log - largest) for log in wealth) / len(wealth))
    return math.exp(min(LARGEST_LOG, largest + mean))


def bet_on_ratio(
    wealth: Wealth,
    alternatives: NDArray[np.float64],
    *,
    null: float,
    trials: tuple[int, int],
    events: tuple[int, int],
    temper: float = 1.0,
) -> Wealth:
    """Return the wealth after one look, betting that the candidate's event rate is another multiple of the stable's than `null`.

    trials, events: (candidate, stable). Given the total, the candidate's events are binomial with share
    p(r) = r w / (r w + 1 - w), w being its share of the trials. Lindon and Malek 2022, with a grid for the prior.
    """
    of_candidate, of_stable = trials
    if of_candidate == 0 or of_stable == 0 or sum(events) == 0:
        return wealth
    w = of_candidate / (of_candidate + of_stable)
    p = alternatives * w / (alternatives * w + 1 - w)
    p_null = null * w / (null * w + 1 - w)
    gain = events[0] * np.log(p / p_null) + events[1] * np.log((1 - p) / (1 - p_null))
    return _add(wealth, gain / temper)


def bet_on_share(
    wealth: Wealth,
    alternatives: NDArray[np.float64],
    *,
    null: float,
    trials: int,
    events: int,
    temper: float = 1.0,
) -> Wealth:
    """Return the wealth after one look, betting that the share of events is an alternative rather than `null`.

    Alternatives below the null test "at least null"; above it, "at most null".
    """
    if trials == 0:
        return wealth
    gain = events * np.log(alternatives / null) + (trials - events) * np.log((1 - alternatives) / (1 - null))
    return _add(wealth, gain / temper)


def mean_of(values: Sequence[float], *, slots: int | None = None) -> float:
    """Return the average of e-values, itself an e-value under any dependence. Unused slots count as 1."""
    size = max(len(values), slots or 0)
    if size == 0:
        return 1.0
    return (math.fsum(values) + (size - len(values))) / size


def _add(wealth: Wealth, gain: Iterable[float]) -> Wealth:
    return tuple(float(log + more) for log, more in zip(wealth, gain, strict=True))
