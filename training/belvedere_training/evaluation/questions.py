"""Questions about pictures: the answer whose statement is nearest to the picture, among all answers that occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from belvedere_training.data.corpus import Corpus
from belvedere_training.data.texts import statement
from belvedere_training.evaluation.embeddings import Embedded, embed_texts
from belvedere_training.model.dual import DualStream

# Q questions, A answers, E embedding


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about the picture at a position of the corpus, with its true answer."""

    position: int
    text: str
    answer: str


def questions_of(corpus: Corpus) -> list[Question]:
    """Return the questions that the records hold, as pairs of question and answer."""
    return [
        Question(position=position, text=text, answer=answer)
        for position, record in enumerate(corpus.records)
        for text, answer in record.get("questions", ())
    ]


def answers_by_similarity(
    embedded: Embedded, model: DualStream, tokenizer: Tokenizer, questions: Sequence[Question], answers: Sequence[str]
) -> list[str]:
    """Return the answer to each question whose statement is most similar to the picture."""
    texts = list(dict.fromkeys(question.text for question in questions))
    statements = [statement(text, answer) for text in texts for answer in answers]
    statement_QAE = embed_texts(model, tokenizer, statements).reshape(len(texts), len(answers), -1)
    number = {text: place for place, text in enumerate(texts)}
    found = []
    for question in questions:
        score_A = statement_QAE[number[question.text]] @ embedded.image_NE[question.position]
        found.append(answers[int(score_A.argmax())])
    return found


def share_right(questions: Sequence[Question], given: Sequence[str]) -> float:
    """Return the share of right answers."""
    right = sum(question.answer == answer for question, answer in zip(questions, given, strict=True))
    return round(right / len(questions), 4)


def question_metrics(split: str, embedded: Embedded, model: DualStream, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the accuracy, and what always giving the most common answer would reach; nothing where nobody asks."""
    questions = questions_of(embedded.corpus)
    if not questions:
        return {}
    counts = Counter(question.answer for question in questions)
    given = answers_by_similarity(embedded, model, tokenizer, questions, sorted(counts))
    return {
        f"{split}_vqa_accuracy": share_right(questions, given),
        f"{split}_vqa_most_common": round(counts.most_common(1)[0][1] / len(questions), 4),
    }
