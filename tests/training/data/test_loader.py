"""Batches made ahead are the batches made in place, on one worker or several, from any position."""

from __future__ import annotations

import threading

import pytest
import torch
from tokenizers import Tokenizer

from belvedere_training.data.corpus import Corpus, corpus_texts
from belvedere_training.data.loader import Ahead, Batch, Loader, Said
from belvedere_training.model.tokenizer import learn


@pytest.fixture(scope="module")
def tokenizer(shapes: Corpus) -> Tokenizer:
    return learn(corpus_texts(shapes), 400, 12)


def loader(shapes: Corpus, tokenizer: Tokenizer, rows: slice = slice(0, 8), ahead: int = 0) -> Loader:
    return Loader(shapes, tokenizer, seed=5, batch_size=8, rows=rows, ahead=ahead)


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.pixels_B3SS, other.pixels_B3SS)
        and torch.equal(one.tokens_BT, other.tokens_BT)
        and one.pairs == other.pairs
    )


def test_ahead_in_place_and_from_the_middle_are_the_same(shapes: Corpus, tokenizer: Tokenizer) -> None:
    ahead, in_place = loader(shapes, tokenizer, ahead=2), loader(shapes, tokenizer)
    for position in (0, 8, 16, 64, 72, 8):
        assert same(ahead.batch(position), in_place.batch(position))
    ahead.close()


def test_workers_share_one_global_batch(shapes: Corpus, tokenizer: Tokenizer) -> None:
    whole = loader(shapes, tokenizer).batch(24)
    parts = [loader(shapes, tokenizer, rows=rows).batch(24) for rows in (slice(0, 2), slice(2, 8))]
    assert torch.equal(whole.pixels_B3SS, torch.cat([part.pixels_B3SS for part in parts]))
    assert torch.equal(whole.tokens_BT, torch.cat([part.tokens_BT for part in parts]))
    assert all(part.pairs == whole.pairs for part in parts)


def test_workers_share_what_is_said_of_their_pictures(shapes: Corpus, tokenizer: Tokenizer) -> None:
    def said(rows: slice) -> Said:
        return (
            Loader(shapes, tokenizer, seed=5, batch_size=8, rows=rows, said_each=3, apart=True, ahead=0).batch(8).said
        )

    whole, parts = said(slice(0, 8)), [said(slice(0, 2)), said(slice(2, 8))]
    assert whole.tokens_CT is not None
    assert len(whole.tokens_CT) == len(whole.asked_CT) == 24
    for rows, part in zip((slice(0, 2), slice(2, 8)), parts, strict=True):
        for one, other in zip(whole.rows(rows)[:2], part[:2], strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)


def test_what_comes_next_is_made_while_the_first_is_used() -> None:
    made, second = [], threading.Event()

    def make(position: int) -> int:
        made.append(position)
        if position == 10:
            second.set()
        return position

    items = Ahead(make, step=10, depth=1)
    assert items.get(0) == 0
    assert second.wait(60), "nobody asked for it yet"
    assert items.get(10) == 10
    items.close()
    assert made[:2] == [0, 10]


def test_an_error_of_the_thread_is_raised_where_the_item_is_asked_for() -> None:
    def make(position: int) -> int:
        if position == 2:
            raise ValueError("nothing here")
        return position

    items = Ahead(make, step=1, depth=1)
    assert items.get(0) == 0
    assert items.get(1) == 1
    with pytest.raises(ValueError, match="nothing here"):
        items.get(2)
    items.close()
