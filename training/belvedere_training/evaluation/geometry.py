"""What the space looks like: the gap between modalities, what a linear probe reads from it, and what a hard style costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from belvedere_training.data.corpus import Corpus
from belvedere_training.evaluation.embeddings import Embedded
from belvedere_training.evaluation.retrieval import recall

# N pictures, A attribute values, E embedding

RIDGE = 1e-2
_LEAST_EACH = 2


def gap_metrics(split: str, embedded: Embedded) -> dict[str, float]:
    """Return the distance of the modalities' centres, and how near pairs are to each other, by language.

    The gap: Liang et al. 2022 (arXiv:2203.02053), section 2. Alignment: Wang and Isola 2020 (arXiv:2005.10242), section 4.
    """
    metrics = {}
    centre_E = embedded.image_NE.mean(0)
    for language, text_NE in embedded.text_NE.items():
        metrics[f"{split}_{language}_modality_gap"] = round((centre_E - text_NE.mean(0)).norm().item(), 4)
        distance_N = (embedded.image_NE - text_NE).square().sum(-1)
        metrics[f"{split}_{language}_alignment"] = round(distance_N.mean().item(), 4)
    return metrics


def attributes_of(corpus: Corpus) -> dict[str, list[str]]:
    """Return the attributes that a probe can be asked for, each with its value for every picture."""
    names: dict[str, None] = dict.fromkeys(("style", "group"))
    for record in corpus.records:
        names.update(dict.fromkeys(record.get("attributes", {})))
    found = {
        name: [str(record.get(name, record.get("attributes", {}).get(name, ""))) for record in corpus.records]
        for name in names
    }
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def probe(image_NE: Tensor, values: Sequence[str]) -> tuple[float, float]:
    """Return how often a linear probe reads the attribute of pictures it was not fitted on, and the most common value's share.

    Ridge regression on one-hot targets, fitted on every other picture: closed form, so the answer is always the same.
    """
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    label_N = torch.tensor([numbers[value] for value in values])
    fit, check = slice(0, None, 2), slice(1, None, 2)
    target_NA = functional.one_hot(label_N[fit], len(numbers)).double()
    with_one_NE = functional.pad(image_NE.double(), (0, 1), value=1.0)
    x_NE = with_one_NE[fit]
    penalty_EE = RIDGE * torch.eye(x_NE.shape[1], dtype=torch.double)
    weight_EA = torch.linalg.solve(x_NE.T @ x_NE + penalty_EE, x_NE.T @ target_NA)
    hit = (with_one_NE[check] @ weight_EA).argmax(1) == label_N[check]
    majority = Counter(values).most_common(1)[0][1] / len(values)
    return round(hit.float().mean().item(), 4), round(majority, 4)


def probe_metrics(split: str, embedded: Embedded) -> dict[str, float]:
    """Return the probe's accuracy for each attribute, with the majority's share beside it."""
    metrics = {}
    for name, values in attributes_of(embedded.corpus).items():
        if len(values) >= _LEAST_EACH * len(set(values)):
            metrics[f"{split}_probe_{name}"], metrics[f"{split}_probe_{name}_majority"] = probe(
                embedded.image_NE, values
            )
    return metrics


def robustness_metrics(easy: Embedded, hard: Embedded) -> dict[str, float]:
    """Return how much of the text-to-image recall is left in the hard style, over the concepts that both splits show."""
    first = {record["id"]: position for position, record in enumerate(easy.corpus.records)}
    second = {record["id"]: position for position, record in enumerate(hard.corpus.records)}
    shared = sorted(first.keys() & second.keys())
    metrics: dict[str, float] = {}
    if not shared:
        return metrics
    rows = {"easy": [first[concept] for concept in shared], "hard": [second[concept] for concept in shared]}
    for language in easy.text_NE.keys() & hard.text_NE.keys():
        found: Mapping[str, float] = {
            name: recall(part.text_NE[language][rows[name]] @ part.image_NE[rows[name]].T)[5]
            for name, part in (("easy", easy), ("hard", hard))
        }
        metrics[f"{hard.corpus.name}_{language}_r5_shared"] = found["hard"]
        metrics[f"{hard.corpus.name}_{language}_r5_kept"] = round(found["hard"] / max(found["easy"], 1e-9), 4)
    return metrics
