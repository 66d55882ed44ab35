"""Which text goes with a picture: language, caption, synonyms or an answered question, drawn from a generator that the caller seeds."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from belvedere_platform.resources.training_data import TextChoice

MARK = "?"
BETWEEN_QUESTIONS = "\n"
"""What ends a question, and what ends its answer where another question follows: each is a token of its own."""
USUAL_TO_UNUSUAL = 2

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
        some = _weighed(questions, [weights[*one] for one in questions], setting.most_questions, choose)
    return BETWEEN_QUESTIONS.join(statement(*one) for one in some)


def balancing(records: Sequence[Mapping[str, Any]]) -> Weights:
    """Return for each question with an answer how seldom that answer is. Goyal et al. 2017 (arXiv:1612.00837) balance a set alike."""
    counts = Counter((question, answer) for record in records for question, answer in record.get("questions", ()))
    return {one: 1 / count for one, count in counts.items()}


class Usual(NamedTuple):
    """The answer that a question has more than half of the time, and how many other answers there are to each of it."""

    answer: str
    odds: float


def usual_answers(records: Sequence[Mapping[str, Any]]) -> dict[str, Usual]:
    """Return the questions that a look at the question alone answers right more often than not, but not always."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for question, answer in record.get("questions", ()):
            counts[question][answer] += 1
    favourites = ((question, answers.total(), *answers.most_common(1)[0]) for question, answers in counts.items())
    return {
        question: Usual(answer, total / most - 1)
        for question, total, answer, most in favourites
        if most < total < 2 * most
    }


def draw_several(
    questions: Sequence[Sequence[str]], count: int, choose: random.Random, usual: Mapping[str, Usual]
) -> list[Sequence[str]]:
    """Return so many questions of one picture: to each with an unusual answer two with the usual one, then those without any.

    Balanced in each picture, or the picture alone would tell whether its questions have their usual answers; and two to one, because
    of answers that are all equally likely nothing is learned from the question before the picture is understood (training/LOG.md).
    Where a picture has too few, the first are asked again.
    """
    expected = [one for one in questions if one[0] in usual and usual[one[0]].answer == one[1]]
    unusual = [one for one in questions if one[0] in usual and usual[one[0]].answer != one[1]]
    others = [one for one in questions if one[0] not in usual]
    some = choose.sample(unusual, min(len(unusual), max(1, count // (1 + USUAL_TO_UNUSUAL)), count))
    wanted = min(USUAL_TO_UNUSUAL * len(some) or max(1, count // 2), count - len(some))
    some += _weighed(expected, [usual[one[0]].odds for one in expected], wanted, choose)
    some += choose.sample(others, min(len(others), count - len(some)))
    some = some or list(questions)
    return [some[number % len(some)] for number in range(count)]


def _weighed(
    questions: Sequence[Sequence[str]], weights: Sequence[float], count: int, choose: random.Random
) -> list[Sequence[str]]:
    """Return at most so many different ones, drawn by weight."""
    left, odds = list(questions), list(weights)
    some: list[Sequence[str]] = []
    while left and len(some) < count:
        (place,) = choose.choices(range(len(left)), odds)
        odds.pop(place)
        some.append(left.pop(place))
    return some


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
