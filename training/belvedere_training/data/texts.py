"""Which text goes with a picture: language, caption, synonyms or an answered question, drawn from a generator that the caller seeds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from belvedere_platform.resources.training_data import TextChoice

MARK = "?"
BETWEEN_QUESTIONS = "\n"
"""What ends a question, and what ends its answer where another question follows: each is a token of its own."""


Weights = Mapping[tuple[str, str], float]
"""By question and answer: how much more or less often it is drawn than others."""


def draw_text(record: Mapping[str, Any], choose: random.Random, setting: TextChoice) -> str:
    """Return answered questions, or what the picture shows."""
    return draw_questions(record, choose, setting) or draw_caption(record, choose, setting)


def draw_questions(
    record: Mapping[str, Any], choose: random.Random, setting: TextChoice, weights: Weights | None = None
) -> str:
    """Return some of the record's questions with their answers; nothing where it has none, or where it is not their turn."""
    questions = record.get("questions")
    if not questions or choose.random() >= setting.question_share:
        return ""
    if weights is None:
        some = choose.sample(questions, min(len(questions), setting.most_questions))
    else:
        some, left = [], list(questions)
        while left and len(some) < setting.most_questions:
            (place,) = choose.choices(range(len(left)), [weights[*one] for one in left])
            some.append(left.pop(place))
    return BETWEEN_QUESTIONS.join(statement(*one) for one in some)


def balancing(records: Sequence[Mapping[str, Any]]) -> Weights:
    """Return for each question with an answer how seldom that answer is. Goyal et al. 2017 (arXiv:1612.00837) balance a set alike."""
    counts = Counter((question, answer) for record in records for question, answer in record.get("questions", ()))
    return {one: 1 / count for one, count in counts.items()}


def draw_caption(record: Mapping[str, Any], choose: random.Random, setting: TextChoice) -> str:
    """Return a caption, a caption with tags, or tags alone, in one of the record's languages."""
    language = draw_language(record, choose, setting)
    caption, tags = record["captions"][language], list(record["tags"].get(language, ()))
    kind = choose.random()
    if kind < setting.caption_alone or not tags:
        return str(caption)
    some = choose.sample(tags, min(len(tags), choose.randint(1, setting.most_synonyms)))
    return join(some if kind >= 1 - setting.caption_dropped else [caption, *some], language)


def statement(question: str, answer: str) -> str:
    """Return question and answer as the one text that is trained on, and compared with a picture."""
    return f"{question} {answer}"


def draw_language(record: Mapping[str, Any], choose: random.Random, setting: TextChoice) -> str:
    """Return English with its share, else one of the record's other languages with equal chances."""
    others: list[str] = sorted(language for language in record["captions"] if language != "en")
    draw = choose.random()
    if "en" in record["captions"] and (draw < setting.english_share or not others):
        return "en"
    # One other language needs no second draw, so that sets in two languages keep the pairs they always had.
    return others[0] if len(others) == 1 else choose.choice(others)


def join(parts: Sequence[str], language: str) -> str:
    """Return the parts as one text, as a person would type search words."""
    return ("，" if language in ("zh", "ja") else " ").join(parts)
