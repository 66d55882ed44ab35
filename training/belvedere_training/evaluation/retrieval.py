"""Recall of text-to-image and image-to-text retrieval on the held-out splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from belvedere_training.data.corpus import Corpus, normalise
from belvedere_training.model.dual import DualStream
from belvedere_training.model.tokenizer import encode

# N pictures with a caption each, E embedding

CUTOFFS = (1, 5, 10)
_CHUNK = 256


def recall(similarity_NN: Tensor, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Return, for each cutoff, the share of rows whose diagonal entry is among the largest. Ties count as found."""
    rank_N = (similarity_NN > similarity_NN.diagonal()[:, None]).sum(1)
    return {cutoff: round((rank_N < cutoff).float().mean().item(), 4) for cutoff in cutoffs}


@torch.inference_mode()
def embed_images(model: DualStream, corpus: Corpus) -> Tensor:
    """Return unit vectors of all pictures."""
    return torch.cat([model.embed_image(normalise(chunk)) for chunk in corpus.chunks(_CHUNK)])


@torch.inference_mode()
def embed_texts(model: DualStream, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Return unit vectors of texts."""
    chunks = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
    return torch.cat([model.embed_text(encode(tokenizer, chunk, trim=True)) for chunk in chunks])


def evaluate(model: DualStream, tokenizer: Tokenizer, splits: Mapping[str, Corpus]) -> dict[str, float]:
    """Return {SPLIT_LANGUAGE_DIRECTION_rK: recall}, and the short form SPLIT_LANGUAGE_rK for text-to-image."""
    was_training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    for split, corpus in splits.items():
        if not len(corpus):
            continue
        image_NE = embed_images(model, corpus)
        for language in filter(corpus.speaks, corpus.languages):
            similarity_NN = embed_texts(model, tokenizer, corpus.captions(language)) @ image_NE.T
            for cutoff, value in recall(similarity_NN).items():
                metrics[f"{split}_{language}_t2i_r{cutoff}"] = metrics[f"{split}_{language}_r{cutoff}"] = value
            for cutoff, value in recall(similarity_NN.T).items():
                metrics[f"{split}_{language}_i2t_r{cutoff}"] = value
    model.train(was_training)
    return metrics
