"""A model whose modalities meet, from scratch on the easy-VQA set: does it answer in its own words, and tell pairs apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.commands.data import data
from belvedere_training.config import RunConfig
from belvedere_training.data.corpus import Corpus, load_split, pull_dataset, resolve_dataset
from belvedere_training.evaluation.fusing import answers_in_words, match_auc
from belvedere_training.evaluation.questions import questions_of, share_right
from belvedere_training.step import Stepper
from sliced import trained
from training_subject import Subject

EXAMPLE = Path(__file__).parents[1] / "examples" / "training" / "questions.yaml"
NAMES = ("easy_vqa_accuracy", "itm_auc")
QUESTION_PAIRS = int(os.environ.get("BELVEDERE_BENCH_QUESTION_PAIRS", "44800"))
MATCH_PAIRS = int(os.environ.get("BELVEDERE_BENCH_MATCH_PAIRS", "10000"))


def rows(subject: Subject) -> list[Row]:
    """Train the nano model with fusion twice: to say the next word, and to match."""
    build = ["build", "easy-vqa", "--artifacts", subject.store.url]
    CliRunner().invoke(data, build, catch_exceptions=False)
    corpus = load_split(pull_dataset(subject.store, resolve_dataset(subject.store, "easy-vqa")), "heldout")
    return [answered(subject, corpus), matched(subject, corpus)]


def answered(subject: Subject, corpus: Corpus) -> Row:
    """Ask everything that the set asks about pictures that were not seen."""
    stepper, cost = asked_run(subject, "lm", {**example()["optimization"], "pairs": QUESTION_PAIRS})
    questions = questions_of(corpus)
    given = answers_in_words(corpus, stepper.model, stepper.tokenizer, questions)
    always = Counter(question.answer for question in questions).most_common(1)[0][1] / len(questions)
    note = f"{cost}; {len(questions)} questions about {len(corpus)} pictures of the test set; always the same answer: {always:.3f}"
    return result(NAMES[0], share_right(questions, given), "share", "higher", 0.95, note=note)


def matched(subject: Subject, corpus: Corpus) -> Row:
    """Tell each picture's caption from that of another one, by the matching head.

    It is shown captions alone: of most questions with an answer, the hardest wrong picture is one that they are true of as well.
    """
    optimization = {"pairs": MATCH_PAIRS, "batchSize": 64, "warmupPairs": 3000}
    stepper, cost = asked_run(subject, "itm", optimization, objectives={"itm": 1}, texts={"questionShare": 0})
    value = match_auc(corpus, "en", stepper.model, stepper.tokenizer)
    return result(NAMES[1], value, "area", "higher", 0.9, note=f"{cost}; {len(corpus)} pictures of the test set")


def asked_run(
    subject: Subject,
    name: str,
    optimization: Mapping[str, float],
    objectives: dict[str, float] | None = None,
    texts: dict[str, float] | None = None,
) -> tuple[Stepper, str]:
    """Return what a run like the example's, with other objectives and texts where given, has made, and what it cost."""
    document = example() | {"run": {"name": f"questions-{name}"}, "evaluation": {"everyPairs": 10**9}}
    document["optimization"] = dict(optimization)
    document["objectives"] = objectives or document["objectives"]
    document["data"]["texts"] = texts or document["data"]["texts"]
    loop, _, seconds = trained(RunConfig.model_validate(document), subject.store, cores=1)
    loop.stepper.model.eval()
    threads = loop.stepper.execution.threads  # those of the slice that began it
    return loop.stepper, f"{optimization['pairs']} pairs in {seconds:.0f} s of processor time, threads: {threads}"


def example() -> dict[str, Any]:
    """Return the spec of the example."""
    spec: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())["spec"]
    return spec
