"""Texts are drawn with the shares asked, in the languages there are."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_platform.resources.training_data import TextChoice
from belvedere_training.data.texts import (
    Usual,
    balancing,
    draw_questions,
    draw_several,
    draw_text,
    join,
    statement,
    usual_answers,
)

RECORD: dict[str, Any] = {
    "captions": {"en": "red circle", "zh": "红色圆形"},
    "tags": {"en": ["round", "dot"], "zh": ["圆"]},
}


def drawn(record: dict[str, Any], setting: TextChoice, count: int = 4000) -> list[str]:
    return [draw_text(record, random.Random(number), setting) for number in range(count)]


def share(texts: list[str], wanted: str) -> float:
    return sum(wanted in text for text in texts) / len(texts)


def test_shares_are_those_asked() -> None:
    texts = drawn(RECORD, TextChoice(english_share=0.3, caption_alone=0.5, caption_dropped=0.4))
    english = [text for text in texts if text.isascii()]
    assert abs(len(english) / len(texts) - 0.3) < 0.03
    assert abs(share(english, "red circle") - 0.6) < 0.05
    assert abs(sum(text == "red circle" for text in english) / len(english) - 0.5) < 0.05


def test_questions_are_drawn_with_their_answers_where_there_are_any() -> None:
    asked = [["what shape is in the picture?", "circle"], ["is there a blue shape?", "no"]]
    texts = drawn({**RECORD, "questions": asked}, TextChoice(question_share=0.6, most_questions=1))
    answered = [text for text in texts if text in {statement(*one) for one in asked}]
    assert abs(len(answered) / len(texts) - 0.6) < 0.03
    assert set(answered) == {"what shape is in the picture? circle", "is there a blue shape? no"}


def test_answers_are_balanced_over_all_pictures_by_question() -> None:
    often, seldom = ["is it blue?", "no"], ["is it blue?", "yes"]
    records = [{"questions": [often, ["what?", "circle"]]}] * 9 + [{"questions": [seldom, ["what?", "circle"]]}]
    weights, setting = balancing(records), TextChoice(question_share=1, most_questions=1)
    choose = random.Random(0)
    texts = [draw_questions(choose.choice(records), choose, setting, weights) for _ in range(8000)]
    no, yes = (texts.count(statement(*one)) / len(texts) for one in (often, seldom))
    # Of nine pictures with "no" each asks with 1/9 against 1/10 of the other question, the one with "yes" with 1 against 1/10.
    assert no == pytest.approx(0.9 * 10 / 19, abs=0.02)
    assert yes == pytest.approx(0.1 * 10 / 11, abs=0.02)
    both = draw_questions(records[0], choose, TextChoice(question_share=1, most_questions=5), weights)
    assert set(both.split("\n")) == {"is it blue? no", "what? circle"}


def test_an_answer_is_usual_where_it_is_given_more_than_half_of_the_time() -> None:
    asked = [
        *[["is it blue?", "no"]] * 3,
        ["is it blue?", "yes"],
        ["what?", "circle"],
        ["what?", "square"],
        ["is it?", "yes"],
    ]
    assert usual_answers([{"questions": asked}, {}]) == {"is it blue?": ("no", pytest.approx(1 / 3))}


@given(
    kinds=st.lists(st.sampled_from(["usual", "unusual", "other"]), min_size=1, max_size=12),
    count=st.integers(1, 12),
    seed=st.integers(0, 50),
)
def test_of_each_picture_two_questions_with_the_usual_answer_are_drawn_to_one_without(
    kinds: list[str], count: int, seed: int
) -> None:
    usual = {f"{number}?": Usual("no", 0.2) for number, kind in enumerate(kinds) if kind != "other"}
    answers = {"usual": "no", "unusual": "yes", "other": "red"}
    asked = [(f"{number}?", answers[kind]) for number, kind in enumerate(kinds)]
    drawn = draw_several(asked, count, random.Random(seed), usual)
    assert len(drawn) == count
    assert set(drawn) <= set(asked)
    expected, unusual = (len({question for question, one in drawn if one == answer}) for answer in ("no", "yes"))
    assert unusual == min(kinds.count("unusual"), max(1, count // 3))
    wanted = min(2 * unusual or max(1, count // 2), count - unusual)
    assert expected == min(kinds.count("usual"), wanted)
    others = min(kinds.count("other"), count - unusual - expected)
    assert len(set(drawn)) == unusual + expected + others


def test_a_text_holds_as_many_answered_questions_as_asked_for() -> None:
    asked = [["what shape?", "circle"], ["is it blue?", "no"], ["is it red?", "yes"]]
    texts = drawn({**RECORD, "questions": asked}, TextChoice(question_share=1.0, most_questions=2), 50)
    assert "is it blue? no\nwhat shape? circle" in texts
    assert {text.count("?") for text in texts} == {2}


def test_a_language_alone_gets_every_draw() -> None:
    for language in ("en", "zh"):
        record = {"captions": {language: RECORD["captions"][language]}, "tags": {}}
        assert set(drawn(record, TextChoice(), 50)) == {RECORD["captions"][language]}


def test_three_languages_share() -> None:
    record = {"captions": {"en": "cat", "zh": "猫", "fr": "chat"}, "tags": {}}
    texts = drawn(record, TextChoice())
    assert abs(texts.count("cat") / len(texts) - 0.65) < 0.03
    assert abs(texts.count("猫") / len(texts) - 0.175) < 0.03


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_the_same_generator_gives_the_same_text(seed: int, english: float, alone: float) -> None:
    setting = TextChoice(english_share=english, caption_alone=alone, caption_dropped=(1 - alone) / 2)
    assert draw_text(RECORD, random.Random(seed), setting) == draw_text(RECORD, random.Random(seed), setting)


def test_words_are_joined_as_each_language_writes_them() -> None:
    assert join(["a", "b"], "en") == "a b"
    assert join(["甲", "乙"], "zh") == "甲，乙"
