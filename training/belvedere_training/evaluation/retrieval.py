"""Recall of text-to-image and image-to-text retrieval on the held-out splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer
from torch import Tensor

from belvedere_training.data.corpus import Corpus
from belvedere_training.evaluation.embeddings import Embedded, embed
from belvedere_training.model.dual import DualStream

# N pictures with a caption each

CUTOFFS = (1, 5, 10)


def ranks(similarity_NN: Tensor) -> Tensor:
    """Return, for each row, how many entries are larger than the one on the diagonal: 0 is the best."""
    return (similarity_NN > similarity_NN.diagonal()[:, None]).sum(1)


def recall(similarity_NN: Tensor, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Return, for each cutoff, the share of rows whose diagonal entry is among the largest. Ties count as found."""
    rank_N = ranks(similarity_NN)
    return {cutoff: round((rank_N < cutoff).float().mean().item(), 4) for cutoff in cutoffs}


def retrieval_metrics(split: str, embedded: Embedded) -> dict[str, float]:
    """Return {SPLIT_LANGUAGE_DIRECTION_rK: recall}, and the short form SPLIT_LANGUAGE_rK for text-to-image."""
    metrics: dict[str, float] = {}
    for language, text_NE in embedded.text_NE.items():
        similarity_NN = text_NE @ embedded.image_NE.T
        for cutoff, value in recall(similarity_NN).items():
            metrics[f"{split}_{language}_t2i_r{cutoff}"] = metrics[f"{split}_{language}_r{cutoff}"] = value
        for cutoff, value in recall(similarity_NN.T).items():
            metrics[f"{split}_{language}_i2t_r{cutoff}"] = value
    return metrics


def evaluate(model: DualStream, tokenizer: Tokenizer, splits: Mapping[str, Corpus]) -> dict[str, float]:
    """Return the retrieval metrics of all splits; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    for split, corpus in splits.items():
        if len(corpus):
            metrics |= retrieval_metrics(split, embed(model, tokenizer, corpus))
    model.train(was_training)
    return metrics
