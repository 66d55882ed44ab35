"""Texts are padded to one of a few lengths that holds them, and get their answers back in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_serving.engines.lengths import bucket_lengths, buckets, groups, in_order
from belvedere_serving.engines.tensorrt import profile_shapes

PAD = 0


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(4, (4,)), (8, (8,)), (20, (8, 16, 20)), (77, (8, 16, 32, 64, 77)), (64, (8, 16, 32, 64))],
)
def test_lengths_are_few_and_end_with_the_longest(longest: int, expected: tuple[int, ...]) -> None:
    assert buckets(longest) == expected


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_every_text_fits_its_length_and_comes_back_to_its_place(sizes: list[int]) -> None:
    tokens = np.zeros((len(sizes), 20), np.int64)
    for row, size in zip(tokens, sizes, strict=True):
        row[:size] = 5
    lengths = bucket_lengths(tokens, PAD)
    seen = []
    for places, rows in groups(tokens, lengths):
        assert set(lengths[places].tolist()) == {rows.shape[1]}
        assert (rows != PAD).sum(1).tolist() == [sizes[place] for place in places]
        seen.append((places, rows.sum(1)))
    assert in_order(seen).tolist() == [5 * size for size in sizes]
    assert all(
        length == min(one for one in buckets(20) if one >= size) for length, size in zip(lengths, sizes, strict=True)
    )


def test_padding_inside_a_text_belongs_to_it() -> None:
    tokens = np.zeros((1, 20), np.int64)
    tokens[0, [0, 12]] = 7
    assert bucket_lengths(tokens, PAD).tolist() == [16]


def test_rows_without_lengths_stay_as_they_are() -> None:
    rows = np.zeros((3, 2, 2))
    ((places, found),) = groups(rows, None)
    assert (places.tolist(), found.shape) == ([0, 1, 2], (3, 2, 2))


def test_a_plan_is_for_the_lengths_that_the_network_leaves_free() -> None:
    assert profile_shapes((-1, -1), (77,)) == [(1, 8), (16, 32), (64, 77)]
    assert profile_shapes((-1, 77), (77,)) == [(1, 77), (16, 77), (64, 77)]
    assert profile_shapes((-1, 3, 64, 64), (3, 64, 64))[2] == (64, 3, 64, 64)
