"""Evaluate a model on a data set: every measure that its heads and the data allow, split by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belvedere_platform.errors import InvalidInput
from belvedere_training.data.corpus import Corpus, held_out_splits, load_split, read_manifest
from belvedere_training.evaluation.classification import classification_metrics
from belvedere_training.evaluation.embeddings import Embedded, embed
from belvedere_training.evaluation.fusing import fusing_metrics
from belvedere_training.evaluation.geometry import gap_metrics, probe_metrics, robustness_metrics
from belvedere_training.evaluation.matching import similarity_auc
from belvedere_training.evaluation.questions import question_metrics
from belvedere_training.evaluation.retrieval import ranks, retrieval_metrics
from belvedere_training.model.files import LoadedModel

NUM_NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class Query:
    """What one caption found: the right picture's place, and the nearest pictures."""

    text: str
    position: int
    rank: int
    found: tuple[int, ...]


@dataclass(kw_only=True)
class Evaluation:
    """Everything that a report shows."""

    data: Mapping[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    embedded: dict[str, Embedded] = field(default_factory=dict)
    hits: dict[str, list[Query]] = field(default_factory=dict)
    misses: dict[str, list[Query]] = field(default_factory=dict)

    def document(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the evaluation as JSON holds it."""
        return {
            "model": dict(model),
            "data": dict(self.data),
            "metrics": self.metrics,
            "hits": {split: [vars(query) for query in queries] for split, queries in self.hits.items()},
            "misses": {split: [vars(query) for query in queries] for split, queries in self.misses.items()},
        }


def evaluate_on(
    loaded: LoadedModel,
    folder: Path,
    *,
    splits: Sequence[str] = (),
    examples: int = 6,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Return the evaluation on the splits named, or on all that are held out (the training split when there are none)."""
    manifest = read_manifest(folder)
    chosen = tuple(splits) or held_out_splits(folder) or ("train",)
    result = Evaluation(
        data={name: manifest[name] for name in ("name", "digest", "licences")} | {"splits": list(chosen)}
    )
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    _check_size(model.config.vision.image_size, manifest["size"])
    for split in chosen:
        progress(split)
        corpus = load_split(folder, split)
        if not len(corpus):
            raise InvalidInput(
                f"split {split} of {manifest['name']} is empty; it has {', '.join(held_out_splits(folder))}"
            )
        embedded = result.embedded[split] = embed(model, tokenizer, corpus)
        result.metrics |= retrieval_metrics(split, embedded)
        result.metrics |= classification_metrics(split, embedded, model, tokenizer)
        result.metrics |= similarity_auc(split, embedded)
        result.metrics |= question_metrics(split, embedded, model, tokenizer)
        result.metrics |= fusing_metrics(split, embedded, model, tokenizer)
        result.metrics |= gap_metrics(split, embedded) | probe_metrics(split, embedded)
        result.hits[split], result.misses[split] = hits_and_misses(embedded, examples)
    if {"heldout_style", "hard_style"} <= result.embedded.keys():
        result.metrics |= robustness_metrics(result.embedded["heldout_style"], result.embedded["hard_style"])
    return result


def _check_size(asked: int, have: int) -> None:
    if asked != have:
        raise InvalidInput(
            f"the model takes pictures of {asked} pixels and the data set has {have}: build the data set with --size {asked}"
        )


def hits_and_misses(embedded: Embedded, count: int) -> tuple[list[Query], list[Query]]:
    """Return the captions found with the largest lead, and those found last, in the first language there is."""
    language = next(iter(embedded.text_NE), None)
    if language is None or count == 0:
        return [], []
    similarity_NN = embedded.text_NE[language] @ embedded.image_NE.T
    rank_N = ranks(similarity_NN)
    own_N = similarity_NN.diagonal()
    lead_N = own_N - similarity_NN.clone().fill_diagonal_(-2).amax(1)
    found_N3 = similarity_NN.topk(min(NUM_NEIGHBOURS, len(own_N)), dim=1).indices

    def query(position: int) -> Query:
        return Query(
            text=embedded.corpus.records[position]["captions"][language],
            position=position,
            rank=int(rank_N[position]),
            found=tuple(found_N3[position].tolist()),
        )

    best = [position for position in lead_N.argsort(descending=True).tolist() if rank_N[position] == 0]
    worst = [position for position in rank_N.argsort(descending=True, stable=True).tolist() if rank_N[position] > 0]
    return [query(position) for position in best[:count]], [query(position) for position in worst[:count]]


def pictures_of(corpus: Corpus, queries: Sequence[Query]) -> dict[int, bytes]:
    """Return the PNG of every picture that the queries show."""
    shown = {position for query in queries for position in (query.position, *query.found)}
    return {position: corpus.png(position) for position in sorted(shown)}
