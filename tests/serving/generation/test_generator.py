"""Whatever the company, the joins, the evictions: every text is the one that is written alone without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belvedere_serving.generation.blocks import blocks_for
from belvedere_serving.generation.generator import CacheOptions, Generator, Writing, write_alone
from belvedere_serving.generation.sampling import Sampling
from belvedere_training.evaluation.fusing import decode_greedily

Asked = list[tuple[int, list[int], int, int]]
"""Of each text: its picture, its prompt, how many words, and after how many steps it joins."""
_texts = st.lists(
    st.tuples(
        st.integers(0, 3), st.lists(st.integers(8, 250), min_size=1, max_size=9), st.integers(1, 14), st.integers(0, 8)
    ),
    min_size=1,
    max_size=6,
)


def run(generator: Generator, asked: Asked, pictures: Any, sampling: Sampling | None = None) -> list[Writing]:
    """Write texts that join at different times, and check the books after every step."""
    sampling = sampling or Sampling()
    writings = [
        Writing(prompt=tuple(prompt), max_new_tokens=count, picture=pictures[number], sampling=sampling)
        for number, prompt, count, _ in asked
    ]
    step = 0
    while generator.busy or any(step <= joins for *_, joins in asked):
        for writing, (*_, joins) in zip(writings, asked, strict=True):
            if joins == step:
                generator.add(writing)
        generator.step()
        check(generator)
        step += 1
        assert step < 500, "the texts do not get on"
    return writings


def check(generator: Generator) -> None:
    """No block is lost or shared, and each text leaves less than one block empty."""
    held = [block for text in generator.scheduler.running for block in text.table]
    assert len(set(held)) == len(held)
    assert len(held) + generator.scheduler.pool.num_free == generator.options.num_blocks
    for text in generator.scheduler.running:
        assert len(text.table) == blocks_for(text.num_cached, generator.options.block_size)
    assert len(generator.scheduler.running) <= generator.options.max_running


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=_texts, block_size=st.sampled_from([1, 3, 4]), spare=st.integers(0, 10), max_running=st.integers(1, 4))
def test_every_text_is_as_written_alone(
    a_decoder: Callable[..., Any],
    pictures: Any,
    asked: Asked,
    block_size: int,
    spare: int,
    max_running: int,
) -> None:
    decoder = a_decoder()
    # As few blocks as the largest text needs alone, and some: most runs evict.
    largest = max(blocks_for(len(prompt) + count, block_size) for _, prompt, count, _ in asked)
    options = CacheOptions(num_blocks=largest + spare, block_size=block_size, max_running=max_running)
    generator = Generator(decoder, options)
    for writing in run(generator, asked, pictures):
        assert writing.written == write_alone(decoder, writing.picture, writing.prompt, writing.max_new_tokens)
        assert writing.finish == ("length" if len(writing.written) == writing.max_new_tokens else "stop")
    assert generator.scheduler.pool.num_free == options.num_blocks


@pytest.mark.parametrize("topology", ["fusion", "unified", "hybrid"])
def test_it_is_the_model_that_was_trained(a_decoder: Callable[..., Any], topology: str) -> None:
    decoder = a_decoder(topology)
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16)
    expected = decode_greedily(decoder.model, pixels, torch.tensor([[1], [1]]), 12)[:, 1:].tolist()
    with torch.inference_mode():
        kept = decoder.picture(decoder.model.vision.encode(pixels).tokens_BTD.numpy())
    generator = Generator(decoder, CacheOptions(num_blocks=12, block_size=2))
    written = run(generator, [(0, [1], 11, 0), (1, [1], 11, 2)], kept)
    for writing, row in zip(written, expected, strict=True):
        assert writing.written == row[: len(writing.written)]
        assert writing.finish == "length" or row[len(writing.written)] == decoder.geometry.end_id


def test_a_drawn_text_does_not_depend_on_its_company(a_decoder: Callable[..., Any], pictures: Any) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=5)
    texts: Asked = [(0, [9], 12, 0), (1, [20, 30], 9, 1), (2, [50], 12, 2)]
    tight = run(Generator(a_decoder(), CacheOptions(num_blocks=6, block_size=3)), texts, pictures, sampling)
    alone = [run(Generator(a_decoder()), [(*one[:3], 0)], pictures, sampling)[0] for one in texts]
    assert [one.written for one in tight] == [one.written for one in alone]
    assert len(set(map(tuple, (one.written for one in alone)))) == 3


def test_a_cancelled_text_frees_its_blocks_and_harms_no_other(a_decoder: Callable[..., Any], pictures: Any) -> None:
    generator = Generator(a_decoder(), CacheOptions(num_blocks=16, block_size=2, max_running=1))
    texts = [Writing(prompt=(9,), max_new_tokens=8, picture=pictures[0]) for _ in range(3)]
    for text in texts:
        generator.add(text)
    generator.step()
    generator.cancel(texts[0])
    generator.cancel(texts[1])  # had not begun
    assert generator.scheduler.pool.num_free == 16
    while generator.busy:
        generator.step()
    assert texts[2].written == write_alone(a_decoder(), pictures[0], [9], 8)
    assert texts[1].written == []


def test_the_first_in_the_queue_is_not_passed_by_smaller_ones(a_decoder: Callable[..., Any], pictures: Any) -> None:
    generator = Generator(a_decoder(), CacheOptions(num_blocks=4, block_size=2))
    running = Writing(prompt=tuple(range(8, 12)), max_new_tokens=3, picture=pictures[0])
    large = Writing(prompt=tuple(range(8, 14)), max_new_tokens=2, picture=pictures[0])
    small = Writing(prompt=(9,), max_new_tokens=2, picture=pictures[0])
    for text in (running, large, small):
        generator.add(text)
    generator.step()
    assert generator.scheduler.running == [running]
    while generator.busy:
        generator.step()
        assert large.written or not small.written


def test_eight_bits_write_nearly_the_same(a_decoder: Callable[..., Any], pictures: Any) -> None:
    decoder = a_decoder()
    generator = Generator(decoder, CacheOptions(num_blocks=20, block_size=4, kept="int8"))
    written = run(generator, [(number, [9 + number], 12, 0) for number in range(4)], pictures)
    alike = [
        token == other
        for writing in written
        for token, other in zip(
            writing.written, write_alone(decoder, writing.picture, writing.prompt, 12), strict=False
        )
    ]
    assert np.mean(alike) > 0.8


def test_room_ends_with_the_model_and_with_the_pool(a_decoder: Callable[..., Any]) -> None:
    assert Generator(a_decoder()).room(10) == 30
    assert Generator(a_decoder(), CacheOptions(num_blocks=2, block_size=4)).room(5) == 4
    assert Generator(a_decoder()).room(50) == 0
