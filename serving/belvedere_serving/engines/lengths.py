"""Lengths of texts: what each is padded to, and which may be run together. Padding costs as much as words do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

# N texts, L tokens of the longest text that a model reads

Array = npt.NDArray[Any]
Lengths = npt.NDArray[np.int64]
SHORTEST = 8
"""Below it, starting a run costs more than the tokens do."""


def buckets(longest: int) -> tuple[int, ...]:
    """Return the few lengths that texts are padded to: powers of two, and the longest that the model reads."""
    powers = [SHORTEST << doublings for doublings in range(longest.bit_length()) if SHORTEST << doublings < longest]
    return (*powers, longest)


def bucket_lengths(tokens_NL: Array, pad_id: int) -> Lengths:
    """Return the length [N] that each text is padded to: the shortest that holds its tokens."""
    longest = tokens_NL.shape[1]
    last_N = ((tokens_NL != pad_id) * np.arange(1, longest + 1)).max(axis=1, initial=1)
    known = np.array(buckets(longest), np.int64)
    found: Lengths = known[np.searchsorted(known, last_N)]
    return found


def groups(rows: Array, lengths: Lengths | None) -> Iterator[tuple[npt.NDArray[np.intp], Array]]:
    """Give the rows of each length, without what is beyond it, and their places; all as they are without lengths."""
    if lengths is None:
        yield np.arange(len(rows)), rows
        return
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        yield places, rows[places, :length]


def in_order(parts: list[tuple[npt.NDArray[np.intp], Array]]) -> Array:
    """Return the outputs of groups in the order of their places."""
    if len(parts) == 1:
        return parts[0][1]
    places = np.concatenate([places for places, _ in parts])
    found: Array = np.concatenate([outputs for _, outputs in parts])[np.argsort(places)]
    return found
