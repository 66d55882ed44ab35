"""A split through the model: one pass over pictures and captions, from which most measures follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from belvedere_training.data.corpus import Corpus
from belvedere_training.model.dual import DualStream
from belvedere_training.model.normalization import normalise
from belvedere_training.model.tokenizer import encode

# N pictures with a caption each, E embedding

_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Unit vectors of a split's pictures, and of their captions by language, row by row."""

    corpus: Corpus
    image_NE: Tensor
    text_NE: Mapping[str, Tensor]


def embed(model: DualStream, tokenizer: Tokenizer, corpus: Corpus) -> Embedded:
    """Return the embeddings of the split, of captions in every language that all its pictures have."""
    texts = {
        language: embed_texts(model, tokenizer, corpus.captions(language))
        for language in corpus.languages
        if corpus.speaks(language)
    }
    return Embedded(corpus=corpus, image_NE=embed_images(model, corpus), text_NE=texts)


@torch.inference_mode()
def embed_images(model: DualStream, corpus: Corpus) -> Tensor:
    """Return unit vectors of all pictures, on the host wherever the model is."""
    device, normalization = _device(model), model.config.normalization
    chunks = (normalise(chunk.to(device), normalization) for chunk in corpus.chunks(_CHUNK))
    return torch.cat([model.embed_image(pixels_B3SS).cpu() for pixels_B3SS in chunks])


@torch.inference_mode()
def embed_texts(model: DualStream, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Return unit vectors of texts, on the host wherever the model is."""
    device = _device(model)
    chunks = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
    return torch.cat([model.embed_text(encode(tokenizer, chunk, trim=True).to(device)).cpu() for chunk in chunks])


def _device(model: DualStream) -> torch.device:
    return next(model.parameters()).device
