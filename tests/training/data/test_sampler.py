"""Pairs depend on seed and position alone."""

from __future__ import annotations

import random
from copy import copy

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belvedere_platform.resources.training_data import TextChoice
from belvedere_training.data.corpus import Corpus
from belvedere_training.data.sampler import PairSampler
from belvedere_training.data.texts import draw_text

CHECKS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@CHECKS
@given(position=st.integers(0, 500), count=st.integers(1, 60), split=st.integers(0, 60))
def test_batches_in_pieces_are_the_batch(shapes: Corpus, position: int, count: int, split: int) -> None:
    split = min(split, count)
    whole = PairSampler(shapes, seed=3).batch(position, count)
    other = PairSampler(shapes, seed=3)
    second = other.batch(position + split, count - split)
    first = other.batch(position, split)
    assert whole.pictures == first.pictures + second.pictures
    assert whole.texts == first.texts + second.texts


def test_every_concept_comes_once_an_epoch(shapes: Corpus) -> None:
    sampler = PairSampler(shapes, seed=0)
    num_concepts = len(shapes.by_concept())
    for epoch in range(3):
        assert sorted(sampler.batch(epoch * num_concepts, num_concepts).concepts) == list(range(num_concepts))


def test_another_seed_gives_other_pairs(shapes: Corpus) -> None:
    assert PairSampler(shapes, seed=0).batch(0, 32) != PairSampler(shapes, seed=1).batch(0, 32)


def test_a_picture_shows_what_its_concept_says(shapes: Corpus) -> None:
    pairs = PairSampler(shapes, seed=0).batch(0, 40)
    identifiers = list(shapes.by_concept())
    assert [shapes.records[p]["id"] for p in pairs.pictures] == [identifiers[c] for c in pairs.concepts]


def test_texts_are_made_of_the_records_words(shapes: Corpus) -> None:
    record = shapes.records[0]
    words = {word for tags in record["tags"].values() for word in tags} | set(record["captions"].values())
    for seed in range(50):
        text = draw_text(record, random.Random(seed), TextChoice())
        rest = text.replace("，", " ")
        for word in sorted(words, key=len, reverse=True):
            rest = rest.replace(word, "")
        assert rest.strip() == ""


def test_questions_are_said_and_not_contrasted_where_they_are_kept_apart(shapes: Corpus) -> None:
    asked = [["is it there?", "yes"], ["is it gone?", "no"]]
    corpus = copy(shapes)
    corpus.records = [{**record, "questions": asked} for record in shapes.records]
    setting = TextChoice(question_share=0.5, most_questions=1)
    both = PairSampler(corpus, seed=0, texts=setting).batch(0, 64)
    apart = PairSampler(corpus, seed=0, texts=setting, apart=True).batch(0, 64)
    assert both.said == both.texts
    assert both.asks == apart.asks == tuple("?" in text for text in both.texts)
    assert not any("?" in text for text in apart.texts)
    for asks, said, text, question in zip(apart.asks, apart.said, apart.texts, both.texts, strict=True):
        assert said == (question if asks else text)


@CHECKS
@given(position=st.integers(0, 500), count=st.integers(1, 30), each=st.integers(1, 6))
def test_further_questions_of_a_picture_leave_everything_else_as_it_is(
    shapes: Corpus, position: int, count: int, each: int
) -> None:
    asked = [["is it there?", "yes"], ["is it gone?", "no"], ["where is it?", "here"]]
    corpus = copy(shapes)
    corpus.records = [{**record, "questions": asked} for record in shapes.records]
    setting = TextChoice(question_share=0.8, most_questions=1)
    one = PairSampler(corpus, seed=0, texts=setting, apart=True).batch(position, count)
    several = PairSampler(corpus, seed=0, texts=setting, apart=True, said_each=each).batch(position, count)
    assert (several.pictures, several.texts) == (one.pictures, one.texts)
    assert (several.said[::each], several.asks[::each]) == (one.said, one.asks)
    assert len(several.said) == len(several.asks) == each * count
    for text, asks, picture in zip(
        several.said, several.asks, (p for p in one.pictures for _ in range(each)), strict=True
    ):
        own = (
            {f"{question} {answer}" for question, answer in asked}
            if asks
            else corpus.records[picture]["captions"].values()
        )
        assert asks == ("?" in text)
        assert not asks or text in own


def test_questions_of_one_picture_are_balanced_together_and_captions_take_their_share(shapes: Corpus) -> None:
    corpus = copy(shapes)
    seldom = {"questions": [["is it red?", "yes"], ["is it blue?", "no"], ["is it big?", "no"], ["is it one?", "yes"]]}
    often = {"questions": [["is it red?", "no"], ["is it blue?", "no"], ["is it big?", "no"]]}
    other = {"questions": [["is it blue?", "yes"], ["is it big?", "yes"]]}
    kinds = [seldom, often, often, other, often, often]
    corpus.records = [{**record, **kinds[place % len(kinds)]} for place, record in enumerate(shapes.records)]
    setting = TextChoice(question_share=1, most_questions=1, balance_answers=True)
    pairs = PairSampler(corpus, seed=0, texts=setting, apart=True, said_each=3).batch(0, 40)
    for place, picture in enumerate(pairs.pictures):
        said = pairs.said[3 * place : 3 * place + 3]
        if kinds[picture % len(kinds)] is seldom:
            assert set(said) == {"is it red? yes", "is it blue? no", "is it big? no"}
        assert len(said) == 3
        assert all(asks and "?" in text for asks, text in zip(pairs.asks[3 * place : 3 * place + 3], said, strict=True))
    some = PairSampler(
        corpus, seed=0, texts=setting.model_copy(update={"question_share": 0.5}), apart=True, said_each=3
    ).batch(0, 200)
    assert abs(sum(some.asks) / len(some.asks) - 0.5) < 0.06
    assert all(asks == ("?" in text) for asks, text in zip(some.asks, some.said, strict=True))
