"""Does a text belong to a picture: area under the ROC curve over true pairs and pairs that are certainly wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from belvedere_training.evaluation.embeddings import Embedded

# N pairs


def auc(positive_N: Tensor, negative_M: Tensor) -> float:
    """Return the chance that a true pair scores higher than a wrong one, ties counted half. Mann and Whitney 1947."""
    scores = torch.cat([positive_N, negative_M]).double()
    _, place, times = torch.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = times.cumsum(0) - (times - 1) / 2
    num_positive, num_negative = len(positive_N), len(negative_M)
    rank_sum = float(mean_rank[place[:num_positive]].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def wrong_partners(records: Sequence[Mapping[str, Any]], language: str, seed: int = 0) -> list[int]:
    """Return for each row another one of another concept and another caption; rows that have none are -1."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(records), generator=generator).tolist()
    partners = []
    for row, record in enumerate(records):
        start = order[row]
        candidates = (order[(start + step) % len(order)] for step in range(1, len(order)))
        caption = record["captions"][language]
        fitting = (
            other
            for other in candidates
            if records[other]["id"] != record["id"] and records[other]["captions"][language] != caption
        )
        partners.append(next(fitting, -1))
    return partners


def similarity_auc(split: str, embedded: Embedded) -> dict[str, float]:
    """Return the AUC of the embeddings' similarity, which every model has, by language."""
    metrics = {}
    records = list(embedded.corpus.records)
    for language, text_NE in embedded.text_NE.items():
        partner = torch.tensor(wrong_partners(records, language))
        kept = partner >= 0
        if kept.any():
            right_N = (embedded.image_NE * text_NE).sum(-1)
            wrong_M = (embedded.image_NE[kept] * text_NE[partner[kept]]).sum(-1)
            metrics[f"{split}_{language}_similarity_auc"] = round(auc(right_N, wrong_M), 4)
    return metrics
