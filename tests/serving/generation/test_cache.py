"""Blocks are nobody's or one text's; the cache gives back what was put in, in 8 bits within half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_serving.generation.blocks import BlockPool, blocks_for
from belvedere_serving.generation.cache import Kept, PagedCache, quantized, restored


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_a_block_is_free_or_has_one_owner(moves: list[tuple[bool, int]]) -> None:
    pool, owned = BlockPool(8), list[list[int]]()
    for takes, number in moves:
        if takes and (taken := pool.take(number)) is not None:
            owned.append(taken)
        elif not takes and owned:
            pool.give_back(owned.pop(number % len(owned)))
        held = [block for blocks in owned for block in blocks]
        assert len(held) == len(set(held))
        assert len(held) + pool.num_free == 8


def test_too_many_blocks_are_none_at_all() -> None:
    pool = BlockPool(3)
    assert pool.take(4) is None
    assert pool.num_free == 3


def test_giving_back_twice_is_noticed() -> None:
    pool = BlockPool(1)
    taken = pool.take(1)
    assert taken is not None
    pool.give_back(taken)
    with pytest.raises(AssertionError, match="twice"):
        pool.give_back(taken)


@given(st.integers(1, 33), st.integers(1, 9), st.integers(0, 99))
def test_what_is_written_is_gathered(length: int, block_size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    cache = PagedCache(num_blocks=40, block_size=block_size, layers=2, width=4, heads=2)
    table = generator.permutation(40)[: blocks_for(length, block_size)].tolist()
    values = generator.normal(size=(length, 2, 2, 4)).astype(np.float32)
    cut = int(generator.integers(0, length))
    cache.write(table, 0, values[:cut])
    cache.write(table, cut, values[cut:])
    np.testing.assert_array_equal(cache.gather([table])[0, :length], values)


@pytest.mark.parametrize("kept", ["fp32", "int8"])
def test_a_broken_text_leaves_nothing_that_would_break_the_next(kept: Kept) -> None:
    cache = PagedCache(num_blocks=1, block_size=2, layers=1, width=2, heads=1, kept=kept)
    cache.write([0], 0, np.array([[[[np.nan, 1], [np.inf, -np.inf]]]], np.float32))
    assert np.isfinite(cache.gather([[0]])).all()


def test_texts_of_several_lengths_are_gathered_as_wide_as_the_longest() -> None:
    cache = PagedCache(num_blocks=4, block_size=2, layers=1, width=2, heads=1)
    assert cache.gather([[], [0, 1]]).shape == (2, 4, 1, 2, 2)
    assert cache.gather([[]]).shape == (1, 1, 1, 2, 2)


@given(st.integers(0, 99), st.floats(1e-3, 1e3))
def test_eight_bits_are_within_half_a_step_of_each_head(seed: int, size: float) -> None:
    values = (size * np.random.default_rng(seed).normal(size=(3, 2, 8))).astype(np.float32)
    data, scale = quantized(values, heads=2)
    error = np.abs(restored(data, scale) - values).reshape(3, 2, 2, 4)
    # The largest value of a head may lie behind 127 steps by what the scale was rounded.
    assert (error <= 0.6 * scale[..., None].astype(np.float32)).all()


def test_nothing_stays_nothing_in_eight_bits() -> None:
    data, scale = quantized(np.zeros((2, 4), np.float32), heads=2)
    np.testing.assert_array_equal(restored(data, scale), 0)


@pytest.mark.parametrize(("width", "heads"), [(192, 4), (320, 5), (768, 12)])
def test_eight_bits_take_little_more_than_half_of_half_precision(width: int, heads: int) -> None:
    sizes = {"layers": 8, "width": width, "heads": heads}
    int8, fp32 = (PagedCache.bytes_a_token(**sizes, kept=kept) for kept in ("int8", "fp32"))  # type: ignore[arg-type]
    assert int8 <= 0.55 * fp32 / 2
    cache = PagedCache(num_blocks=2, block_size=3, **sizes, kept="int8")
    assert cache.nbytes == 6 * int8
